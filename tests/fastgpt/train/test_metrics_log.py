"""metrics.jsonl: each step once, whatever the disk, a crash or an earlier run did to the file."""

from __future__ import annotations

import contextlib
import json
import os

import pytest

from fastgpt.train.metrics import MetricsLog, bits_per_byte, perplexity, read_metrics
from fastgpt.train.reports import reports


def line(step: int, **more) -> dict:
    return {"step": step, "loss": 1.5} | more


def steps(path) -> list[int]:
    return [found["step"] for found in read_metrics(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_what_was_written_is_read(path):
    log = MetricsLog(path)
    written = [line(1, epoch=0.25), line(2, mfu=None, loss=float("nan")), line(3, loss=float("inf"), note="ü")]
    for one in written:
        log.write(one)
        assert steps(path)[-1] == one["step"]  # readable while the run goes on
    log.close()
    expected = [written[0], written[1] | {"loss": None}, written[2] | {"loss": None}]
    assert read_metrics(path) == expected
    assert [json.loads(text) for text in path.read_text().splitlines()] == expected  # plain JSON: no NaN


@pytest.mark.parametrize("keep", [0, 2, 4, 9])
def test_lines_after_the_checkpoint_are_dropped(path, keep):
    log = MetricsLog(path)
    for step in (1, 2, 3, 4):
        log.write(line(step))
    log.close()
    MetricsLog(path, keep_steps=keep).close()
    assert steps(path) == [step for step in (1, 2, 3, 4) if step <= keep]


def test_missing_lines_are_put_in_and_no_others(path):
    log = MetricsLog(path)
    for step in (1, 3):
        log.write(line(step))
    log.close()
    MetricsLog(path, keep_steps=4, add=[line(step, loss=9.0) for step in (2, 3, 4)]).close()
    assert [(one["step"], one["loss"]) for one in read_metrics(path)] == [(1, 1.5), (2, 9.0), (3, 1.5), (4, 9.0)]


class Disk:
    """A file whose writes take so many bytes each; 0: there is no space."""

    def __init__(self, file, sizes: list[int]) -> None:
        self.file, self.sizes = file, sizes

    def write(self, data: bytes) -> int:
        size = self.sizes.pop(0) if self.sizes else len(data)
        if size == 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data[:size])

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("sizes", [[0], [5, 0], [5, 0, 0, 7, 0], [1] * 40, [5, 3, 0, 1, 0]])
def test_half_written_lines_become_whole_ones(path, sizes):
    log = MetricsLog(path)
    log._file = Disk(log._file, list(sizes))
    failed = 0
    for step in range(1, 6):
        try:
            log.write(line(step))
        except OSError:
            failed += 1
            assert log.waiting[-1]["step"] == step
    log.close()
    assert failed == sizes.count(0)
    assert path.read_text() == "".join(json.dumps(line(step)) + "\n" for step in range(1, 6))


def test_sync_has_it_on_the_disk(path, monkeypatch):
    log, flushed = MetricsLog(path), []
    log.write(line(1))
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.readlink(f"/proc/self/fd/{number}")))
    log.sync()
    log.close()
    assert flushed == [str(path)]


def test_per_token_and_per_byte():
    assert perplexity(0.0) == 1.0
    assert perplexity(1.0) == pytest.approx(2.718281828)
    assert perplexity(1000.0) == float("inf")
    assert bits_per_byte(0.6931471805599453 * 12, 4) == pytest.approx(3.0)  # 12 bits over 4 bytes
    assert bits_per_byte(1.0, 0) is None


def test_a_step_is_a_number(path):
    path.write_text('{"step": true, "loss": 1.5}\n{"step": 1.0}\n{"step": 2, "loss": 1.5}\n')
    assert read_metrics(path) == [line(2)]


@pytest.mark.needs("tensorboard")
def test_scalars_of_a_run_that_goes_on_replace_those_after_its_checkpoint(tmp_path):
    """As TensorBoard takes it: what was written of later steps is gone, that of the checkpoint is not."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps_of, loss in ((0, (1, 2, 3, 4), 1.0), (2, (3,), 2.0)):
        shown = contextlib.nullcontext(lambda line: None)
        with reports(tmp_path, shown, first=first, tensorboard=True) as report:
            for step in steps_of:
                report({"step": step, "loss": loss})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 2.0)]
