"""What the pages for those who work on fastgpt say is there is there: files, folders, make targets, families."""

import re
from pathlib import Path

import pytest

from benchmarks.gate.run import FAMILIES
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


def test_every_family_has_the_same_files_and_its_place_everywhere():
    families = {path.parent.name for path in ROOT.glob("kernels/*/op.py")}
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert families == set(re.findall(r"`(\w+)`", page.partition("Families:")[2].partition(".")[0]))
    assert families == {*FAMILIES}
    for family in families:
        files = {path.name for path in (ROOT / "kernels" / family).iterdir()}
        assert {"op.py", "launch.py", "tiles.py", "structs.py", "forward.py", "gate.txt"} <= files
        assert (ROOT / "benchmarks" / "gate" / f"{family}.py").exists()
        assert list(ROOT.glob(f"tests/kernels/{family}/test_*.py"))
        assert f'"fastgpt.kernels.{family}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_folder_of_fastgpt_has_its_tests():
    folders = {path.parent.name for path in ROOT.glob("fastgpt/*/__init__.py")}
    assert [folder for folder in folders if not list(ROOT.glob(f"tests/fastgpt/{folder}/test_*.py"))] == []


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
