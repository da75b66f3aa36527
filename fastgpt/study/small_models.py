"""Small models that learn Shakespeare in seconds, for pictures that should show something learned.

small = trained(lambda vocab_size: OneHeadLM(vocab_size, d_model=32, max_len=64), seconds=10.0, seed=0)
small.model, small.tokenizer, small.loss
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..data import shakespeare_tokens
from ..data.sampler import BatchSampler
from ..data.tokenizer import Tokenizer
from ..model.gpt import GPT
from ..model.one_head import OneHeadLM
from ..train.optim import build_adamw, learning_rate

BATCH_SIZE = 16  # sequences of max_len tokens
LR = 1e-2  # the highest of the schedule; what one layer bears

Model = GPT | OneHeadLM
Watch = Callable[[int], contextlib.AbstractContextManager[Callable[[], bool]]]  # of the number of steps


@dataclass(frozen=True)
class Small:
    """A model in eval mode, and how it came to be.

    loss     mean over the last tenth of the steps, of their own batches, nats per token; None: untrained
    tokens   seen in training
    seconds  that training took
    """

    model: Model
    tokenizer: Tokenizer
    steps: int
    tokens: int
    seconds: float
    loss: float | None


def trained(
    make: Callable[[int], Model], *, seconds: float = 10.0, steps: int | None = None, seed: int = 0, lr: float = LR,
    watch: Watch | None = None,
) -> Small:  # fmt: skip
    """`make(vocab_size)`, trained on the embedded Shakespeare on the CPU: AdamW, batches of 16.

    lr: the highest learning rate, after a warm-up and before a cosine's fall to a tenth.
    steps: how many (0: untrained); None: as many as fit into `seconds`, by timing a few of a throw-away copy. The same
    seed and number of steps make the same model on the same machine.
    watch(steps): shows how far it is; what its context gives is called after each step.
    """
    tokenizer = Tokenizer.named("shakespeare")
    data = shakespeare_tokens("train", tokenizer)

    def start() -> tuple[Model, BatchSampler, torch.optim.Optimizer]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make(tokenizer.vocab_size)
        sampler = BatchSampler(data, BATCH_SIZE, model.config.max_len, seed=seed)
        return model, sampler, build_adamw(model, lr, weight_decay=0.0)

    if steps is None:
        steps = _steps_in(seconds, lr, *start())
    model, sampler, optimizer = start()
    began, losses = time.perf_counter(), []
    with contextlib.nullcontext(lambda: False) if watch is None else watch(steps) as stepped:
        for step in range(steps):
            now = learning_rate(step, steps=steps, peak=lr, warmup_fraction=0.1, final_fraction=0.1)
            losses.append(_step(model, sampler, optimizer, now))
            stepped()
    last = losses[-max(1, steps // 10) :]
    loss = sum(last) / len(last) if last else None
    tokens = steps * BATCH_SIZE * model.config.max_len
    return Small(model.eval(), tokenizer, steps, tokens, time.perf_counter() - began, loss)


def _steps_in(seconds: float, lr: float, model: Model, sampler: BatchSampler, optimizer: torch.optim.Optimizer) -> int:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        _step(model, sampler, optimizer, lr)
        times.append(time.perf_counter() - began)
    return int(max(1, min(seconds / sorted(times)[2], 1_000_000)))  # the first steps warm up


def _step(model: Model, sampler: BatchSampler, optimizer: torch.optim.Optimizer, lr: float) -> float:
    """One update; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = model(*sampler.next_batch()).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
