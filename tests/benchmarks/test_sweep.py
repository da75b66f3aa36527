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
    tiles = sweep.candidates(own, work.fields)
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
    other = next(t for t in sweep.candidates(given[0], ("block_m",)) if t != given[0])
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


def test_fold_names_the_winner(fold, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fold, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    environment = {"environment": {"gpu": "NVIDIA H200", "date": "2026-01-01", "commit": "abc"}}
    row = {"workload": "w", "shape": [1], "tile": {"block_m": 64}, "seconds": 2.0, "default": True, "error": None}
    faster = row | {"tile": {"block_m": 128}, "seconds": 1.0, "default": False}
    failed = row | {"tile": {"block_m": 256}, "seconds": None, "default": False, "error": "out of resources"}
    lines = [json.dumps(r) for r in (environment, row, faster, failed)]
    (tmp_path / "sweep.jsonl").write_text("\n".join(lines) + '\n{"workload": "cut')
    assert fold.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "2.00x with {'block_m': (64, 128)}" in said.out
    assert "line 5 is cut off" in said.err
    assert (tmp_path / "results" / "sweep-gpu-nvidia-h200-2026-01-01-abc.jsonl").is_file()


def test_fold_refuses_an_empty_folder(fold, tmp_path, capsys):
    assert fold.main([str(tmp_path)]) == 2
    assert "neither" in capsys.readouterr().err
