"""`Trainer.fit` against the same training written out: plain torch, one function, no code of the trainer's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastgpt.train.metrics import read_metrics
from fastgpt.train.trainer import TrainConfig

from ..training import tiny_data, tiny_model, tiny_trainer

# No field has its default, no two the same value, and none is without effect: half of the steps are clipped (below).
SETTINGS = {
    "steps": 12, "batch_size": 3, "grad_accum": 2, "seq_len": 13, "lr": 0.02, "warmup_fraction": 0.25,
    "final_lr_fraction": 0.3, "weight_decay": 0.5, "beta1": 0.7, "beta2": 0.99, "grad_clip": 0.9, "seed": 3,
    "eval_every": 5, "save_every": 4, "dtype": "float32",
}  # fmt: skip


def learning_rates(c: TrainConfig) -> np.ndarray:
    """(steps,): a straight line up to the peak, half a turn of a cosine down to the last one."""
    warmup, last = round(c.warmup_fraction * c.steps), c.final_lr_fraction * c.lr
    rise = np.linspace(0.0, c.lr, warmup + 1)[1:]
    fall = last + (c.lr - last) * (1 + np.cos(np.linspace(0.0, np.pi, c.steps - warmup))) / 2
    return np.concatenate([rise, fall])


def window(tokens: np.ndarray, number: int, T: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(T,) inputs and the tokens that follow them; beyond the last token: 0, and -100 for torch to ignore."""
    idx, targets = np.zeros(T, np.int64), np.full(T, -100)
    part = tokens[number * T : number * T + T + 1].astype(np.int64)
    idx[: len(part) - 1], targets[: len(part) - 1] = part[:-1], part[1:]
    return torch.from_numpy(idx), torch.from_numpy(targets)


def windows(tokens: np.ndarray, c: TrainConfig):
    """For ever: all windows of an epoch, in an order of the seed and the epoch."""
    count, epoch = math.ceil((len(tokens) - 1) / c.seq_len), 0
    while True:
        for number in np.random.default_rng([c.seed, epoch]).permutation(count):
            yield window(tokens, number, c.seq_len)
        epoch += 1


def nats(model, idx, targets) -> torch.Tensor:
    """The sum over all targets."""
    return F.cross_entropy(model(idx).logits.flatten(0, 1), targets.flatten(), reduction="sum")


def plain_loop(model, tokens: np.ndarray, val: np.ndarray, c: TrainConfig):
    """Returns ([(loss, lr, norm) of each step], [mean validation loss after each], the optimizer)."""
    torch.manual_seed(c.seed)
    named = dict(model.named_parameters())
    small = [n for n in named if n.endswith("bias") or n.split(".")[-2] in ("ln1", "ln2", "ln_f")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if n not in small], "weight_decay": c.weight_decay},
            {"params": [named[n] for n in small], "weight_decay": 0.0},
        ],
        betas=(c.beta1, c.beta2), eps=1e-8, fused=False, foreach=False,
    )  # fmt: skip
    stream, lines, validations = windows(tokens, c), [], []
    for lr in learning_rates(c):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        micro = [[next(stream) for _ in range(c.batch_size)] for _ in range(c.grad_accum)]
        micro = [(torch.stack([i for i, _ in m]), torch.stack([t for _, t in m])) for m in micro]
        n = sum(int((targets != -100).sum()) for _, targets in micro)
        optimizer.zero_grad()
        total = 0.0
        for idx, targets in micro:
            loss = nats(model, idx, targets) / n
            loss.backward()
            total += float(loss.detach())
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        if norm > c.grad_clip:
            for p in model.parameters():
                p.grad.mul_(c.grad_clip / (norm + 1e-6))  # as torch has it, against a norm of 0
        optimizer.step()
        lines.append((total, lr, norm))
        model.eval()
        with torch.no_grad():
            parts = [window(val, number, c.seq_len) for number in range(math.ceil((len(val) - 1) / c.seq_len))]
            validations.append(sum(float(nats(model, i[None], t[None])) for i, t in parts) / (len(val) - 1))
        model.train()
    return lines, validations, optimizer


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The trainer after fit, its log, and what the plain loop returned for a model of the same weights."""
    runs = tmp_path_factory.mktemp("runs")
    trainer = tiny_trainer(runs, model=tiny_model().double(), **SETTINGS)
    trainer.fit()
    model = tiny_model().double().train()
    found = plain_loop(model, tiny_data().read(0, 700), tiny_data(200, seed=1).read(0, 200), trainer.config)
    return trainer, read_metrics(runs / "run" / "metrics.jsonl"), model, found


def test_every_setting_counts(both):
    trainer, log, _, _ = both
    norms = [line["grad_norm"] for line in log]
    assert 3 <= sum(norm > trainer.config.grad_clip for norm in norms) <= 9, norms
    assert log[-1]["epoch"] > 1  # in which the order is another, and in which the short window has come
    assert trainer.model.config.dropout > 0


def test_every_step_is_the_plain_loops(both):
    """Loss, learning rate and norm before clipping of each."""
    _, log, _, (lines, _, _) = both
    for ours, (loss, lr, norm) in zip(log, lines, strict=True):
        assert ours["loss"] == pytest.approx(loss, rel=1e-9), ours["step"]
        assert ours["lr"] == pytest.approx(lr, rel=1e-12), ours["step"]
        assert ours["grad_norm"] == pytest.approx(norm, rel=1e-9), ours["step"]


def test_the_weights_and_the_moments_are_the_plain_loops(both):
    trainer, _, model, (_, _, optimizer) = both
    for (name, ours), (_, plain) in zip(trainer.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-7, atol=1e-9, msg=name)
        for key in ("exp_avg", "exp_avg_sq"):
            one, other = trainer.optimizer.state[ours][key], optimizer.state[plain][key]
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12, msg=f"{name} {key}")


def test_the_validations_are_the_plain_loops(both):
    """Made at steps 5, 10 and the last, on the validation text, without dropout."""
    _, log, _, (_, validations, _) = both
    found = {line["step"]: line["val_loss"] for line in log if "val_loss" in line}
    assert found.keys() == {5, 10, 12}
    for step, loss in found.items():
        assert loss == pytest.approx(validations[step - 1], rel=1e-9)
