"""Find a function, class or variable of kernels/ and fastgpt/ by its name, in whatever file it is.

"attention.visible" is the function `visible` somewhere below a folder (or in a file) `attention`, "Trainer.fit" the
method of the only class `Trainer` that has one, "layer_norm.launch.forward" that of `layer_norm`'s functions `forward`
that is in `launch.py`. So a definition may move to another file, and no fault planted in it need know. A name that
nothing has but a file, "presets", is all of that file.
"""

from __future__ import annotations

import ast
import builtins
import functools
import symtable
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("kernels", "fastgpt")


@functools.cache
def find(where: str, root: Path) -> tuple[str, str]:
    """(path, name in it): the one file below `root` that defines `where`. LookupError if none does, or two do."""
    found = {path: name for path, names in _index(root).items() for name in names if _fits(where, path, name)}
    found = found or {
        path: "" for path in _index(root) if _leads(where, path) and where.split(".")[-1] == Path(path).stem
    }
    if len(found) != 1:
        raise LookupError(f"{where!r} is in {' and '.join(sorted(found))}" if found else f"there is no {where!r}")
    ((path, name),) = found.items()
    return path, name


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(qualified name, node) of every function and class, and of the variables of modules and classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(tree, (ast.Module, ast.ClassDef)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((prefix + target.id, node) for target in targets if isinstance(target, ast.Name))
        elif not isinstance(node, ast.expr):
            yield from definitions(node, prefix)


def unknown_names(text: str) -> set[str]:
    """The names that a file reads, and that neither it nor Python defines."""
    module = symtable.symtable(text, "", "exec")
    known = {*dir(builtins), "__file__", "__path__", "__class__"}
    known |= {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    tables = [module]
    for table in tables:
        tables += table.get_children()
    read = {s.get_name() for table in tables for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    declared = {s.get_name() for table in tables for s in table.get_symbols() if s.is_declared_global()}
    return read - known - declared


def _fits(where: str, path: str, name: str) -> bool:
    return where == name or (where.endswith(f".{name}") and _leads(where[: -len(name) - 1], path))


def _leads(parts: str, path: str) -> bool:
    """Whether a path goes through these folders, and to this file, in this order; others may lie between."""
    rest = iter(path.removesuffix(".py").split("/"))
    return all(part in rest for part in parts.split("."))


@functools.cache
def _index(root: Path) -> dict[str, list[str]]:
    """The names that each file defines."""
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return {
        file.relative_to(root).as_posix(): [name for name, _ in definitions(ast.parse(file.read_text()))]
        for file in files
    }
