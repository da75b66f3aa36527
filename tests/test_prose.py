"""What docstrings, comments and pages name is there: a function that is renamed or moved takes its mentions along."""

import ast
import functools
import io
import keyword
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "fastgpt", "benchmarks", "scripts", "tests")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = [ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("kernels/*/*.md"))]
THEIRS = {"nohup", "tokenizers", "custom_op", "register_autograd"}  # names of other programs and of torch
NO_MODULES = {"nn", "train"}  # torch.nn, and the group of settings, though files are called so
NO_NAMES = {"py", "md", "txt", "json", "jsonl", "html", "svg", "safetensors"}  # after a dot: `launch.py`


@functools.cache
def read(path: Path) -> tuple[str, frozenset[str]]:
    """(prose: docstrings and comments; every name in the code, in strings too: operators and settings are there)."""
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    docstrings = [node.value for node in nodes if isinstance(node, ast.Expr) and is_string(node.value)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    prose = [*(d.value for d in docstrings), *(t.string for t in tokens if t.type == tokenize.COMMENT)]
    names = [
        getattr(node, field, None) for node in nodes for field in ("id", "attr", "arg", "name", "asname", "module")
    ]
    names += [node.value for node in nodes if is_string(node) and node not in docstrings]
    return "\n".join(prose), frozenset(re.findall(r"\w+", " ".join(name for name in names if name)))


def is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@functools.cache
def everywhere() -> frozenset[str]:
    files = {part for path in FILES for part in (*path.relative_to(ROOT).parts, path.stem)}
    return frozenset().union(files, THEIRS, keyword.kwlist, *(read(path)[1] for path in FILES))


def near(path: Path, name: str) -> frozenset[str] | None:
    """The names in the file that `name.something` means in the prose of the one at `path`; None: it means none."""
    for folder in (path.parent, path.parents[1]):
        if (folder / f"{name}.py").exists():
            return read(folder / f"{name}.py")[1]
    return None


def missing(path: Path, text: str) -> list[str]:
    """What `text`, in the file at `path`, names in backticks, as module.function or as file.py: function, in vain."""
    found = []
    for name in re.findall(r"`+([A-Za-z_][\w.]*)(?:\(\))?`+", text):
        parts = set(name.strip(".").split("."))
        if not name.endswith("_") and parts.isdisjoint(NO_NAMES) and not parts <= everywhere():
            found.append(name)
    for module, name in re.findall(r"(?<![\w./])([a-z_]\w*)\.([A-Za-z_]\w*)", text):
        there = None if module in NO_MODULES else near(path, module)
        if there is not None and name not in there | NO_NAMES:
            found.append(f"{module}.{name}")
    for place, name in re.findall(r"`([\w/]+\.py): (\w+)", text):
        places = [other for other in FILES if other.match(place)]
        if not any(name in read(other)[1] for other in places):
            found.append(f"{place}: {name}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_what_prose_names_is_there(package):
    named = {path: missing(path, read(path)[0]) for path in FILES if path.is_relative_to(ROOT / package)}
    assert {str(path.relative_to(ROOT)): names for path, names in named.items() if names} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_pages_name_is_there(page):
    assert missing(page, page.read_text(encoding="utf-8")) == []


def test_a_name_that_is_gone_is_found():
    file = ROOT / "kernels" / "ffn" / "structs.py"
    assert missing(file, "`device.columns_of`, which attention has") == ["device.columns_of"]
    assert missing(file, "launch.upward calls it, see launch.py") == ["launch.upward"]
    assert missing(file, "as `no_such_function_at_" + "all` and `device.band_of` do") == [
        "no_such_function_at_" + "all"
    ]
    assert missing(file, "`device/dropout.py: keep_all`, `structs.py: Strides`") == ["device/dropout.py: keep_all"]
