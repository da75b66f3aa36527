"""The README is true: its Python runs, its commands exist, and its tables are those of the committed results."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import readme

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_python_block_runs_by_itself(device, monkeypatch, tmp_path, capsys):
    """As a reader would paste it: names of no other block, in a folder with nothing in it (of blocks above, files)."""
    assert len(blocks("python")) >= 5
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        if "transformers" in block:
            pytest.importorskip("transformers")
        torch.manual_seed(0)
        names: dict = {}
        exec(compile(block, "README.md", "exec"), names)
        assert torch.isfinite(names.get("loss", torch.zeros(())))
    assert names["out"].loss < 1  # the one-head model has learned to count to five


def test_every_command_is_run_by_ci():
    """`.ci/run` calls the README's make targets; its other commands are read out of the README by `.ci/readme`."""
    ci = (ROOT / ".ci" / "run").read_text()
    commands = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    targets = [c for c in commands if c.startswith("make ")]
    assert {"make demo", "make test"} <= set(targets)
    assert all(f"step {c}" in ci for c in targets)
    assert "\n.ci/readme " in ci
    assert "step .ci/check_wheel" in ci  # runs `pip install` of wheel and sdist


def test_tables_are_current():
    assert readme.render(TEXT) == TEXT, "README.md is out of date: run `make readme`"
    for name, draw in readme.PICTURES.items():
        assert (ROOT / name).read_text(encoding="utf-8") == draw(), f"{name} is out of date: run `make readme`"


def test_unknown_table_is_refused():
    with pytest.raises(KeyError):
        readme.render("<!-- table: nobody -->\n<!-- end -->")


def test_local_links_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert all((ROOT / link).exists() for link in links), links
