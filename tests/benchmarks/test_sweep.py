"""The tile sweep, without timing: which tiles it tries, that they reach the launch, and what becomes of the figures."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from benchmarks import sweep
from fastgpt.kernels import layer_norm
from fastgpt.memory import on_paper

SCRIPT = Path(__file__).parents[2] / "scripts" / "fold_results.py"


@pytest.fixture
def fold():
    spec = importlib.util.spec_from_file_location("fold_results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(work: sweep.Workload) -> list:
    """The table's answers while `work` runs on paper."""
    with sweep.answering(work, None) as given, on_paper():
        sweep.make(work, torch.device("meta"))()
    return given


def test_neighbours_come_first():
    work = next(w for w in sweep.workloads() if w.name == "layer_norm.forward_tile")
    own = asked(work)[0]
    tiles = work.candidates(own)
    differences = [sum(a != b for a, b in zip(sweep._as_dict(t).values(), sweep._as_dict(own).values())) for t in tiles]
    assert differences == sorted(differences)
    assert differences[0] == 0
    assert differences[-1] == 2
    assert len({str(t) for t in tiles}) == len(tiles)


def test_a_candidate_reaches_the_launch_and_computes_the_same(device, seed):
    x = torch.randn(7, 48, device=device)
    expected = layer_norm(x, (48,))
    work = next(w for w in sweep.workloads() if w.name == "layer_norm.forward_tile")
    with sweep.answering(work, None) as given:
        layer_norm(x, (48,))
    other = next(t for t in work.candidates(given[0]) if t.block_m != given[0].block_m)
    with sweep.answering(work, other) as given:
        result = layer_norm(x, (48,))
    assert given == [other]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("work", {w.name: w for w in sweep.workloads()}.values(), ids=lambda w: w.name)
def test_every_workload_asks_its_table(work):
    """A renamed table function, or one that is asked no more, would silently sweep nothing."""
    given = asked(work)
    assert given
    assert set(work.fields) <= set(sweep._as_dict(given[0]))


def test_no_gpu_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sweep.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


ENVIRONMENT = {"environment": {"gpu": "NVIDIA H200", "date": "2026-01-01", "commit": "abc"}}


def figure(seconds: float | None, tile: dict, *, default: bool = False, workload: str = "w", shape=(1,)) -> dict:
    error = None if seconds else "out of resources"
    return {
        "workload": workload, "shape": shape, "arch": "sm_90", "tile": tile, "seconds": seconds, "default": default,
        "error": error,
    }  # fmt: skip


def test_fold_names_the_winner(fold, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fold, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    rows = [figure(2.0, {"block_m": 64}, default=True), figure(1.0, {"block_m": 128}), figure(None, {"block_m": 256})]
    lines = [json.dumps(r) for r in (ENVIRONMENT, *rows)]
    (tmp_path / "sweep.jsonl").write_text("\n".join(lines) + '\n{"workload": "cut')
    assert fold.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "2.00x with {'block_m': (64, 128)}" in said.out
    assert "line 5 is cut off" in said.err
    assert (tmp_path / "results" / "sweep-gpu-nvidia-h200-2026-01-01-abc.jsonl").is_file()


@pytest.mark.parametrize("name", ["attention.forward", "attention.dkdv", "attention.dq", "ffn.product_tile.up"])
def test_apply_changes_the_entry_that_answered_and_no_other(fold, tmp_path, monkeypatch, name):
    work = next(w for w in sweep.workloads() if w.name == name)
    own = sweep._as_dict(asked(work)[0])
    best = own | {"num_stages": own["num_stages"] + 1}
    family = tmp_path / "kernels" / work.family
    family.mkdir(parents=True)
    old = (SCRIPT.parents[1] / "kernels" / work.family / "tiles.py").read_text()
    (family / "tiles.py").write_text(old)
    monkeypatch.setattr(fold, "ROOT", tmp_path)
    rows = [figure(2.0, own, default=True, workload=name, shape=work.shape)]
    rows += [figure(1.0, best, workload=name, shape=work.shape)]
    fold.apply(fold.best_tiles(rows))
    new = (family / "tiles.py").read_text()
    before, after = ({}, {})
    for source, names in ((old, before), (new, after)):
        module = type(work.tiles)(work.tiles.__name__)
        module.__package__ = work.tiles.__package__
        exec(compile(source, "tiles.py", "exec"), module.__dict__)
        names.update(module.__dict__)
    # As the launch asks: through a module that holds the new table.
    monkeypatch.setattr(work.tiles, work.function, after[work.function])
    assert sweep._as_dict(asked(work)[0]) == best
    changed = [(a, b) for a, b in zip(old.splitlines(), new.splitlines()) if a != b]
    assert len(changed) == 1
    assert len(old.splitlines()) == len(new.splitlines())


def test_fold_refuses_an_empty_folder(fold, tmp_path, capsys):
    assert fold.main([str(tmp_path)]) == 2
    assert "holds none of" in capsys.readouterr().err
