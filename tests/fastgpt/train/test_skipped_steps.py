"""A step that is not finite changes nothing, is counted, and says where it came from; three in a row end a run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastgpt.train import checkpoint, diagnosis
from fastgpt.train.metrics import read_metrics
from fastgpt.train.optim import build_adamw, skips_on_device

from ..training import tiny_model, tiny_trainer


def bad_from(trainer, *steps: int, where: str = "ln_f", gradient: bool = False):
    """`trainer` in whose updates of these numbers a module returns NaN, or has a gradient that is: the second pass over
    them too."""
    module = trainer.model.get_submodule(where)
    backward = trainer._backward
    known: list[tuple[list, int]] = []

    def marked(batches):
        step = next((step for those, step in known if those is batches), trainer.step + 1)
        known.append((batches, step))
        handle = module.register_forward_hook(spoil, prepend=True) if step in steps else None
        try:
            return backward(batches)
        finally:
            if handle is not None:
                handle.remove()

    def spoil(_module, _inputs, output):
        parts = list(output) if isinstance(output, tuple) else [output]
        if gradient:
            parts[0].register_hook(lambda grad: grad * math.nan)
        else:
            parts[0] = parts[0] * math.nan
        return tuple(parts) if isinstance(output, tuple) else parts[0]

    trainer._backward = marked
    return trainer


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]


def test_skipped_steps_are_in_the_metrics_and_counted(tmp_path, caplog):
    result = bad_from(tiny_trainer(tmp_path, name="a", val=False), 3, 5, 6).fit()
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["loss"] is None for line in lines] == [False, False, True, False, True, True, False, False]
    assert [line.get("skipped") for line in lines] == [None, None, 1, 1, 2, 3, 3, 3]
    assert result.step == 8
    assert [math.isnan(loss) for loss in result.losses] == [line["loss"] is None for line in lines]
    assert [said.split(":")[0] for said in warnings(caplog)] == [f"step {n} is skipped" for n in (3, 5, 6)]


@pytest.mark.parametrize("ways", [{}, {"save_every": 1}, {"eval_every": 1}])
def test_three_in_a_row_are_the_end_and_the_last_good_checkpoint_stays(tmp_path, ways):
    """However the figures are read: late, or at once; nothing is dropped for a checkpoint of skipped steps."""
    trainer = bad_from(tiny_trainer(tmp_path, name="a", keep=1, steps=12, **ways), 3, 5, 6, 7, 8, 9)
    good = []
    settled = trainer._settled
    trainer._settled = lambda **options: (good.append(copy.deepcopy(trainer.model.state_dict())), settled(**options))[1]
    with pytest.raises(FloatingPointError, match=r"at step 7, the last of 3 in a row that were skipped; the first"):
        trainer.fit()
    assert trainer.step == 7
    root = tmp_path / "a" / "checkpoints"
    found = checkpoint.latest(root)
    assert found.name == "step-00000007"
    if "save_every" in ways:
        assert (root / "step-00000004").is_dir()
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert lines[-1]["skipped"] == 4
    again = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a", keep=1, steps=12, **ways)
    again.load(found)
    assert again.is_whole()
    assert all(torch.equal(value, good[-1][name]) for name, value in again.model.state_dict().items())


def test_moments_and_their_steps_are_as_if_it_had_not_been(tmp_path):
    trainer = bad_from(tiny_trainer(tmp_path), 2)
    trainer.train_step()
    before = copy.deepcopy(trainer.optimizer.state_dict()["state"])
    trainer.train_step()
    after = trainer.optimizer.state_dict()["state"]
    for number, state in before.items():
        for kind, value in state.items():
            assert torch.equal(value, after[number][kind]), kind
    assert not hasattr(trainer.optimizer, "found_inf")


@pytest.mark.parametrize("steps", [(2,), (2, 3)])
def test_late_or_at_once_the_bits_are_the_same(tmp_path, steps):
    """What follows a skipped step has begun when that is known; the second pass over it costs the next one nothing."""
    late = bad_from(tiny_trainer(tmp_path, name="late", val=False, grad_accum=2), *steps)
    result = late.fit()
    at_once = bad_from(tiny_trainer(tmp_path, name="b", val=False, grad_accum=2), *steps)
    torch.manual_seed(0)
    losses = [at_once.train_step()[0] for _ in range(8)]
    assert result.losses[:1] == losses[:1]
    assert result.losses[len(steps) + 1 :] == losses[len(steps) + 1 :]
    assert all(map(torch.equal, late.model.parameters(), at_once.model.parameters()))


@pytest.mark.parametrize("where", ["blocks.0.attn", "blocks.0.ffn", "ln_f"])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_first_module_is_named(tmp_path, caplog, where, gradient):
    trainer = bad_from(tiny_trainer(tmp_path), 1, where=where, gradient=gradient)
    trainer.train_step()
    what = "gradient of the output" if gradient else "output"
    (said,) = warnings(caplog)
    assert said.endswith(f"the first that is not finite is the {what} of {where}")
    trainer.train_step()
    assert len(warnings(caplog)) == 1


def test_a_weight_that_is_not_finite_is_named(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.pos_emb.weight[3] = math.inf
    trainer.train_step()
    assert warnings(caplog)[0].endswith("is the output of pos_emb, whose weight is not finite")


def test_a_gradient_of_one_parameter_alone_is_named(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path)
    trainer.model.ln_f.bias.register_hook(lambda grad: grad + math.nan)
    trainer.train_step()
    assert warnings(caplog)[0].endswith("the first that is not finite is the gradient of ln_f.bias")


def test_where_only_the_norm_overflows_the_largest_gradient_is_named(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path)
    trainer.model.ln_f.bias.register_hook(lambda grad: torch.full_like(grad, 1e30))
    loss, norm, _ = trainer.train_step()
    assert math.isfinite(loss)
    assert math.isinf(norm)
    assert warnings(caplog)[0].endswith("gradients of all modules finite; the largest gradient is 1e+30, of ln_f.bias")


def test_a_loss_alone_is_named(tmp_path, caplog):
    model = tiny_model()
    forward = model.forward

    def off(*args, **options):
        out = forward(*args, **options)
        out.loss = out.loss * math.inf
        return out

    model.forward = off
    tiny_trainer(tmp_path, model=model).train_step()
    assert warnings(caplog)[0].endswith("the first that is not finite is the loss")


def test_the_second_pass_computes_what_the_first_did():
    """Parts that choose an implementation run their children one by one where these have hooks."""
    model = tiny_model()
    watched = {name for name, _ in diagnosis._watchable(model)}
    assert watched >= {"", "token_emb", "pos_emb", "blocks.0", "blocks.0.attn", "blocks.0.ffn", "ln_f"}
    assert not [name for name in watched if name == "head" or name.startswith(("blocks.0.attn.", "blocks.0.ffn."))]


def test_a_second_pass_leaves_no_hooks(tmp_path):
    trainer = bad_from(tiny_trainer(tmp_path), 1)
    trainer.train_step()
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_second_pass_that_fails_ends_nothing(tmp_path, caplog):
    trainer = bad_from(tiny_trainer(tmp_path), 1)
    backward, calls = trainer._backward, []

    def once(batches):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return backward(batches)

    trainer._backward = once
    trainer.begin_step()
    random_state = torch.get_rng_state()
    trainer.settle()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert warnings(caplog)[0].endswith("a second pass over it failed (OutOfMemoryError: CUDA out of memory.)")
    assert trainer.train_step()[0] > 0


def test_an_optimizer_that_cannot_skip_on_the_device_is_asked_first(tmp_path, caplog):
    trainer = bad_from(tiny_trainer(tmp_path), 1, 2)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1, momentum=0.9)
    assert not skips_on_device(trainer.optimizer)
    assert skips_on_device(build_adamw(nn.Linear(2, 2), 0.1))
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train_step()
    trainer.train_step()
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert sum("waits for the device" in record.getMessage() for record in caplog.records) == 1
    trainer.train_step()
    assert not all(map(torch.equal, before, trainer.model.parameters()))
