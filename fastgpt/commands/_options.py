"""From command line and configuration file to a command's dataclass."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def parse(command: type[T], argv: Sequence[str], prog: str) -> T:
    """Fill `command` from options; those of a file given by `--config` come first, so that the others override them.

    Raises:
        SystemExit: `--help`, or options that do not parse (tyro prints why).
        FileNotFoundError, ValueError: a configuration file that is missing, malformed or has an unknown key.
    """
    import tyro

    argv = list(argv)
    path, argv = _take_config(argv)
    defaults = [] if path is None else _as_options(command, read_config(path), path)
    command = tyro.conf.OmitArgPrefixes[command]
    if not defaults:
        return tyro.cli(command, args=argv, prog=prog)
    return tyro.cli(command, args=argv, prog=prog, default=tyro.cli(command, args=defaults, prog=f"{prog} ({path})"))


def option_names(command: type) -> set[str]:
    """Names of all settings of a command's dataclass, those of nested groups included."""
    names: set[str] = set()
    for field in dataclasses.fields(command):
        nested = field.default_factory
        names |= option_names(nested) if dataclasses.is_dataclass(nested) else {field.name}
    return names


def read_config(path: Path) -> dict[str, Any]:
    """A TOML, YAML or JSON file as nested dictionaries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: malformed, or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: no such file; give a .toml, .yaml or .json file")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".toml":
            if sys.version_info >= (3, 11):
                import tomllib
            else:
                import tomli as tomllib
            values = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            values = _yaml(path).safe_load(text)
        elif path.suffix == ".json":
            import json

            values = json.loads(text)
        else:
            raise ValueError(f"unknown kind {path.suffix!r}; name it .toml, .yaml or .json")
    except ImportError:
        raise
    except Exception as error:  # each parser has its own error type
        raise ValueError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: holds a {type(values).__name__}; it must be a table of settings")
    return values


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            f"--config {path}: reading YAML needs pyyaml; `pip install 'fastgpt-triton[train]'`, or use TOML"
        ) from error
    return yaml


def _take_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    for n, word in enumerate(argv):
        if word == "--config" and n + 1 < len(argv):
            return Path(argv[n + 1]), argv[:n] + argv[n + 2 :]
        if word.startswith("--config="):
            return Path(word.removeprefix("--config=")), argv[:n] + argv[n + 1 :]
    return None, argv


def _as_options(command: type, values: dict[str, Any], path: Path) -> list[str]:
    return list(_options(command, values, path, ""))


def _options(group: type, values: dict[str, Any], path: Path, prefix: str) -> Iterator[str]:
    types = typing.get_type_hints(group)
    known = {field.name: types[field.name] for field in dataclasses.fields(group)}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ValueError(
                f"--config {path}: unknown setting {prefix + key!r}; choose from {', '.join(prefix + k for k in known)}"
            )
        if isinstance(value, dict):
            if not dataclasses.is_dataclass(known[name]):
                raise ValueError(f"--config {path}: {prefix + key!r} is a single setting, not a table")
            yield from _options(known[name], value, path, f"{prefix}{key}.")
            continue
        option = name.replace("_", "-")
        if known[name] is bool and isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, list):
            yield from [f"--{option}", *map(str, value)]
        else:
            yield from [f"--{option}", str(value)]
