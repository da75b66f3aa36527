"""Restarts by torch elastic: the same command line goes on where its own job was, and takes up no other's run."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from fastgpt.base import files
from fastgpt.train import checkpoint, elastic, run_folder
from fastgpt.train.checkpoint import CheckpointError

from ..training import tiny_trainer


@pytest.fixture
def launched(monkeypatch):
    """launched(restarts, run_id): as torchrun starts a process."""

    def start(restarts: int, run_id: str = "job-1") -> None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)

    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return start


def broken_off(tmp_path, at: int, **options):
    """A run whose process is gone when `at` steps are made, saved every 2."""
    trainer = tiny_trainer(tmp_path, name="a", save_every=2)
    begin = trainer.begin_step

    def step():
        if trainer.step == at:
            raise KeyboardInterrupt
        return begin()

    trainer.begin_step = step
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(**options)


def bits(trainer) -> list[float]:
    return [float(value.double().sum()) for value in trainer.model.state_dict().values()]


def undisturbed(tmp_path) -> list[float]:
    trainer = tiny_trainer(tmp_path / "undisturbed", name="a", save_every=2)
    trainer.fit()
    return bits(trainer)


def assert_goes_on(tmp_path, left: int, **options) -> None:
    """`left` steps, after which the run is the undisturbed one."""
    again = tiny_trainer(tmp_path, name="a", save_every=2)
    assert len(again.fit(**options).losses) == left
    assert bits(again) == undisturbed(tmp_path)


def test_a_restarted_job_goes_on_from_its_newest_checkpoint(tmp_path, launched):
    launched(0)
    broken_off(tmp_path, 5)
    launched(1)
    assert_goes_on(tmp_path, 4)  # of 8


def test_a_restarted_job_that_has_not_saved_starts_afresh(tmp_path, launched):
    launched(0)
    broken_off(tmp_path, 1)
    launched(1)
    assert_goes_on(tmp_path, 8)


@pytest.mark.parametrize(("at", "left"), [(1, 8), (5, 4)])
def test_overwrite_counts_until_the_job_has_saved(tmp_path, launched, at, left):
    tiny_trainer(tmp_path, name="a", save_every=2, lr=1e-3).fit()
    launched(0)
    broken_off(tmp_path, at, overwrite=True)
    launched(1)
    assert_goes_on(tmp_path, left, overwrite=True)


@pytest.mark.parametrize(("at", "left"), [(3, 6), (5, 4)])
def test_resuming_from_one_checkpoint_counts_until_the_job_has_saved(tmp_path, launched, at, left):
    tiny_trainer(tmp_path, name="a", save_every=2, steps=8).fit()
    root = tmp_path / "a" / "checkpoints"
    start = checkpoint.folder_of(root, 2)
    kept = start.exists()
    if not kept:  # `keep` has dropped it
        tiny_trainer(tmp_path, name="a", save_every=2, steps=8, keep=9).fit(overwrite=True)
    launched(0)
    broken_off(tmp_path, at, resume=start)
    launched(1)
    assert_goes_on(tmp_path, left, resume=start)


def test_all_ranks_go_on_where_the_launcher_of_one_has_counted_a_restart(tmp_path, launched):
    launched(0)
    broken_off(tmp_path, 5)
    config = tiny_trainer(tmp_path, name="a", save_every=2).config
    for others, found in ((False, (False, True)), (True, (True, False))):
        world = SimpleNamespace(
            is_first=True, objects=lambda mine, other=others: [mine, other], from_first=lambda own: own
        )
        assert elastic.resume_of(config, False, True, world) == found


@pytest.mark.parametrize(("restarts", "run_id"), [(1, "job-2"), (1, "none"), (0, "job-1")])
def test_the_run_of_another_job_is_not_taken_up(tmp_path, launched, restarts, run_id):
    launched(0)
    broken_off(tmp_path, 5)
    launched(restarts, run_id)
    with pytest.raises(FileExistsError, match="holds a run of 4 steps"):
        tiny_trainer(tmp_path, name="a", save_every=2).fit()


def test_a_run_without_a_launcher_is_not_taken_up(tmp_path, launched):
    broken_off(tmp_path, 5)
    launched(1)
    with pytest.raises(FileExistsError):
        tiny_trainer(tmp_path, name="a", save_every=2).fit()


def test_without_an_id_the_job_is_its_launcher(launched, monkeypatch):
    launched(0, "none")
    first = elastic.job()
    assert first == elastic.job()
    code = (
        "import os; os.environ['TORCHELASTIC_RUN_ID'] = 'none'; from fastgpt.train import elastic; print(elastic.job())"
    )
    children = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    jobs = {child.stdout.strip() for child in children}
    assert len(jobs) == 1  # restarted by the same parent
    assert jobs != {first}
    monkeypatch.setattr(elastic, "_began", lambda pid: "another")
    assert elastic.job() != first  # numbers of processes come again


def test_a_damaged_checkpoint_is_told_and_not_trained_over(tmp_path, launched):
    launched(0)
    broken_off(tmp_path, 5)
    newest = checkpoint.latest(tmp_path / "a" / "checkpoints")
    (newest / "model.safetensors").write_bytes(b"")
    launched(1)
    with pytest.raises(CheckpointError, match=f"{newest.name}.*go on from the one before it"):
        tiny_trainer(tmp_path, name="a", save_every=2).fit()


def test_a_restart_waits_for_the_lock_of_a_process_that_ends(tmp_path, launched):
    config = tiny_trainer(tmp_path, name="a").config
    run_folder.make(config)
    with files.locked(config.folder), pytest.raises(FileExistsError), run_folder.alone(config):
        pass
    launched(1)
    held = files.locked(config.folder)
    held.__enter__()
    threading.Timer(0.5, lambda: held.__exit__(None, None, None)).start()
    with run_folder.alone(config):
        pass
