"""Batches that are made ahead are those that would have been made when they were asked for; whatever happens."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from fastgpt.data import TokenDataset
from fastgpt.data.prefetch import BatchesAhead
from fastgpt.data.sampler import BatchSampler

from ..training import tiny_data, tiny_trainer

CPU = torch.device("cpu")
NAME = "fastgpt-batches"


class Watched(TokenDataset):
    """Tells who reads where, and may be told to fail or to wait."""

    def watch(self) -> Watched:
        self.__dict__.update(readers=[], broken=set(), gate=threading.Event())
        self.gate.set()
        return self

    def read(self, start: int, stop: int) -> np.ndarray:
        self.readers.append((start, threading.current_thread().name))
        self.gate.wait(10)
        if start in self.broken:
            raise OSError(f"no block at {start}")
        return super().read(start, stop)


def watched(n: int = 700) -> Watched:
    data = tiny_data(n)
    return Watched(data.shards, data.documents, data.vocab_size, data.tokenizer_sha256, data.name).watch()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def equal(batches, others) -> bool:
    return len(batches) == len(others) and all(
        torch.equal(batch.idx, idx) and torch.equal(batch.targets, targets) and batch.counted == (targets != -100).sum()
        for batch, (idx, targets) in zip(batches, others)
    )


def eventually(condition) -> bool:
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_the_sampler_s_batches_in_its_order():
    sampler, plain = (BatchSampler(tiny_data(100), 3, 7, seed=1) for _ in range(2))
    with BatchesAhead(CPU) as ahead:
        for count in (1, 2, 2, 3, 1, 1, 4):  # two epochs and more
            assert equal(ahead.take(sampler, count), [plain.next_batch() for _ in range(count)])
            assert sampler.state_dict() == plain.state_dict()


def test_they_are_made_while_nobody_asks():
    data = watched()
    sampler = BatchSampler(data, 2, 16)
    with BatchesAhead(CPU) as ahead:
        ahead.take(sampler, 2)
        assert eventually(lambda: len(data.readers) == 8)  # 2 batches of 2 windows, and as many ahead: no more
        ahead.take(sampler, 2)
        assert [name for _, name in data.readers[:4]] == [threading.current_thread().name] * 4
        assert [name for _, name in data.readers[4:8]] == [NAME] * 4


def test_no_batch_is_made_that_nobody_wants():
    data = watched()
    with BatchesAhead(CPU) as ahead:
        ahead.take(BatchSampler(data, 2, 16), 1, more=False)
        assert not threads()
    assert len(data.readers) == 2


@pytest.mark.parametrize("change", ["position", "batch_size", "seed", "dataset", "another"])
def test_what_was_made_of_something_else_is_dropped(change):
    sampler, plain = (BatchSampler(tiny_data(), 3, 7, seed=1) for _ in range(2))
    with BatchesAhead(CPU) as ahead:
        for _ in range(2):
            ahead.take(sampler, 1)
            plain.next_batch()
        if change == "another":
            sampler, plain = (BatchSampler(tiny_data(), 3, 7, seed=2) for _ in range(2))
        else:
            new = {"position": 3, "batch_size": 5, "seed": 4, "dataset": tiny_data(seed=9)}[change]
            for one in (sampler, plain):
                one._epoch = -1  # as for every change but that of the position
                setattr(one, change, new)
        for _ in range(3):
            assert equal(ahead.take(sampler, 1), [plain.next_batch()])
            assert sampler.position == plain.position


def test_an_error_comes_where_its_batch_is_needed_and_no_sooner():
    data = watched()
    sampler = BatchSampler(data, 1, 16)
    order = [sampler._window(n) * 16 for n in range(4)]
    data.broken.add(order[2])
    with BatchesAhead(CPU) as ahead:
        ahead.take(sampler, 1)
        ahead.take(sampler, 1)
        assert eventually(lambda: (order[2], NAME) in data.readers)
        with pytest.raises(OSError, match=f"no block at {order[2]}"):
            ahead.take(sampler, 1)
        assert sampler.position == 2
        data.broken.clear()
        plain = BatchSampler(tiny_data(), 1, 16)
        plain.position = 2
        assert equal(ahead.take(sampler, 2), [plain.next_batch(), plain.next_batch()])


def test_an_error_that_is_gone_by_then_is_none():
    data = watched()
    sampler, plain = BatchSampler(data, 1, 16), BatchSampler(tiny_data(), 1, 16)
    second = sampler._window(1) * 16
    data.broken.add(second)
    with BatchesAhead(CPU) as ahead:
        assert equal(ahead.take(sampler, 1), [plain.next_batch()])
        assert eventually(lambda: (second, NAME) in data.readers)
        data.broken.clear()
        assert equal(ahead.take(sampler, 1), [plain.next_batch()])


def test_a_sampler_of_one_s_own_is_asked_itself():
    class Mine(BatchSampler):
        pass

    altered = BatchSampler(watched(), 1, 16)
    altered.next_batch = altered.next_batch
    with BatchesAhead(CPU) as ahead:
        for sampler in (Mine(watched(), 1, 16), altered):
            ahead.take(sampler, 1)
            ahead.take(sampler, 1)
            assert {name for _, name in sampler.dataset.readers} == {threading.current_thread().name}


def test_a_copy_has_no_thread_and_a_forked_process_none_to_wait_for():
    sampler, plain = BatchSampler(tiny_data(), 1, 16), BatchSampler(tiny_data(), 1, 16)
    with BatchesAhead(CPU) as ahead:
        ahead.take(sampler, 1)
        plain.next_batch()
        copies = [copy.deepcopy((ahead, sampler)), pickle.loads(pickle.dumps((ahead, sampler)))]
        expected = plain.next_batch()
        assert all(equal(other.take(its, 1), [expected]) for other, its in copies)
        child = os.fork()
        if child == 0:
            began = time.monotonic()
            is_right = equal(ahead.take(sampler, 1), [expected])
            os._exit(0 if is_right and time.monotonic() - began < 0.5 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert equal(ahead.take(sampler, 1), [expected])


def test_a_gpu_s_batches_are_pinned_on_its_own_account(monkeypatch):
    """Without a GPU: what would be called. Pinning in a thread that was told nothing takes memory of GPU 0."""
    calls = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: calls.append((device, threading.current_thread().name))
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pin") or self)
    sampler = BatchSampler(tiny_data(), 1, 16)
    with BatchesAhead(torch.device("cuda", 1)) as ahead:
        ahead.take(sampler, 1)
        assert calls[:2] == ["pin", "pin"]
        assert eventually(lambda: len(calls) == 5)
        assert calls[2:] == [(torch.device("cuda", 1), NAME), "pin", "pin"]


def test_an_interrupt_while_a_batch_is_fetched_leaves_nothing_to_wait_for():
    sampler, plain = BatchSampler(tiny_data(), 1, 16), BatchSampler(tiny_data(), 1, 16)
    with BatchesAhead(CPU) as ahead:
        ahead.take(sampler, 1)
        fetch = ahead._result

        def fetched_and_interrupted():
            fetch()
            raise KeyboardInterrupt

        ahead._result = fetched_and_interrupted
        with pytest.raises(KeyboardInterrupt):
            ahead.take(sampler, 1)
        del ahead._result
        assert ahead._thread is None  # the one whose answer was lost would be waited for without end
        plain.next_batch()
        assert equal(ahead.take(sampler, 1), [plain.next_batch()])


def test_nothing_of_the_data_is_held_afterwards():
    sampler = BatchSampler(tiny_data(), 1, 16)
    with BatchesAhead(CPU) as ahead:
        ahead.take(sampler, 1)
        held = weakref.ref(sampler.dataset)
    sampler.dataset = tiny_data(seed=2)
    gc.collect()
    assert held() is None
    assert not hasattr(ahead, "_results")


# ---- in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_training_with_it_and_without_has_the_same_bits(tmp_path, stop):
    alone = tiny_trainer(tmp_path, steps=6, grad_accum=2)  # nobody calls fit: no thread
    torch.manual_seed(0)
    losses = [alone.train_step()[0] for _ in range(6)]
    straight = tiny_trainer(tmp_path, name="b", steps=6, grad_accum=2, save_every=stop, keep=9)
    assert straight.fit().losses == losses
    resumed = tiny_trainer(tmp_path, name="b", steps=6, grad_accum=2, save_every=stop, keep=9)
    again = resumed.fit(resume=tmp_path / "b" / "checkpoints" / f"step-{stop:08d}")
    assert again.losses == losses[stop:]
    assert all(map(torch.equal, resumed.model.parameters(), alone.model.parameters()))


@pytest.mark.parametrize("how", ["finished", "error", "interrupt"])
def test_no_thread_outlives_fit(tmp_path, how):
    trainer = tiny_trainer(tmp_path, name="a", steps=6)
    seen, step = [], trainer.begin_step

    def watched_step():
        seen.append(len(threads()))
        if trainer.step == 3 and how != "finished":
            raise {"error": ValueError, "interrupt": KeyboardInterrupt}[how]
        return step()

    trainer.begin_step = watched_step
    if how == "finished":
        trainer.fit()
    else:
        with pytest.raises((ValueError, KeyboardInterrupt)):
            trainer.fit()
    assert seen[:3] == [0, 1, 1]
    assert not threads()


def test_the_checkpoint_has_the_position_of_what_was_used(tmp_path):
    trainer = tiny_trainer(tmp_path, name="a", steps=4, save_every=1)
    positions, write = [], trainer.write

    def slow_write():
        time.sleep(0.05)  # the batch of the next step is made by now
        positions.append(trainer.sampler.position)
        return write()

    trainer.write = slow_write
    trainer.fit()
    assert positions == [3, 6, 9, 12]


def test_a_trainer_pickled_before_there_were_batches_ahead_trains(tmp_path):
    trainer = tiny_trainer(tmp_path, steps=6)
    state = vars(trainer).copy()
    del state["_batches"]
    old = type(trainer).__new__(type(trainer))
    old.__setstate__(state)
    torch.manual_seed(0)
    old.train_step()
    assert old.step == 1
