"""The cache of tokens when its entries are damaged, made by two at once, interrupted, or cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fastgpt.data import preparation, token_cache
from fastgpt.data.shards import FolderError
from fastgpt.data.tokenizer import Tokenizer

from .test_shards import DAMAGES, flip

pytest.importorskip("tiktoken")

SMALL = Tokenizer.named("shakespeare")
TEXT = "Friends, Romans, countrymen, lend me your ears. " * 20


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FASTGPT_CACHE", str(tmp_path / "cache"))
    token_cache._temporary_folder.cache_clear()
    (tmp_path / "a.txt").write_text(TEXT)
    return tmp_path


def tokens(here: Path, **options) -> list[int]:
    found = token_cache.tokenized([here / "a.txt"], SMALL, progress=False, **options)
    return found.read(0, len(found)).tolist()


def entries(here: Path) -> list[Path]:
    return list((here / "cache" / "tokens").iterdir())


def in_a_child(call: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


RIGHT = [*SMALL.encode(TEXT), SMALL.end_of_text]


@pytest.mark.parametrize("how", [*DAMAGES, "flipped"])
@pytest.mark.parametrize("name", ["manifest.json", "documents.npy", "tokens-00000.bin"])
def test_a_damaged_entry_is_made_again(here, name, how):
    assert tokens(here) == RIGHT
    (entry,) = entries(here)
    (DAMAGES | {"flipped": flip})[how](entry / name)
    assert tokens(here) == RIGHT
    assert entries(here) == [entry]
    assert tokens(here, verify=True) == RIGHT


@pytest.mark.parametrize(
    "put",
    [Path.mkdir, Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(".")],
)
def test_what_lies_in_the_place_of_an_entry_is_replaced(here, put):
    assert tokens(here) == RIGHT
    (entry,) = entries(here)
    shutil.rmtree(entry)
    put(entry)
    assert tokens(here) == RIGHT
    assert entries(here) == [entry]
    assert entry.is_dir()
    assert not entry.is_symlink()


def test_a_bit_that_flipped_on_the_disk_is_mended_by_verify(here):
    assert tokens(here) == RIGHT
    path = entries(here)[0] / "tokens-00000.bin"
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tokens(here, verify=True) == RIGHT


def test_a_damaged_entry_that_cannot_be_removed_costs_the_cache(here, monkeypatch, caplog):
    assert tokens(here) == RIGHT
    flip(entries(here)[0] / "tokens-00000.bin")
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)
    assert tokens(here) == RIGHT
    assert "the texts are tokenized for this call only" in caplog.text


def test_two_processes_at_once(here):
    for damaged in (False, True):
        if damaged:
            flip(entries(here)[0] / "tokens-00000.bin")

        def check():
            assert tokens(here) == RIGHT

        children = [in_a_child(check) for _ in range(4)]
        assert [exit_code(child) for child in children] == [0] * 4
        (entry,) = entries(here)
    assert sorted(path.name for path in entry.iterdir()) == ["documents.npy", "manifest.json", "tokens-00000.bin"]


def test_an_interrupted_call_leaves_nothing(here, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokens(here)
    assert entries(here) == []


def test_what_a_killed_call_left_goes_with_the_next(here, monkeypatch):
    write = preparation._write

    def killed(work, *args):
        write(work, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_write", killed)
        assert exit_code(in_a_child(lambda: tokens(here))) == -signal.SIGKILL
    assert [path.name[:9] for path in entries(here)] == [".fastgpt-"]
    assert tokens(here) == RIGHT
    assert len(entries(here)) == 1


def test_a_disk_that_takes_nothing_is_an_error_that_names_the_folder(here):
    def call():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        try:
            tokens(here)
        except FolderError as error:
            os.write(said, str(error).encode())

    ours, said = os.pipe()
    assert exit_code(in_a_child(call)) == 0
    message = os.read(ours, 9999).decode()
    os.close(ours), os.close(said)
    assert "fastgpt-tokens-" in message
    assert "could not be written (File too large); raise the limit" in message
    assert entries(here) == []
