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
    ("study",),
    ("tools",),
    ("train",),
    ("parallel",),
    ("interop", "data"),
    ("model",),
    ("nn",),
    ("pages",),
    ("base", "kernels"),
    ("_version", "_moved"),
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


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """The arrows that do not point down, to a floor below."""
    found = []
    for name, others in sorted(arrows.items()):
        here = _folder(name)
        if here is None:  # the root hands names on, and stands above all
            continue
        for other in sorted(others):
            there = _folder(other)
            if there is None or (there != here and FLOOR[there] >= FLOOR[here]):
                found.append(f"{name} -> {other}")
    return found


def _folder(name: str) -> str | None:
    return name.split(".")[1] if "." in name else None


def arrows_of(root: Path) -> dict[str, set[str]]:
    known = modules(root)
    return {name: imports(name, file, known) for name, file in known.items()}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    return arrows_of(ROOT)


def test_no_circles(arrows):
    assert [" -> ".join(circle) for circle in circles(arrows)] == []


def test_arrows_point_down(arrows):
    assert len(arrows) > 150
    assert upward(arrows) == []


@pytest.mark.parametrize(
    ("statement", "up", "circle"),
    [
        ("from ..train import loop", ["fastgpt.model.gpt -> fastgpt.train.loop"], True),
        ("from ..train.loop import Loop", ["fastgpt.model.gpt -> fastgpt.train.loop"], True),
        ("from fastgpt.train.loop import Loop", ["fastgpt.model.gpt -> fastgpt.train.loop"], True),
        ("def f():\n    import fastgpt.train.loop", ["fastgpt.model.gpt -> fastgpt.train.loop"], True),
        ("if TYPE_CHECKING:\n    from ..train.loop import Loop", ["fastgpt.model.gpt -> fastgpt.train.loop"], True),
        ("from .. import __version__", ["fastgpt.model.gpt -> fastgpt"], False),
        ("from . import blocks", [], True),
        ("from ..kernels.op import kernel", [], False),
    ],
)
def test_an_arrow_up_or_round_is_found(statement, up, circle, tmp_path):
    files = {
        "fastgpt/__init__.py": "", "fastgpt/model/__init__.py": "", "fastgpt/model/gpt.py": statement,
        "fastgpt/model/blocks.py": "from .gpt import GPT", "fastgpt/train/__init__.py": "",
        "fastgpt/train/loop.py": "from ..model import gpt", "kernels/__init__.py": "", "kernels/op.py": "import math",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = arrows_of(tmp_path)
    assert upward(found) == up
    assert bool(circles(found)) == circle
