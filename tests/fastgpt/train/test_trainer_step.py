"""One update of the Trainer beside what it must be, also after one that failed, and whatever others left behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastgpt import TrainConfig
from fastgpt.data.sampler import BatchSampler
from fastgpt.model.sampling import SamplingConfig
from fastgpt.study.demo_config import DemoConfig
from fastgpt.train.trainer import Trainer

from ..training import tiny_data, tiny_model, tiny_trainer


def expected_steps(n: int) -> list[tuple[float, float, float]]:
    trainer = tiny_trainer("unused", grad_accum=2, steps=6)
    torch.manual_seed(5)
    return [trainer.train_step() for _ in range(n)]


def broken(model, call: int, how: str, *, for_good: bool = False):
    """`model` whose forward pass goes wrong at that call, counted from 1, or from it on until `model.healed`: in its
    loss, or in its gradient alone."""
    original, calls = model.forward, []
    model.healed = False

    def forward(*args, **options):
        out = original(*args, **options)
        calls.append(1)
        if len(calls) == call or (for_good and len(calls) > call and not model.healed):
            if how == "gradient":
                out.loss.register_hook(lambda gradient: gradient * math.nan)
            else:
                out.loss = out.loss * float(how)
        return out

    model.forward = forward
    return model


def without_updates(trainer, *steps: int):
    """`trainer` whose optimizer does nothing in these steps, which are otherwise as ever."""
    original = trainer.optimizer.step
    trainer.optimizer.step = lambda: None if trainer.step + 1 in steps else original()
    return trainer


@pytest.mark.parametrize("how", ["nan", "inf", "1e38", "gradient"])
@pytest.mark.parametrize("call", [3, 4])  # the first and the second of the second step's micro-batches
def test_after_a_step_that_is_not_finite_the_next_is_healthy(how, call):
    """It counts, and the data and the random numbers move on; that it was looked at again changes nothing."""
    trainer = tiny_trainer("unused", model=broken(tiny_model(), call, how), grad_accum=2, steps=6)
    expected = without_updates(tiny_trainer("unused", grad_accum=2, steps=6), 2)
    found = []
    for one in (trainer, expected):
        torch.manual_seed(5)
        found.append([one.train_step() for _ in range(5)])
    assert not (math.isfinite(found[0][1][0]) and math.isfinite(found[0][1][1]))
    assert found[0][0] == found[1][0]
    assert found[0][2:] == found[1][2:]
    assert (trainer.step, trainer.skipped, trainer.in_a_row) == (5, 1, 0)
    assert all(map(torch.equal, trainer.model.parameters(), expected.model.parameters()))


@pytest.mark.parametrize("how", ["nan", "gradient"])
def test_resume_in_the_same_process_after_it(tmp_path, how):
    straight = without_updates(tiny_trainer(tmp_path, name="straight", save_every=2), 4, 5, 6).fit()
    trainer = tiny_trainer(tmp_path, model=broken(tiny_model(), 4, how, for_good=True), name="a", save_every=2)
    with pytest.raises(
        FloatingPointError, match=r"at step 6, the last of 3 in a row .*step-00000006 is kept, and before"
    ):
        trainer.fit()
    trainer.model.healed = True
    assert trainer.fit(resume=True).losses == straight.losses[6:]


def test_a_second_trainer_of_the_same_model_after_it(tmp_path):
    model = broken(tiny_model(), 1, "gradient")
    tiny_trainer(tmp_path, model=model, grad_accum=2, steps=6).train_step()
    trainer = tiny_trainer(tmp_path, model=model, grad_accum=2, steps=6)
    torch.manual_seed(5)
    assert [trainer.train_step() for _ in range(2)] == expected_steps(2)


@pytest.mark.parametrize("when", ["before", "between", "frozen"])
def test_gradients_that_others_left_do_not_count(when):
    """Those of frozen parameters too, which nothing clears: they would enter the norm that clips the others."""

    def steps(stray: bool) -> list:
        model = tiny_model(dropout=0.0)

        def backward() -> None:
            if stray:
                (100 * model(torch.arange(8)[None], targets=torch.arange(8)[None]).loss).backward()

        if when != "between":
            backward()
        model.pos_emb.weight.requires_grad_(when != "frozen")
        trainer = Trainer(model, tiny_data(), TrainConfig(steps=4, batch_size=2, device="cpu"), show_progress=False)
        found = [trainer.train_step()]
        if when == "between":
            backward()
        return found + [trainer.train_step() for _ in range(2)]

    assert steps(True) == steps(False)


def test_gradients_left_after_a_checkpoint_was_loaded(tmp_path):
    tiny_trainer(tmp_path, name="a", save_every=2, keep=9).fit()
    losses = []
    for stray in (False, True):
        trainer = tiny_trainer(tmp_path, name="a")
        trainer.load(tmp_path / "a" / "checkpoints" / "step-00000004")
        if stray:
            for parameter in trainer.model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan)
        losses.append([trainer.train_step() for _ in range(2)])
    assert losses[0] == losses[1]


def test_a_broken_off_update_is_not_gone_on_from(tmp_path, monkeypatch):
    straight = tiny_trainer(tmp_path, name="straight").fit()
    trainer = tiny_trainer(tmp_path, name="a", save_every=2)
    original, calls = torch.optim.AdamW.step, []

    def half(self, *args):
        calls.append(1)
        if len(calls) == 3:
            with torch.no_grad():
                trainer.model.ln_f.weight.mul_(2)
            raise RuntimeError("half of them")
        return original(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", half)
    with pytest.raises(RuntimeError, match="half of them"):
        trainer.fit()
    with pytest.raises(RuntimeError, match=r"update 3 was broken off half-way.*fit\(resume=True\)"):
        trainer.train_step()
    assert trainer.fit(resume=True).losses == straight.losses[2:]
    assert trainer.save().name == "step-00000008"


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_data_of_few_tokens(n):
    config = TrainConfig(steps=1, batch_size=1, device="cpu")
    for arguments in ({"train_data": tiny_data(n)}, {"train_data": tiny_data(), "val_data": tiny_data(n)}):
        if n < 2:
            with pytest.raises(ValueError, match=f"has {n} tokens; at least 2 are needed"):
                Trainer(tiny_model(), config=config, **arguments)
        else:
            trainer = Trainer(tiny_model(), config=config, show_progress=False, **arguments)
            trainer.train_step()
            assert "val_data" not in arguments or trainer.validate().tokens == n - 1


@pytest.mark.parametrize("seed", [-(2**70), 10**400, -1, 1.0, 2.5, True, "1", np.int64(-3), np.float32(1)])
def test_seeds_that_are_none_are_refused_where_they_are_given(seed):
    places = [lambda: TrainConfig(seed=seed), lambda: DemoConfig(seed=seed).check()]
    if type(seed) is not int or seed < 0:  # of its own any natural number will do
        places.append(lambda: BatchSampler(tiny_data(), 1, 8, seed=seed))
    if not (isinstance(seed, (int, np.int64)) and -(2**63) <= seed < 0):  # torch's generators take those
        places.append(lambda: SamplingConfig(seed=seed))
    for place in places:
        with pytest.raises((ValueError, TypeError), match=r"seed=.* must be an integer"):
            place()


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1, np.uint64(2**64 - 1), np.int32(7), torch.tensor(7)])
def test_seeds_that_are(tmp_path, seed):
    trainer = tiny_trainer(tmp_path, name="a", steps=1, seed=seed)
    assert trainer.fit().step == 1
    assert type(trainer.config.seed) is int


def test_flops_are_counted_once(tmp_path, monkeypatch):
    model = tiny_model()
    calls, original = [], model.flops_per_token
    monkeypatch.setattr(model, "flops_per_token", lambda n: calls.append(n) or original(n))
    tiny_trainer(tmp_path, model=model, name="a").fit()
    assert calls == [16]
