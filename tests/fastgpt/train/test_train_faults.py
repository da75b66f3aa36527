"""`fastgpt train` where something goes wrong or a signal comes: what is kept, what is said, how to go on."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from fastgpt import cli
from fastgpt.train import trainer
from fastgpt.train.metrics import read_metrics

from ..train_command import TINY, checkpoints, error, train

pytestmark = pytest.mark.needs("tyro", "rich", "tiktoken")


def test_a_validation_that_is_nan_is_no_success_and_costs_no_checkpoint(here):
    first = train(here, *TINY, "--name", "a", "--steps", "1", "--keep", "1")
    assert first.code == 0
    diverge = ["--steps", "2", "--lr", "1e30", "--keep", "1", "--allow-changes"]
    said = error(train(here, "--resume", "--name", "a", *diverge), code=1)
    assert said.startswith("the validation loss is nan at step 2")
    assert "=True" not in said
    assert "runs/a/checkpoints/step-00000002 is kept, and before it step-00000001" in said
    assert checkpoints(here) == ["step-00000001", "step-00000002"]
    json.loads((here / "runs" / "a" / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)


def test_a_loss_that_is_nan_says_what_is_kept(here):
    said = error(train(here, *TINY, "--name", "a", "--lr", "1e30", "--save-every", "1", "--steps", "9"), code=1)
    assert "at step 4, the last of 3 in a row that were skipped; the first that is not finite is " in said
    assert "; lower lr (1e+30)" in said
    assert "runs/a/checkpoints/step-00000004 is kept, and before it " in said
    assert said.endswith("step-00000001, step-00000002, step-00000003")  # none is dropped while steps are skipped


@pytest.fixture
def inside(here, monkeypatch):
    """Run the command in this process, in that folder."""
    monkeypatch.chdir(here)
    monkeypatch.delenv("FASTGPT_DEBUG", raising=False)
    return here


def stop_in(monkeypatch, owner, name: str, *numbers: int) -> None:
    """Send this process these signals at the start of owner.name, once."""
    original, sent = getattr(owner, name), []

    def stopping(*args, **options):
        if not sent:
            sent.append(True)
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, stopping)


PHASES = {
    "first step": (trainer.Trainer, "_gradient", "step-00000001", "step-00000001"),
    "update": (torch.optim.AdamW, "step", "step-00000001", "step-00000001"),
    "validation": (trainer, "evaluate", "step-00000001", "step-00000002"),
    "saving": (trainer.checkpoint, "save", "step-00000002", "step-00000001"),
    "saving, half done": (trainer.checkpoint, "write_safetensors", "step-00000002", "step-00000001"),
    "pruning": (trainer.checkpoint, "prune", "step-00000002", "step-00000002"),
    "the folder": (trainer.run_folder, "make", "step-00000000", "step-00000001"),
}  # what is kept after one signal in a new run that saves step 2, after two in one that goes on from step 1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_at_any_time_saves_and_says_how_to_go_on(inside, monkeypatch, capsys, phase, number, code):
    owner, name, kept, _ = PHASES[phase]
    stop_in(monkeypatch, owner, name, number)
    assert cli.main(["train", *TINY, "--eval-every", "1", "--name", "a b"]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"stopped by {number.name}; runs/a b/checkpoints/{kept} is kept; go on with: "
        "fastgpt train --resume --name 'a b'"
    )
    assert cli.main(["train", "--resume", "--name", "a b"]) == 0
    assert [line["step"] for line in read_metrics("runs/a b/metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("phase", ["first step", "saving, half done", "pruning"])
@pytest.mark.parametrize(("numbers", "code"), [((15, 15, 15), 143), ((1, 1), 129), ((15, 1), 143), ((2, 15), 130)])
def test_what_is_told_again_does_not_end_a_save(inside, monkeypatch, capsys, phase, numbers, code):
    """By schedulers, which tell all processes of a job, and again after a while. A second Ctrl-C alone does."""
    owner, name, kept, _ = PHASES[phase]
    stop_in(monkeypatch, owner, name, *numbers)
    assert cli.main(["train", *TINY, "--name", "a"]) == code
    stopped_by = signal.Signals(numbers[0]).name
    assert f"stopped by {stopped_by}; runs/a/checkpoints/{kept} is kept" in capsys.readouterr().out
    assert not list((inside / "runs").rglob(".*"))


@pytest.mark.parametrize("phase", PHASES)
def test_a_second_ctrl_c_ends_at_once_and_says_what_is_kept(inside, monkeypatch, capsys, phase):
    owner, name, _, kept = PHASES[phase]
    assert cli.main(["train", *TINY, "--name", "a", "--runs-dir", "r", "--steps", "1"]) == 0
    stop_in(monkeypatch, owner, name, signal.SIGINT, signal.SIGINT)
    again = ["train", "--resume", "--name", "a", "--runs-dir", "r", "--steps", "5", "--eval-every", "1"]
    assert cli.main([*again, "--allow-changes"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"fastgpt train: interrupted; r/a/checkpoints/{kept} is kept; go on with: ")
    assert last.endswith("fastgpt train --resume --name a --runs-dir r")
    assert not list((inside / "r").rglob(".*"))
    assert cli.main([*again, "--allow-changes"]) == 0


def test_the_hint_where_threads_outnumber_cores(inside, monkeypatch, capsys):
    monkeypatch.setattr("fastgpt.train.devices.torch.get_num_threads", lambda: 4096)
    assert cli.main(["train", *TINY, "--name", "a"]) == 0
    hints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1
    assert "with 4096 threads" in hints[0]
    assert "--threads " in hints[0]
    assert "OMP_NUM_THREADS=" in hints[0]
    assert cli.main(["train", *TINY, "--name", "b", "--preset", "gpt5"]) == 2
    assert cli.main(["train", "--resume", "--name", "a", "--lr", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2  # a mistake is one line


def test_ctrl_c_before_the_first_step(inside, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastgpt.commands._inputs.open_data", interrupted)
    assert cli.main(["train", *TINY]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "fastgpt train: interrupted; nothing is saved; start again with the same command"
    )
    assert not (inside / "runs").exists()


def test_ctrl_c_in_the_last_validation(inside, monkeypatch, capsys):
    stop_in(monkeypatch, trainer, "evaluate", signal.SIGINT)
    assert cli.main(["train", *TINY, "--name", "a"]) == 130
    out = capsys.readouterr().out
    assert out.endswith("stopped by SIGINT: all steps are done and saved, the last validation is not\n")
    assert checkpoints(inside) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("at", ["1", "2"])
def test_a_validation_that_fails_loses_no_step(inside, monkeypatch, capsys, caplog, at):
    def failing(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer, "evaluate", failing)
    assert cli.main(["train", *TINY, "--eval-every", at, "--name", "a"]) == 2
    assert "out of memory" in capsys.readouterr().err
    assert f"step-0000000{at} is kept" in caplog.text
    assert checkpoints(inside) == [f"step-0000000{at}"]
    assert len(read_metrics("runs/a/metrics.jsonl")) == int(at)
    monkeypatch.undo()
    monkeypatch.chdir(inside)
    assert cli.main(["train", "--resume", "--name", "a"]) == 0


def test_a_full_disk_says_what_is_kept(inside, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.checkpoint, "write_safetensors", full)
    assert cli.main(["train", *TINY, "--name", "a"]) == 2
    assert "No space left on device" in (said := capsys.readouterr().err)
    assert "nothing is saved" in said
    assert checkpoints(inside) == []
    monkeypatch.undo()
    monkeypatch.chdir(inside)
    assert cli.main(["train", *TINY, "--name", "a"]) == 0
    monkeypatch.setattr(trainer.checkpoint, "write_safetensors", full)
    assert cli.main(["train", "--resume", "--name", "a", "--steps", "5", "--allow-changes"]) == 2
    assert "runs/a/checkpoints/step-00000003 is kept. Free disk space" in capsys.readouterr().err
    assert checkpoints(inside) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_files_have_the_permissions_of_the_umask(inside, mask):
    before = os.umask(mask)
    try:
        assert cli.main(["train", *TINY, "--name", "a"]) == 0
    finally:
        os.umask(before)
    for path in [inside / "runs", *(inside / "runs").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path
