"""AdamW's parameter groups and update, the learning rate's curve."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastgpt import GPT, GPTConfig
from fastgpt.train.optim import build_adamw, decay_groups, learning_rate


def test_only_matrices_decay():
    model = GPT(GPTConfig(vocab_size=11, max_len=4, n_layers=2, n_heads=2, d_model=8))
    decayed, kept = decay_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert all(names[id(p)].endswith("weight") and ".ln" not in names[id(p)] for p in decayed["params"])
    assert all(names[id(p)].endswith("bias") or "ln" in names[id(p)] for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)  # a tied weight once


def test_update_is_adamw_in_float64():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = build_adamw(model, 0.1, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-6)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in start]
    expected = [p.clone() for p in start]
    for step in range(1, 4):
        loss = sum((p.pow(2) * (n + 1)).sum() for n, p in enumerate(model.parameters()))
        loss.backward()
        for n, p in enumerate(model.parameters()):
            m, v = moments[n]
            m.mul_(0.8).add_(0.2 * p.grad)
            v.mul_(0.9).add_(0.1 * p.grad**2)
            decay = 0.5 if p.dim() >= 2 else 0.0
            expected[n] = expected[n] * (1 - 0.1 * decay)
            expected[n] = expected[n] - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
        optimizer.step()
        optimizer.zero_grad()
    for p, e in zip(model.parameters(), expected):
        torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-12)


def test_fused_where_torch_has_it():
    assert build_adamw(nn.Linear(2, 2), 0.1).defaults["fused"]


def test_nothing_to_train():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_adamw(model, 0.1)


def test_learning_rate_curve():
    lrs = [learning_rate(s, steps=200, peak=1.0) for s in range(200)]
    assert lrs[0] == pytest.approx(0.1)  # 10 warm-up steps
    assert lrs[9] == lrs[10] == 1.0
    assert all(a <= b for a, b in itertools.pairwise(lrs[:10]))
    assert all(a >= b for a, b in itertools.pairwise(lrs[10:]))
    middle = (10 + 199) / 2
    assert learning_rate(int(middle), steps=200, peak=1.0) == pytest.approx(0.55, abs=0.01)
    assert lrs[-1] == pytest.approx(0.1)
    assert learning_rate(500, steps=200, peak=1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_the_ends_of_the_schedule_for_every_number_of_steps(fraction, final):
    """Against the curve written down as points: the warm-up's line, then half a cosine whose last point is the end."""
    for steps in range(1, 61):
        n_up = max(1, round(fraction * steps))
        up, down = np.arange(1, n_up + 1) / n_up, np.linspace(0, math.pi, steps - n_up) if steps > n_up + 1 else math.pi
        expected = [*up, *np.atleast_1d(final + (1 - final) * (0.5 + 0.5 * np.cos(down)))][:steps]
        found = [
            learning_rate(s, steps=steps, peak=0.25, warmup_fraction=fraction, final_fraction=final)
            for s in range(steps + 3)
        ]
        assert found[:steps] == pytest.approx([0.25 * x for x in expected], rel=1e-12, abs=1e-16)
        assert found[steps:] == pytest.approx([0.25 * final] * 3)
        assert found[n_up - 1] == max(found) == 0.25
        assert found[:n_up] == sorted(found[:n_up])
        assert found[n_up:] == sorted(found[n_up:], reverse=True)
        if n_up < steps:
            assert found[steps - 1] == pytest.approx(0.25 * final)


def test_a_state_of_other_shapes_is_refused():
    """By torch alone it would load: the same number of parameters, but another order."""
    torch.manual_seed(0)
    ours, other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)), nn.Sequential(nn.Linear(2, 5), nn.Linear(3, 2))
    optimizer, foreign = build_adamw(ours, 0.1), build_adamw(other, 0.1)
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    foreign.step()
    message = r"AdamW: the state's exp_avg for 0\.weight has shape \(5, 2\), the parameter \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(foreign.state_dict())
    assert not optimizer.state
    again = build_adamw(other, 0.1)
    again.load_state_dict(foreign.state_dict())
    assert all(torch.equal(again.state[p]["exp_avg"], foreign.state[p]["exp_avg"]) for p in other.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "3e-4"}, "build_adamw: lr='3e-4' must be a number"),
        ({"lr": math.nan}, "build_adamw: lr=nan must be a number"),
        ({"weight_decay": -1}, "build_adamw: weight_decay=-1 must be a number"),
        ({"betas": (1.0, 0.9)}, "build_adamw: beta1=1.0 must be a number, at least 0 and below 1"),
        ({"betas": (0.9, 1)}, "build_adamw: beta2=1 must be a number"),
        ({"eps": -1e-8}, "build_adamw: eps=-1e-08 must be a number"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build_adamw(nn.Linear(2, 2), **({"lr": 0.1} | options))


def test_a_schedule_that_is_none():
    with pytest.raises(ValueError, match=r"learning_rate: steps=0 must be an integer, at least 1"):
        learning_rate(0, steps=0, peak=1.0)
    with pytest.raises(TypeError, match=r"learning_rate: step=1\.5 must be an integer"):
        learning_rate(1.5, steps=3, peak=1.0)
