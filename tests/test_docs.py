"""What the pages for those who work on fastgpt name is there: files, folders, make targets."""

import re
from pathlib import Path

import pytest

from tests.test_arrows import FLOOR

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "docs/design.md")
FOLDERS = ("", "kernels/", "kernels/*/", "fastgpt/", "fastgpt/*/", "tests/kernels/", "tests/kernels/*/")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`([\w./<>*-]+\.(?:py|md|sh|toml|jsonl|txt))[:` ]", text)
    assert len(named) > 5
    made = {"ratios.jsonl"}  # what a command that is shown writes
    missing = {
        name
        for name in named
        if name not in made and not any(any(ROOT.glob(folder + pattern(name))) for folder in FOLDERS)
    }
    assert not missing


def pattern(name: str) -> str:
    """`<family>/op.py` is there if some family has one."""
    return re.sub(r"<\w+>", "*", name)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_outside_the_repository_is_named(page):
    assert "../shared" not in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_is_named_exists(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


def test_every_benchmark_that_can_be_run_is_named():
    files = [path for path in ROOT.glob("benchmarks/*.py") if '__name__ == "__main__"' in path.read_text()]
    files += [path.parent for path in ROOT.glob("benchmarks/*/__main__.py")]
    assert len(files) > 10
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in (*PAGES, "Makefile"))
    assert [path.stem for path in files if not re.search(rf"benchmarks\.{path.stem}\b", pages)] == []


def test_the_drawing_has_the_floors_that_the_arrows_keep_to():
    drawing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[3]
    lines = re.findall(r"^ +\d  (.*)$", drawing, re.MULTILINE)
    drawn = [re.findall(r"(\w+)/", line) for line in lines]
    folders = {path.parent.name for path in ROOT.glob("fastgpt/*/__init__.py")} | {"kernels"}
    assert {name for names in drawn for name in names} == folders
    floors = [FLOOR[name] for names in drawn for name in names]
    assert floors == sorted(floors, reverse=True)
