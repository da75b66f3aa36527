"""The host waits for no step that it has just begun: nothing is read from the device between two optimizer steps."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt.train.metrics import read_metrics
from fastgpt.train.pending import Mark, Pending
from fastgpt.train.updates import Updates

from ..training import tiny_trainer

READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero")


class Scalars(TorchDispatchMode):
    """Tells of every number that torch takes out of a tensor."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.tell(str(func))
        return func(*args, **(kwargs or {}))


def reads_between_updates(trainer, monkeypatch) -> tuple[list[str], int]:
    """(what `fit` reads between its first optimizer step and its last, the number of these steps)."""
    told, updates = [], []

    def tell(what: str) -> None:
        if threading.current_thread() is threading.main_thread():
            place = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_stack()[-8:-2]))
            told.append((len(updates), f"{what} in {place}"))

    def watched(name: str):
        original = getattr(torch.Tensor, name)

        def watching(self, *args, **options):
            tell(name)
            return original(self, *args, **options)

        return watching

    step = trainer.optimizer.step

    def counted(*args):
        step(*args)
        updates.append(1)

    trainer.optimizer.step = counted
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    with Scalars(tell):
        trainer.fit()
    monkeypatch.undo()
    return [what for n, what in told if 0 < n < len(updates)], len(updates)


@pytest.mark.parametrize("grad_accum", [1, 3])
def test_nothing_is_read_between_two_optimizer_steps(tmp_path, monkeypatch, grad_accum):
    found = reads_between_updates(tiny_trainer(tmp_path, name="a", grad_accum=grad_accum, val=False), monkeypatch)
    assert found == ([], 8)


def test_what_is_read_is_seen(tmp_path, monkeypatch):
    """By each of the two ways in which the test above looks."""
    for read in (lambda t: t.item(), bool, float, lambda t: t.tolist(), lambda t: t.nonzero(), lambda t: t.cpu()):
        trainer = tiny_trainer(tmp_path, name="a", val=False)
        clip = trainer.strategy.clip

        def reading(*args, clip=clip, read=read):
            norm = clip(*args)
            read(norm)
            return norm

        trainer.strategy.clip = reading
        with monkeypatch.context() as patch:
            found, _ = reads_between_updates(trainer, patch)
        assert len(found) >= 7
        (tmp_path / "a").rename(tmp_path / f"done-{time.monotonic_ns()}")


def test_a_step_is_read_when_the_next_one_has_begun(tmp_path, monkeypatch):
    """Or at once where something is due: here a checkpoint after step 3, a validation after step 5, the end."""
    events = []
    backward, read = Updates._backward, Pending.read

    def begun(self, batches):
        found = backward(self, batches)
        events.append(f"begun {self.step + 1}")
        return found

    def reading(self):
        if self._measured is None:
            events.append(f"read {self.step}")
        return read(self)

    monkeypatch.setattr(Updates, "_backward", begun)
    monkeypatch.setattr(Pending, "read", reading)
    tiny_trainer(tmp_path, name="a", steps=7, save_every=3, eval_every=5).fit()
    order = ["begun 1", "begun 2", "read 1", "begun 3", "read 2", "read 3", "begun 4", "begun 5", "read 4", "read 5"]
    assert events == [*order, "begun 6", "read 6", "begun 7", "read 7"]
    assert [line["step"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl")] == [*range(1, 8)]


def test_the_speed_is_that_of_the_step_though_it_is_read_late(tmp_path, monkeypatch):
    """Each step takes as long as it says, also the first, and one after a pause; the pause belongs to none."""
    clock = [0.0]
    monkeypatch.setattr("fastgpt.train.pending.perf_counter", lambda: clock[0])
    trainer = tiny_trainer(tmp_path, name="a", steps=6, eval_every=3, seq_len=10)
    seconds = {1: 4.0, 2: 1.0, 3: 2.0, 4: 8.0, 5: 1.0, 6: 16.0}
    backward, validate = trainer._backward, trainer.validate

    def slow(batches):
        clock[0] += seconds[trainer.step + 1]
        return backward(batches)

    def pausing(**options):
        clock[0] += 100.0
        return validate(**options)

    trainer._backward, trainer.validate = slow, pausing
    trainer.fit()
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert {line["step"]: 3 * 10 / line["tokens_per_second"] for line in lines} == pytest.approx(seconds)


def test_a_mark_is_a_moment():
    first = Mark(torch.device("cpu"))
    time.sleep(0.02)
    assert Mark(torch.device("cpu")).seconds_after(first) >= 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_no_call_waits_for_the_gpu(tmp_path, compute):
    """torch raises an error where a call of its own would: from the second step, which is warm, to the last."""
    trainer = tiny_trainer(tmp_path, name="a", device="cuda", dtype=compute, grad_accum=2, steps=20, val=False)
    begin_step = trainer.begin_step

    def guarded():
        if trainer.step == 2:
            torch.cuda.set_sync_debug_mode("error")
        if trainer.step == 19:
            torch.cuda.set_sync_debug_mode("default")
        return begin_step()

    trainer.begin_step = guarded
    try:
        result = trainer.fit()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    at_once = tiny_trainer(tmp_path, name="b", device="cuda", dtype=compute, grad_accum=2, steps=20, val=False)
    torch.manual_seed(0)
    losses = [at_once.train_step()[0] for _ in range(20)]
    assert result.losses == pytest.approx(losses, rel=1e-3)
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert all(line["tokens_per_second"] > 0 and line["memory_bytes"] > 0 for line in lines)


@pytest.mark.gpu
def test_a_step_is_skipped_on_the_gpu(tmp_path):
    """Without a word from the host: its figures are asked for when the next one has begun."""
    trainer = tiny_trainer(tmp_path, name="a", device="cuda", steps=6, val=False)
    backward, before = trainer._backward, []

    def bad(batches):
        share = backward(batches)
        before.append([p.detach().clone() for p in trainer.model.parameters()])
        return share * (float("nan") if len(before) == 3 else 1.0)

    trainer._backward = bad
    result = trainer.fit()
    assert trainer.skipped == 1
    assert [loss == loss for loss in result.losses] == [True, True, False, True, True, True]
    assert all(map(torch.equal, before[2], before[3]))  # what the third step began with, the fourth did
