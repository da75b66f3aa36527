"""The small models that pages train: they learn, as often as they are told, the same for the same seed."""

from __future__ import annotations

import contextlib

import pytest
import torch

from fastgpt.model.one_head import OneHeadLM
from fastgpt.study import small_models

pytestmark = pytest.mark.needs("tiktoken")


def make(vocab_size):
    return OneHeadLM(vocab_size, 8, 16)


def test_it_learns_and_the_seed_decides():
    before = torch.random.get_rng_state()
    fresh = small_models.trained(make, steps=0, seed=1)
    some, again = (small_models.trained(make, steps=30, seed=1) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert fresh.loss is None
    assert some.loss == again.loss
    assert some.loss < 8.0  # ln 4096 = 8.3
    assert (some.steps, some.tokens) == (30, 30 * 16 * 16)
    assert not some.model.training
    same = [torch.equal(a, b) for a, b in zip(some.model.parameters(), again.model.parameters())]
    other = [torch.equal(a, b) for a, b in zip(some.model.parameters(), fresh.model.parameters())]
    assert all(same)
    assert not any(other)


def test_seconds_become_steps_of_a_throw_away_copy(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(small_models.time, "perf_counter", lambda: float(next(clock)))
    told = []

    @contextlib.contextmanager
    def watch(count):
        told.append(count)
        yield lambda: told.append("step") or False

    small = small_models.trained(make, seconds=3.5, seed=1, watch=watch)  # a step takes a second
    assert small.steps == 3
    assert told == [3, "step", "step", "step"]
    assert small.loss == small_models.trained(make, steps=3, seed=1).loss
