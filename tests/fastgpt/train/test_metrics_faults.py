"""metrics.jsonl on a full disk, garbled, cut short, with what is not the run's: no line of the run is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil

import pytest

from fastgpt.train import checkpoint, metrics
from fastgpt.train.metrics import MetricsLog, read_metrics

from ..training import tiny_model, tiny_trainer


def lines(*steps: int) -> bytes:
    return b"".join(b'{"step": %d, "loss": 1.5}\n' % step for step in steps)


def steps_of(path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


@pytest.mark.parametrize(
    ("bad", "aside"),
    [
        (b'{"step": 3, "lo\n', b'{"step": 3, "lo\n'),  # half a line
        (b'{"step": 3, "lo', b'{"step": 3, "lo\n'),  # ... with the next one behind it
        (b"\0" * 4096 + b"\n", b""),  # a block that a power cut left
        (b"\0" * 512, b""),
        (b"\xff\xfe\x80\n", b"\xff\xfe\x80\n"),
        (b"3\n", b"3\n"),
        (b"[" * 100_000 + b"\n", b"[" * 100_000 + b"\n"),
        (b'{"loss": 1.0}\n', b'{"loss": 1.0}\n'),
        (b'{"step": true}\n', b'{"step": true}\n'),
        (b'{"step": "4", "loss": 2.5}\n', b'{"step": "4", "loss": 2.5}\n'),
        (b'{"step": 2, "loss": 7.5}\n', b'{"step": 2, "loss": 7.5}\n'),  # another run's
        (b'{"step": 900, "loss": 7.5}\n', b""),  # beyond the checkpoint: dropped, whoever wrote it
        (b"\n\r\n", b""),
    ],
)
def test_what_is_no_line_of_the_run_is_moved_aside_and_said(tmp_path, caplog, bad, aside):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1, 2) + bad + lines(4, 5))
    MetricsLog(path, keep_steps=5).close()
    assert path.read_bytes() == lines(1, 2, 4, 5)
    moved = tmp_path / "metrics.jsonl.garbled"
    assert (moved.read_bytes() if moved.exists() else b"") == aside
    assert caplog.text.count(f"{path}: 1 line is garbled, or not this run's; now in {moved}") == bool(aside)
    before = path.stat()
    MetricsLog(path, keep_steps=5).close()
    assert path.stat() == before  # what is whole is not written again


def test_a_pipe_in_its_place_is_said_and_not_waited_for(tmp_path):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    for call in (MetricsLog, read_metrics):
        with pytest.raises(OSError, match=r"metrics\.jsonl: a pipe or a device in the place of a file"):
            call(path)


@pytest.mark.parametrize("cut", [1, 10, 24])
def test_a_last_line_that_a_crash_has_cut_is_its_steps_again(tmp_path, cut, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1, 2) + lines(3)[:cut])
    log = MetricsLog(path, keep_steps=3, add=[{"step": 3, "loss": 1.5}])
    log.close()
    assert path.read_bytes() == lines(1, 2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert not caplog.text


def test_a_line_without_its_end_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1, 2)[:-1])
    log = MetricsLog(path, keep_steps=2)
    log.write({"step": 3, "loss": 1.5})
    log.close()
    assert path.read_bytes() == lines(1, 2, 3)


def test_lines_that_are_missing_are_put_in_their_places(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1, 4))
    MetricsLog(path, keep_steps=4, add=[{"step": n, "loss": 1.5} for n in (2, 3, 4)]).close()
    assert path.read_bytes() == lines(1, 2, 3, 4)


class Disk:
    """In place of the file of a MetricsLog: takes `room` bytes, then fails until there is more."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self.file.__enter__()

    def __exit__(self, *error: object):
        return self.file.__exit__(*error)


@pytest.mark.parametrize("room", [0, 1, 25, 40, 60])
def test_what_does_not_fit_waits_and_is_written_once(tmp_path, room):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log._file = disk = Disk(log._file, room)
    for step in (1, 2, 3):
        with contextlib.suppress(OSError):
            log.write({"step": step, "loss": 1.5})
    assert [line["step"] for line in log.waiting] == [1, 2, 3][room // len(lines(1)) :]
    disk.room = 1 << 20
    log.sync()
    assert log.waiting == []
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines(1, 2, 3)


def full_from(monkeypatch, step: int, until: int) -> None:
    """The disk has no room for the metrics of these steps, nor for any before step `until`."""
    flush = MetricsLog._flush
    newest = [0]

    def failing(self) -> None:
        newest[0] = max([newest[0], *(line["step"] for line in self.waiting)])
        if step <= newest[0] < until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(self)

    monkeypatch.setattr(MetricsLog, "_flush", failing)


def test_a_full_disk_has_a_checkpoint_tried_and_is_said_once(tmp_path, monkeypatch, caplog):
    straight = tiny_trainer(tmp_path, name="straight", eval_every=2).fit()
    full_from(monkeypatch, 3, 6)
    result = tiny_trainer(tmp_path, name="a", eval_every=2).fit()
    assert (result.losses, result.validation) == (straight.losses, straight.validation)
    path = tmp_path / "a" / "metrics.jsonl"
    assert caplog.text.count(f"{path}: No space left on device (OSError); training goes on") == 1
    early = tmp_path / "a" / "checkpoints" / "step-00000004"
    assert caplog.text.count(f"step 4 is saved in {early}, in case that it gets worse") == 1
    assert len(caplog.records) == 2
    assert early.is_dir()
    assert steps_of(path) == list(range(1, 9))
    assert [line["step"] for line in read_metrics(path) if "val_loss" in line] == [2, 4, 6, 8]


def test_where_the_checkpoint_has_no_room_either_training_goes_on(tmp_path, monkeypatch, caplog):
    full_from(monkeypatch, 3, 6)
    original = checkpoint.save

    def failing(target, *args):
        if target.name == "step-00000004":
            raise checkpoint.CheckpointError("go on with resume=True") from OSError(28, "No space left on device")
        original(target, *args)

    monkeypatch.setattr(checkpoint, "save", failing)
    assert tiny_trainer(tmp_path, name="a").fit().step == 8
    assert [record.message for record in caplog.records][1:] == [
        "step 4 could not be saved either (No space left on device); training goes on"
    ]
    assert steps_of(tmp_path / "a" / "metrics.jsonl") == list(range(1, 9))


def test_lines_that_wait_are_in_the_checkpoint(tmp_path, monkeypatch):
    """So a run that is killed before there is room does not lose them."""
    full_from(monkeypatch, 3, 99)
    tiny_trainer(tmp_path, name="a", save_every=5, keep=9).fit()
    path = tmp_path / "a" / "metrics.jsonl"
    assert steps_of(path) == [1, 2]
    state = json.loads((tmp_path / "a" / "checkpoints" / "step-00000005" / "training.json").read_text())
    assert [line["step"] for line in state["owed"]["lines"]] == [3, 4, 5]
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "step-00000008")
    result = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a").fit(resume=True)
    assert (result.step, steps_of(path)) == (8, list(range(1, 9)))


def test_a_finished_run_gets_the_lines_that_its_disk_had_no_room_for(tmp_path, monkeypatch):
    full_from(monkeypatch, 3, 99)
    tiny_trainer(tmp_path, name="a").fit()
    monkeypatch.undo()
    result = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a").fit(resume=True)
    assert result.losses == []
    assert steps_of(tmp_path / "a" / "metrics.jsonl") == list(range(1, 9))


@pytest.mark.parametrize("what", ["a folder", "unreadable"])
def test_a_file_that_cannot_be_is_named_before_anything_is_done(tmp_path, monkeypatch, what):
    path = tmp_path / "a" / "metrics.jsonl"
    tiny_trainer(tmp_path, name="a", steps=2).fit()
    if what == "a folder":
        path.unlink()
        path.mkdir()
    else:

        def refused(self, *args, **options):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

        monkeypatch.setattr(metrics.Path, "read_bytes", refused)
    with pytest.raises(OSError, match=r"metrics\.jsonl") as caught:
        tiny_trainer(tmp_path, name="a", steps=4).fit(resume=True, allow_changes=True)
    assert caught.value.errno in (errno.EISDIR, errno.EACCES)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-00000002"]
