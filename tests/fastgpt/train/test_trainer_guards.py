"""What a step must not do: use numbers that are not finite, train without dropout, or thaw what its owner froze."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from fastgpt.train.evaluation import evaluate

from ..training import tiny_data, tiny_model, tiny_trainer


def state_of(trainer) -> list[torch.Tensor]:
    moments = (value for state in trainer.optimizer.state.values() for value in state.values())
    return [*(value.clone() for value in trainer.model.state_dict().values()), *(value.clone() for value in moments)]


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(tmp_path, what, value, grad_clip):
    """A loss alone, whose gradient is finite; a gradient alone, in one parameter, whose loss is."""
    trainer = tiny_trainer(tmp_path, grad_clip=grad_clip)
    trainer.train_step()
    before = state_of(trainer)
    if what == "loss":

        class Off(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x + value

            @staticmethod
            def backward(ctx, grad):
                return grad

        def forward(idx, targets):
            return SimpleNamespace(loss=Off.apply(trainer.model(idx, targets).loss))

        trainer._forward = forward
    else:
        trainer.model.ln_f.bias.register_hook(lambda grad: grad + value)
    found = trainer.train_step()[:2]
    assert [math.isfinite(number) for number in found] == [what != "loss", what != "gradient"]
    assert (trainer.step, trainer.skipped) == (2, 1)
    after = state_of(trainer)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_moments_that_are_not_finite_are_not_saved(tmp_path):
    """A single number of 1e20 has a finite norm, and an infinite square: nobody could go on from that checkpoint."""
    trainer = tiny_trainer(tmp_path, grad_clip=0.0, save_every=2, keep=1)
    update = trainer.optimizer.step

    def overflowing():
        update()
        if trainer.step == 3:
            trainer.optimizer.state[trainer.model.ln_f.bias]["exp_avg_sq"][0] = math.inf

    trainer.optimizer.step = overflowing
    with pytest.raises(FloatingPointError, match=r"moments, are not finite after step 4.*step-00000002 is kept"):
        trainer.fit()
    trainer.optimizer.step = update
    assert trainer.fit(resume=True).step == 8


def test_a_model_in_eval_mode_is_trained_with_dropout(tmp_path):
    def losses(training: bool) -> list[float]:
        return tiny_trainer(tmp_path, model=tiny_model(dropout=0.5).train(training)).fit(overwrite=True).losses

    assert losses(False) == losses(True)


def test_parts_in_eval_mode_stay_so(tmp_path):
    trainer = tiny_trainer(tmp_path, name="a", eval_every=1, steps=2)
    trainer.model.blocks[0].eval()
    before = [part.training for part in trainer.model.modules()]
    trainer.fit()
    assert [part.training for part in trainer.model.modules()] == before


def test_a_validation_that_is_stopped_gives_none():
    asked = []
    arguments = {"data": tiny_data(100), "batch_size": 2, "seq_len": 10, "device": torch.device("cpu")}
    for at in (1, 3, 5):
        asked.clear()
        assert evaluate(tiny_model(), **arguments, stop=lambda at=at: asked.append(1) or len(asked) == at) is None
        assert len(asked) == at
    asked.clear()
    assert evaluate(tiny_model(), **arguments, stop=lambda: asked.append(1)).tokens == 99
    assert len(asked) == 5  # before each batch


def test_a_shared_tensor_counts_once(tmp_path):
    """In the norm, and among the weights that decay: it would else be clipped and decayed twice."""
    trainer = tiny_trainer(tmp_path)
    assert trainer.model.head.weight is trainer.model.token_emb.weight
    norm = float(trainer._gradient()[0][0, 1])
    squares = {id(p): p.grad.square().sum() for p in trainer.model.parameters()}
    scale = 1.0 if norm <= 1.0 else 1.0 / (norm + 1e-6)  # they are clipped by now
    assert norm * scale == pytest.approx(math.sqrt(sum(squares.values())), rel=1e-4)
