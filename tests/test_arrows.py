"""The arrows of the house: who may import whom, in every module of fastgpt/ and kernels/, and no circle of files.

Imports count wherever they stand, in functions and under TYPE_CHECKING too: they tie files together all the same.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top floor down: a folder imports from itself and from the floors below it. What shares a floor knows nothing
# of each other.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("tools",),
    ("study",),
    ("train",),
    ("interop", "data"),
    ("model",),
    ("nn",),
    ("base", "kernels"),
    ("_version",),
)
FLOOR = {name: len(FLOORS) - number for number, names in enumerate(FLOORS) for name in names}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, of every module of the package; kernels/ is fastgpt.kernels."""
    found = {}
    for folder, package in ((root / "fastgpt", "fastgpt"), (root / "kernels", "fastgpt.kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that this one imports, by whatever statement: a package stands for its __init__.py."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                found |= {whole} if whole in known else {source} & known.keys()
    return found - {name}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Files that import each other in a loop, each loop once, as the path round it."""
    found, state, path = [], {}, []

    def visit(name: str) -> None:
        state[name] = "open"
        path.append(name)
        for other in sorted(arrows[name]):
            if state.get(other) == "open":
                found.append([*path[path.index(other) :], other])
            elif other not in state:
                visit(other)
        path.pop()
        state[name] = "done"

    for name in sorted(arrows):
        if name not in state:
            visit(name)
    return found


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, file, known) for name, file in known.items()}


def test_no_circles(arrows):
    assert [" -> ".join(circle) for circle in circles(arrows)] == []


def test_arrows_point_down(arrows):
    up = []
    for name, others in arrows.items():
        here = name.split(".")[1] if "." in name else None
        if here is None or here == "_moved":  # the root hands names on; it stands above all
            continue
        for other in others:
            there = other.split(".")[1] if "." in other else None
            if there is None or (there != here and FLOOR[there] >= FLOOR[here]):
                up.append(f"{name} -> {other}")
    assert up == []
