"""The file that `--config` names: TOML, YAML or JSON, with the options of a command in tables."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.settings import shown
from ._options import Given, Option, UsageError


def read_settings(path: Path, where: str, given: Given) -> None:
    """Puts the settings of `path` into `given`; `where` is what messages call the file.

    Raises:
        UsageError: missing, malformed, an unknown key or a value of another type.
        ImportError: YAML without pyyaml.
    """
    keys = {option.key: option for option in given.options.values()}
    seen = set()
    for key, value in _leaves(_load(path, where), "", keys, where):
        if key == "config":
            raise UsageError(f"{where}: {key} = {shown(value)}: one file names no other; leave it out")
        if key in seen:  # batch-size and batch_size
            raise UsageError(f"{where}: {key} stands there twice; leave one of them out")
        seen.add(key)
        option = keys[key]
        values = [value] if option.many and not isinstance(value, list) else value
        found = tuple(_value(one, option, f"{where}: {key}") for one in (values if option.many else [value]))
        given.values[option.name] = found if option.many else found[0]
        given.words[option.name] = f"{where}: {key} = {shown(value)}"


def _value(value: Any, option: Option, key: str) -> Any:
    if isinstance(value, str) and option.kind in (int, float):  # YAML takes 3e-4 for a text
        with contextlib.suppress(UsageError):
            return option.value_of(value)
    if value == "" and option.kind is str and option.accepts(value):
        raise UsageError(f"{key} = '' is empty; give a value, e.g. {option.example}")
    if not option.accepts(value):
        raise UsageError(f"{key} = {'null' if value is None else shown(value)} {option.need}")
    return value


def _leaves(values: dict[str, Any], prefix: str, keys: dict[str, Option], where: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of every setting, the names of tables joined by dots."""
    for name, value in values.items():
        key = prefix + str(name).replace("-", "_")
        is_table = any(known.startswith(f"{key}.") for known in keys)
        if isinstance(value, dict) and is_table:
            yield from _leaves(value, f"{key}.", keys, where)
        elif is_table:
            raise UsageError(f"{where}: {key} = {shown(value)} must be a table of settings: [{key}]")
        elif key not in keys:
            raise UsageError(f"{where}: unknown setting {key!r}; {_nearest(key, keys)}")
        elif isinstance(value, dict):
            raise UsageError(f"{where}: {key!r} is a single setting, not a table")
        else:
            yield key, value


def _nearest(key: str, keys: dict[str, Option]) -> str:
    leaf = key.rpartition(".")[2]
    leaves = {known.rpartition(".")[2]: known for known in keys}
    found = difflib.get_close_matches(key, keys, n=1, cutoff=0.8) or [
        leaves[one] for one in difflib.get_close_matches(leaf, leaves, n=1)
    ]
    return f"did you mean {found[0]!r}?" if found else f"choose from {', '.join(keys)}"


def _load(path: Path, where: str) -> dict[str, Any]:
    if path.is_dir():
        raise UsageError(f"{where}: a folder; give a .toml, .yaml or .json file")
    readers = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": _json}
    if path.suffix not in readers:
        raise UsageError(f"{where}: unknown kind {path.suffix!r}; give a .toml, .yaml or .json file")
    try:
        values = readers[path.suffix](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{where}: no such file; give a .toml, .yaml or .json file") from None
    except ImportError:
        raise ImportError(
            f"{where}: reading YAML needs pyyaml; `pip install 'fastgpt-triton[train]'`, or use TOML"
        ) from None
    except OSError:
        raise
    except Exception as error:  # each parser has its own error type
        raise UsageError(f"{where}: cannot be read as {path.suffix[1:].upper()}: {error}") from None
    if values is None:  # an empty YAML file
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{where}: holds a {type(values).__name__}; it must be a table of settings")
    return values


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _yaml(text: str) -> Any:
    import yaml

    def pairs(loader: Any, node: Any) -> dict[Any, Any]:
        _once([(str(key.value), None) for key, _ in node.value])  # before `<<` brings in others' keys
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    class Loader(yaml.SafeLoader):
        """That refuses a key that stands twice in a table, of which others take the last."""

    Loader.add_constructor("tag:yaml.org,2002:map", pairs)
    return yaml.load(text, Loader)


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice; leave one of them out")
        found[name] = value
    return found
