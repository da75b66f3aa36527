"""Files that are replaced together: all of them or none, and what is said when it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fastgpt.base import files

NAMES = ("a.bin", "b.bin", "c.json")


def write(words: str):
    def write_into(work: Path) -> None:
        for name in NAMES:
            (work / name).write_text(words)

    return write_into


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize("before", [(), NAMES, NAMES[1:]])
def test_a_rename_that_fails_or_ctrl_c_between_two_undoes_those_before(tmp_path, monkeypatch, before, which, error):
    for name in before:
        (tmp_path / name).write_text("old")
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == which and isinstance(error, OSError):
            raise error
        real(source, target)
        if len(calls) == which:
            raise error

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError if isinstance(error, OSError) else KeyboardInterrupt):
        files.replace_files(tmp_path, write("new"))
    assert contents(tmp_path) == dict.fromkeys(before, "old")


@pytest.mark.parametrize("words", ["old", "new"])
def test_a_kill_between_two_renames_leaves_no_json_that_describes_other_files(tmp_path, words):
    write("old")(tmp_path)
    (tmp_path / "c.json").write_text("about " + words)
    real = os.replace

    def replace(source, target):
        real(source, target)
        if Path(target) == tmp_path / "a.bin":
            os._exit(9)

    def write_new(work: Path) -> None:
        write("new")(work)
        (work / "c.json").write_text("about new")

    child = os.fork()
    if child == 0:
        os.replace = replace
        files.replace_files(tmp_path, write_new)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    same = {"c.json": "about new"} if words == "new" else {}
    assert found == {"a.bin": "new", "b.bin": "old"} | same
    files.replace_files(tmp_path, write_new)
    assert contents(tmp_path) == {"a.bin": "new", "b.bin": "new", "c.json": "about new"}


def test_where_files_have_one_name_only_they_are_replaced_all_the_same(tmp_path, monkeypatch):
    write("old")(tmp_path)

    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    files.replace_files(tmp_path, write("new"))
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_what_cannot_be_undone_is_said(tmp_path, monkeypatch):
    write("old")(tmp_path)
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="partly replaced: write it again"):
        files.replace_files(tmp_path, write("new"))


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free disk space, or choose another folder"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free disk space, or choose another folder"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "free disk space, or choose another folder"),
        (OSError(errno.EIO, "Input/output error"), "check the disk, or choose another folder"),
        (PermissionError(errno.EACCES, "Permission denied"), "fix the permissions, or choose another folder"),
    ],
)
def test_an_error_says_what_is_so(tmp_path, error, advice, is_there):
    path = tmp_path / "a"
    if is_there:
        path.write_text("old")

    def fail(_: Path) -> None:
        raise error

    with pytest.raises(OSError, match="could not write") as raised:
        files.replace_file(path, fail)
    words = f"could not write {path} ({files.reason(error)}); {advice}"
    assert str(raised.value) == words + "; the previous file is intact" * is_there


def test_a_signal_as_the_working_folder_is_made_leaves_none(tmp_path, monkeypatch):
    real = Path.mkdir

    def mkdir(self: Path, *args, **kwargs) -> None:
        real(self, *args, **kwargs)
        if self.name.startswith(".fastgpt-"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(KeyboardInterrupt), files.working_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_signal_as_the_working_folder_is_removed_leaves_none(tmp_path, monkeypatch):
    real, calls = os.unlink, []

    def unlink(*args, **kwargs) -> None:
        real(*args, **kwargs)
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt), files.working_folder(tmp_path) as work:
        write("new")(work)
    assert not list(tmp_path.iterdir())
