"""A run that ends between two of a step's checkpoint, validation and report, and goes on, leaves what one that did not
end leaves: every step once in metrics.jsonl, every validation that was due, the bits of the weights."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from fastgpt.train import checkpoint, metrics, trainer, training_loop
from fastgpt.train.metrics import read_metrics
from fastgpt.train.trainer import Validation

from ..training import tiny_model, tiny_trainer

RUN = {"steps": 6, "save_every": 2, "eval_every": 3, "keep": 2}


def what_is_left(folder) -> tuple[list[dict], list[str], dict]:
    """Lines without timings, names of checkpoints, the last one's weights."""
    timings = ("tokens_per_second", "mfu", "memory_bytes")
    lines = [{k: v for k, v in line.items() if k not in timings} for line in read_metrics(folder / "metrics.jsonl")]
    last = checkpoint.latest(folder / "checkpoints")
    tensors = {name: value.numpy().tobytes() for name, value in load_file(last / "training.safetensors").items()}
    tensors |= {name: value.numpy().tobytes() for name, value in load_file(last / "model.safetensors").items()}
    assert all(json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines())
    return lines, sorted(path.name for path in (folder / "checkpoints").iterdir()), tensors


def resumed(folder, **options):
    torch.manual_seed(999)
    return tiny_trainer(folder.parent, model=tiny_model(seed=7), name=folder.name, **(RUN | options)).fit(resume=True)


def test_killed_at_any_moment(tmp_path, monkeypatch):
    """What kill -9 leaves is what lies on the disk at that moment: copied before and after each thing that is done."""
    copies = {}  # by what lies there: of equal ones, one will do

    def watched(owner, name: str) -> None:
        original = getattr(owner, name)

        def watching(*args, **options):
            copy(f"before {name}")
            try:
                return original(*args, **options)
            finally:
                copy(f"after {name}")

        monkeypatch.setattr(owner, name, watching)

    def copy(when: str) -> None:
        state = tuple(sorted((path, path.stat().st_size) for path in run.rglob("*")))
        if checkpoint.latest(run / "checkpoints") is not None and state not in copies:
            copies[state] = (when, shutil.copytree(run, tmp_path / f"killed-{len(copies)}"))

    run = tmp_path / "run"
    watched(checkpoint, "save")
    watched(checkpoint, "prune")
    watched(trainer, "evaluate")
    watched(metrics.MetricsLog, "write")
    straight = tiny_trainer(tmp_path, name="run", **RUN).fit()
    monkeypatch.undo()
    expected = what_is_left(run)
    assert [line["step"] for line in expected[0] if "val_loss" in line] == [3, 6]
    assert len(copies) >= 9
    for when, folder in copies.values():
        at = (when, folder.name)
        result = resumed(folder)
        found = what_is_left(folder)
        assert found[0] == expected[0], at
        assert found[1:] == expected[1:], at
        assert not result.losses or result.validation == straight.validation, at


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("step", [3, 6])
def test_a_signal_in_a_validation(tmp_path, monkeypatch, number, step):
    straight = tiny_trainer(tmp_path, name="straight", **RUN).fit()
    original = trainer.evaluate

    def stopping(*args, **options):
        if ours.step == step:
            os.kill(os.getpid(), number)
        return original(*args, **options)

    monkeypatch.setattr(trainer, "evaluate", stopping)
    ours = tiny_trainer(tmp_path, name="a", **RUN)
    result = ours.fit()
    assert (result.step, result.stopped_by) == (step, number.name)
    assert result.validation is None  # not that of step 3 in its place
    assert "val_loss" not in read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]
    monkeypatch.undo()
    again = resumed(tmp_path / "a")
    assert again.validation == straight.validation
    lines, names, weights = what_is_left(tmp_path / "straight")
    assert what_is_left(tmp_path / "a")[::2] == (lines, weights)
    assert len(what_is_left(tmp_path / "a")[1]) == len(names)


@pytest.mark.parametrize("when", ["_gradient", "begin_step"])
def test_a_signal_in_the_step_before_a_validation(tmp_path, monkeypatch, when):
    straight = tiny_trainer(tmp_path, name="straight", **RUN).fit()
    ours = tiny_trainer(tmp_path, name="a", **RUN)
    original = getattr(ours, when)

    def stopping():
        if ours.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original()

    monkeypatch.setattr(ours, when, stopping)
    assert ours.fit().validation is None
    result = resumed(tmp_path / "a")
    assert (result.step, result.losses, result.validation) == (6, [], straight.validation)
    assert what_is_left(tmp_path / "a") == what_is_left(tmp_path / "straight")


def test_a_signal_in_a_validation_that_is_made_up(tmp_path, monkeypatch):
    tiny_trainer(tmp_path, name="straight", **RUN).fit()
    original = trainer.evaluate

    def stopping(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(trainer, "evaluate", stopping)
    results = [tiny_trainer(tmp_path, name="a", **RUN).fit()]
    results += [resumed(tmp_path / "a") for _ in range(3)]
    assert [result.step for result in results] == [3, 3, 3, 3]
    monkeypatch.undo()
    assert resumed(tmp_path / "a").step == 6
    assert what_is_left(tmp_path / "a")[::2] == what_is_left(tmp_path / "straight")[::2]


def test_a_validation_that_is_no_number_is_told_again(tmp_path, monkeypatch):
    """Resuming does not make a success of it."""
    bad = Validation(math.nan, math.nan, None, 1)
    monkeypatch.setattr(trainer, "evaluate", lambda *args, **options: bad)
    with pytest.raises(FloatingPointError, match="validation loss is nan at step 6"):
        tiny_trainer(tmp_path, name="a", **RUN | {"eval_every": 0}).fit()
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="validation loss is nan at step 6"):
            resumed(tmp_path / "a", eval_every=0)


def test_without_validation_data_none_is_due(tmp_path):
    tiny_trainer(tmp_path, name="a", val=False, **RUN).fit()
    path = checkpoint.latest(tmp_path / "a" / "checkpoints")
    assert json.loads((path / "training.json").read_text())["owed"]["validation"] is False
    assert resumed(tmp_path / "a").validation is None


def test_a_checkpoint_of_an_earlier_version_owes_nothing(tmp_path):
    assert not training_loop.Owed.of({"step": 3}).left(tmp_path)
