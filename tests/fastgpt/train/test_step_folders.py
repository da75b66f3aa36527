"""Which folders are checkpoints, which is the newest, which may go."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from fastgpt.train import checkpoint, overwritten

from ..training import tiny_trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_trainer(folder, name="a", save_every=4, val=False).fit()
    return folder / "a" / "checkpoints"


@pytest.fixture
def root(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a" / "checkpoints")
    return tmp_path / "a" / "checkpoints"


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_pruning_forgives_what_it_cannot_delete(root, monkeypatch, caplog):
    def refused(path, *args, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(shutil, "rmtree", refused)
    checkpoint.prune(root, 1, root / "step-00000008")
    assert "could not delete the old checkpoint" in caplog.text
    assert checkpoint.all_checkpoints(root) == [root / "step-00000008"]  # what is half deleted is none


def test_pruning_deletes_nothing_of_later_steps(root):
    shutil.copytree(root / "step-00000008", root / "step-99999999")
    checkpoint.prune(root, 1, root / "step-00000008")
    assert names(root) == ["step-00000008", "step-99999999"]


def test_pruning_a_link_deletes_the_link(root, tmp_path):
    (root / "step-00000004").rename(tmp_path / "elsewhere")
    (root / "step-00000004").symlink_to(tmp_path / "elsewhere")
    checkpoint.prune(root, 1, root / "step-00000008")
    assert names(root) == ["step-00000008"]
    checkpoint.verify(tmp_path / "elsewhere")


def test_a_link_to_a_checkpoint_kept_elsewhere_is_gone_on_from(root, tmp_path):
    (root / "step-00000008").rename(tmp_path / "elsewhere")
    (root / "step-00000008").symlink_to(tmp_path / "elsewhere")
    trainer = tiny_trainer(tmp_path, name="a", val=False, steps=9)
    assert trainer.fit(resume=True, allow_changes=True).losses
    again = tiny_trainer(tmp_path, name="a", val=False, steps=9)
    assert again.fit(resume=root / "step-00000008", allow_changes=True).losses
    with pytest.raises(ValueError, match="is no checkpoint of"):  # of no folder of this run, and under no name of it
        tiny_trainer(tmp_path, name="a", val=False).fit(resume=tmp_path / "elsewhere")


def test_a_checkpoint_that_may_not_be_looked_into_hides_no_other(root, monkeypatch):
    listed = type(root).iterdir

    def refused(path):
        if path.name == "step-00000004":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(type(root), "iterdir", refused)
    assert names(root) == ["step-00000004", "step-00000008"]
    assert [path.name for path in checkpoint.all_checkpoints(root)] == ["step-00000004", "step-00000008"]


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "not writable"])
def test_a_place_of_checkpoints_that_takes_none_is_said_before_the_first_step(tmp_path, monkeypatch, kind):
    place = tmp_path / "a" / "checkpoints"
    place.parent.mkdir()
    if kind == "a file":
        place.write_text("")
    elif kind == "a dangling link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
        access = os.access  # for root all is writable
        monkeypatch.setattr(os, "access", lambda path, mode: path != place and access(path, mode))
    trainer = tiny_trainer(tmp_path, name="a", val=False)
    with pytest.raises(ValueError, match=f"name='a' cannot be a folder of runs: {place} is {kind}; name another"):
        trainer.fit()
    assert trainer.step == 0


def test_what_is_no_checkpoint_is_not_taken_for_the_newest(root):
    (root / "step-99999999").mkdir()
    (root / "step-00000010").write_text("a file")
    (root / "step-00000011").symlink_to(root / "nowhere")
    assert checkpoint.latest(root) == root / "step-00000008"
    checkpoint.prune(root, 1, root / "step-00000008")
    assert names(root) == ["step-00000008", "step-00000010", "step-00000011", "step-99999999"]


def test_a_stray_later_step_costs_no_work(root, tmp_path, monkeypatch):
    """Neither what is saved as it is due, nor what an error would lose."""
    trainer = tiny_trainer(tmp_path, name="a", steps=12, save_every=9, keep=1, val=False)
    gradient = trainer._gradient

    def failing():
        if trainer.step == 8:
            shutil.copytree(root / "step-00000008", root / "step-99999999")
        if trainer.step == 10:
            raise RuntimeError("out of memory")
        return gradient()

    monkeypatch.setattr(trainer, "_gradient", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(resume=True, allow_changes=True)
    assert names(root) == ["step-00000009", "step-00000010", "step-99999999"]


def test_what_stands_in_the_place_of_a_checkpoint_is_set_aside(root, tmp_path, caplog):
    (root / "step-00000009").write_text("somebody's")
    trainer = tiny_trainer(tmp_path, name="a", steps=9, val=False)
    assert trainer.fit(resume=True, allow_changes=True).checkpoint == root / "step-00000009"
    assert (root / "set-aside-step-00000009").read_text() == "somebody's"
    assert "it is now" in caplog.text
    checkpoint.verify(root / "step-00000009")


def test_what_is_set_aside_takes_no_others_name(root):
    (root / "step-00000004").rename(root / "step-00000009")
    checkpoint.set_aside_after(root, 8)
    shutil.copytree(root / "step-00000008", root / "step-00000009")
    checkpoint.set_aside_after(root, 8)
    assert names(root) == ["set-aside-step-00000009", "set-aside-step-00000009-2", "step-00000008"]


def test_a_checkpoint_that_is_saved_again_is_there_at_any_moment(root, tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, name="a", val=False)
    trainer.load(root / "step-00000008")
    rename, moments = os.rename, []

    def watched(source, target):
        rename(source, target)
        moments.append(shutil.copytree(root, tmp_path / f"moment-{len(moments)}" / "checkpoints"))

    monkeypatch.setattr(os, "rename", watched)
    trainer.save()
    monkeypatch.undo()
    assert any(not (moment / "step-00000008").exists() for moment in moments)
    for moment in moments:
        newest = overwritten.newest(moment)
        assert checkpoint.step_of(newest) == 8
        checkpoint.verify(newest)
        overwritten.settle(moment.parent)
        assert overwritten.newest(moment) == moment / "step-00000008"
        checkpoint.verify(moment / "step-00000008")
    assert names(root) == ["step-00000004", "step-00000008"]


def test_a_link_that_cannot_be_deleted_is_said_once(root, monkeypatch, caplog):
    def refused(*args, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "rename", refused)
    for _ in range(3):
        checkpoint.prune(root, 1, root / "step-00000008")
    assert caplog.text.count("could not delete the old checkpoint") == 1
