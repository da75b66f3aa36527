"""Starting a run over: until the new one has a checkpoint, the old one is there, whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from fastgpt import GPT, cli
from fastgpt.commands import _inputs
from fastgpt.train import checkpoint, overwritten, run_folder
from fastgpt.train.metrics import read_metrics

from ..training import tiny_trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints of steps 4 and 8, one set aside, scalars, and a file of somebody's in each folder."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_trainer(folder, name="a", save_every=4, val=False).fit()
    run = folder / "a"
    shutil.copytree(run / "checkpoints" / "step-00000004", run / "checkpoints" / "set-aside-step-00000009")
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events.out.tfevents.1").write_text("scalars")
    for place in (run, run / "checkpoints", run / "tensorboard"):
        (place / "notes.txt").write_text("mine")
    return run


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a")
    return tmp_path / "a"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path under `folder` with its bytes, but what the next writer removes."""
    found = {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
    return {name: content for name, content in found.items() if ".fastgpt-" not in name and ".writing-" not in name}


NEW = {"name": "a", "steps": 3, "save_every": 2, "lr": 0.02, "val": False}


def new_trainer(run: Path, **options):
    return tiny_trainer(run.parent, **(NEW | options))


def test_the_new_run_takes_the_place_of_the_old_one_and_of_nothing_else(run):
    new_trainer(run).fit(overwrite=True)
    names = {name for name in tree(run) if "/" not in name or name.count("/") == 1}
    assert names == {
        "settings.json", "metrics.jsonl", "report.html", "notes.txt", "checkpoints", "tensorboard",
        "checkpoints/step-00000002", "checkpoints/step-00000003", "checkpoints/notes.txt", "tensorboard/notes.txt",
    }  # fmt: skip
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_model_that_is_trained_already_does_not_start_over(run, steps):
    """What it would leave: a run of no steps, or one that begins in the middle, in place of the old one."""
    trainer = new_trainer(run, name="b", steps=3)
    for _ in range(steps):
        trainer.train_step()
    trainer.config = new_trainer(run).config
    before = tree(run)
    with pytest.raises(ValueError, match=rf"{steps} updates behind it.* make a new model and a new Trainer"):
        trainer.fit(overwrite=True)
    assert tree(run) == before


def test_a_trainer_that_is_done_trains_no_second_run(tmp_path):
    trainer = tiny_trainer(tmp_path, steps=1)
    trainer.fit()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ValueError, match="1 updates behind it"):
        trainer.fit()
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_set_aside_is_named(run, monkeypatch):
    before = tree(run)
    rename = Path.rename

    def on_another_disk(path, target):
        if ".overwriting" in str(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path), None, str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", on_another_disk)
    with pytest.raises(OSError, match=rf"run in {run} aside \(Invalid cross-device link\), so .*step-00000008 is kept"):
        new_trainer(run).fit(overwrite=True)
    monkeypatch.undo()
    run_folder.settle(run)
    assert tree(run) == before


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), FloatingPointError("nan")])
def test_a_new_run_that_comes_to_nothing_leaves_the_old_one(run, monkeypatch, error):
    before = tree(run)
    trainer = new_trainer(run)

    def failing():
        assert not checkpoint.all_checkpoints(run / "checkpoints")
        assert (run / "metrics.jsonl").read_text() == ""
        raise error

    monkeypatch.setattr(trainer, "_gradient", failing)
    with pytest.raises(type(error)) as raised:
        trainer.fit(overwrite=True)
    if isinstance(error, KeyboardInterrupt):
        assert f"{run / 'checkpoints' / 'step-00000008'} is kept" in str(raised.value)
    assert tree(run) == before


def test_a_first_checkpoint_that_cannot_be_saved_leaves_the_old_run(run, monkeypatch):
    before = tree(run)

    def full(path, tensors):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    message = r"step-00000002: No space left .*GB free there\. .*step-00000008 is kept\. Free disk space"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        new_trainer(run).fit(overwrite=True)
    assert tree(run) == before


def test_an_error_after_the_first_checkpoint_leaves_the_new_run(run, monkeypatch):
    trainer = new_trainer(run)
    gradient = trainer._gradient

    def failing():
        if trainer.step == 2:
            raise RuntimeError("out of memory")
        return gradient()

    monkeypatch.setattr(trainer, "_gradient", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(overwrite=True)
    assert [path.name for path in checkpoint.all_checkpoints(run / "checkpoints")] == ["step-00000002"]
    assert not list(run.rglob(".*"))


def test_scalars_of_a_new_run_that_comes_to_nothing_are_gone(run):
    before = tree(run)
    overwritten.set_aside(run)
    assert not checkpoint.all_checkpoints(run / "checkpoints")
    (run / "tensorboard" / "events.out.tfevents.2").write_text("of the new run")
    overwritten.settle(run)
    assert tree(run) == before


def test_a_file_that_cannot_be_set_aside_leaves_all_where_they_were(run, monkeypatch):
    before, moved = tree(run), []
    rename = os.rename

    def refusing(source, target):
        moved.append(source)
        if len(moved) == 3:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(PermissionError):
        overwritten.set_aside(run)
    assert tree(run) == before


# ---- killed at any moment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments(finished, tmp_path_factory):
    """The run's folder as it is after each call that changes what is in it, while it is started over; in order."""
    folder = tmp_path_factory.mktemp("moments")
    shutil.copytree(finished, folder / "a")
    seen: list[Path] = []
    copying: list[bool] = []
    patch = pytest.MonkeyPatch()

    def watched(name):
        original = getattr(os, name)

        def call(*arguments, **options):
            found = original(*arguments, **options)
            if not copying:  # which makes folders itself
                copying.append(True)
                seen.append(shutil.copytree(folder / "a", folder / f"moment-{len(seen)}" / "a"))
                copying.clear()
            return found

        patch.setattr(os, name, call)

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        watched(name)
    try:
        new_trainer(folder / "a", steps=1).fit(overwrite=True)
    finally:
        patch.undo()
    return seen


def weights(path: Path) -> torch.Tensor:
    return GPT.from_pretrained(path).token_emb.weight


def test_there_is_a_whole_run_at_any_moment(finished, moments, tmp_path):
    old, states = weights(finished / "checkpoints" / "step-00000008"), []
    assert len(moments) > 20
    for moment in moments:
        found = _inputs.model_folder(str(moment))
        assert found == overwritten.newest(moment / "checkpoints")
        is_old = torch.equal(weights(found), old)
        checkpoint.verify(found)
        states.append(is_old)
        assert ("step-00000008" in found.name) == is_old
        run = shutil.copytree(moment, tmp_path / moment.parent.name / "a")
        run_folder.settle(run)
        if is_old:
            assert tree(run) == tree(finished)
            with pytest.raises(FileExistsError, match="holds a run of 8 steps"):
                new_trainer(run).fit()
        else:
            assert [path.name for path in checkpoint.all_checkpoints(run / "checkpoints")] == ["step-00000001"]
            assert not list(run.glob(".over*"))
    assert states == sorted(states, reverse=True)  # once there is a new run, it stays
    assert set(states) == {True, False}


@pytest.mark.parametrize("part", [0.2, 0.5])
def test_the_old_run_is_gone_on_with_after_a_kill(moments, tmp_path, part):
    olds = [moment for moment in moments if overwritten.newest(moment / "checkpoints").name == "step-00000008"]
    run = shutil.copytree(olds[int(part * len(olds))], tmp_path / "a")
    trainer = tiny_trainer(tmp_path, name="a", save_every=4, steps=9, val=False)
    assert trainer.fit(resume=True, allow_changes=True).step == 9
    assert (run / "checkpoints" / "set-aside-step-00000009").is_dir()
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(1, 10))


def test_a_killed_process_leaves_the_old_run(run):
    before = tree(run)
    child = os.fork()
    if child == 0:
        trainer = new_trainer(run)
        trainer._gradient = lambda: os.kill(os.getpid(), signal.SIGKILL)
        trainer.fit(overwrite=True)
    os.waitpid(child, 0)
    assert tree(run) != before
    assert _inputs.model_folder(str(run)) == run / ".overwritten" / "checkpoints" / "step-00000008"
    run_folder.settle(run)
    assert tree(run) == before


def test_nothing_is_put_back_under_a_process_that_trains(run):
    config = new_trainer(run).config
    with run_folder.alone(config):
        overwritten.set_aside(run)
        aside = tree(run)
        run_folder.settle(run)
        assert tree(run) == aside
        assert _inputs.model_folder(str(run)) == run / ".overwritten" / "checkpoints" / "step-00000008"
    assert not list(run.glob(".over*"))


@pytest.mark.needs("tyro")
def test_the_command_resumes_the_old_run_with_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("To be, or not to be, that is the question. " * 40)
    tiny = "--data a.txt --tokenizer shakespeare --val-fraction 0.2 --n-layers 1 --n-heads 2 --d-model 16 --max-len 16"
    argv = ["train", *tiny.split(), "--batch-size", "2", "--device", "cpu", "--no-tensorboard", "--name", "a"]
    assert cli.main([*argv, "--steps", "2", "--seed", "5"]) == 0
    before = tree(Path("runs/a"))
    overwritten.set_aside(Path("runs/a"))
    run_folder.write_settings(Path("runs/a"), {"train": {"seed": 6}}, resume=False)  # as the new run does
    assert cli.main(["train", "--resume", "--name", "a"]) == 0
    assert "already saved" in capsys.readouterr().out
    assert set(tree(Path("runs/a"))) == set(before)
    assert Path("runs/a/settings.json").read_bytes() == before["settings.json"]


# ---- what cannot be moved ------------------------------------------------------------------------------------------


def test_files_that_cannot_be_moved_leave_the_old_run(run, monkeypatch):
    before = tree(run)
    rename, calls = os.rename, []

    def failing(source, target, **options):
        calls.append(source)
        if len(calls) == 3:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source))
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(PermissionError):
        new_trainer(run).fit(overwrite=True)
    assert tree(run) == before


def test_an_old_run_that_cannot_be_deleted_costs_a_warning(run, monkeypatch, caplog):
    rmtree = shutil.rmtree

    def refused(path, *args, **options):
        if (Path(path) / "checkpoints").is_dir():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        rmtree(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", refused)
    assert new_trainer(run).fit(overwrite=True).step == 3
    assert caplog.text.count("could not clear up after a run that was started over") == 1
