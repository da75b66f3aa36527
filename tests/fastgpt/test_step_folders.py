"""Which folders are checkpoints, which is the newest, which may go."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from fastgpt import checkpoint

from .training import tiny_trainer


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
