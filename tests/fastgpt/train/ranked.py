"""What the ranks of `test_ranked_updates.py` do, each in a process of its own."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgpt.parallel.world import World
from fastgpt.train.train_config import TrainConfig
from fastgpt.train.updates import Updates

from ..training import tiny_data, tiny_model, tiny_trainer

STEPS, SEQUENCES = 20, 4  # updates, and sequences of each over all ranks
CONFIG = TrainConfig(steps=STEPS, batch_size=SEQUENCES, seq_len=13, lr=1e-2, grad_clip=0.5, device="cpu")


def some_ignored(sampler) -> None:
    """Targets that do not count, unevenly, as the numbers of their row say; of some rows none does."""
    next_batch = sampler.next_batch

    def masked() -> tuple[torch.Tensor, torch.Tensor]:
        idx, targets = next_batch()
        kind = idx.sum(1, keepdim=True) % 4
        ignored = (idx % 3 < kind - 1) | (kind == 3) & (idx[:, :1] % 2 == 0)
        return idx, targets.masked_fill(ignored, -100)

    sampler.next_batch = masked


def updates(world: World | None = None, kind: str = "auto") -> Updates:
    """Of a tiny model on data whose last window is short, without dropout."""
    size = 1 if world is None else world.size
    grad_accum = 2 if size == 2 else 1
    batch_size = SEQUENCES // size // grad_accum
    config = dataclasses.replace(CONFIG, batch_size=batch_size, grad_accum=grad_accum, strategy=kind)
    made = Updates(tiny_model(dropout=0.0, n_layers=2), tiny_data(), config, world=world)
    some_ignored(made.sampler)
    return made


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of a model that may be sharded; collective."""
    found = {name: value.detach() for name, value in model.named_parameters()}
    return {name: v.full_tensor() if hasattr(v, "full_tensor") else v.clone() for name, v in found.items()}


def trained(rank: int, size: int, kind: str) -> dict[str, Any]:
    """The figures of all updates; what all-ignored micro-batches there were; then one that rank 1 spoils."""
    world = World(rank, size, rank, size)
    made = updates(world, kind)
    empty, backward = [], made._backward

    def counting(batches):
        empty.extend(batch for batch in batches if not batch.counted)
        return backward(batches)

    made._backward = counting
    pending = [made.begin_step() for _ in range(STEPS // 2)]
    made._signals.number = 15 if rank == 1 else 0
    pending += [made.begin_step() for _ in range(STEPS - len(pending))]
    read = [p.read() for p in pending]
    found = {
        "losses": [r.loss for r in read], "norms": [r.norm for r in read], "stops": [r.stop for r in read],
        "memory": [r.memory for r in read], "tokens": pending[0].tokens, "empty": len(empty),
        "weights": whole_weights(made.model),
    }  # fmt: skip
    return found | spoiled(made, rank)


def spoiled(made: Updates, rank: int) -> dict[str, Any]:
    """One more update, in which a module of rank 1 alone returns NaN."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("fastgpt").addHandler(handler)
    before = whole_weights(made.model)
    steps = [state["step"].item() for state in made.optimizer.state.values()]
    ffn = made.model.blocks[1].ffn
    handle = ffn.register_forward_hook(lambda *args: args[2] * (math.nan if rank == 1 else 1.0), prepend=True)
    loss, norm, _ = made.train_step()
    handle.remove()
    after = whole_weights(made.model)
    return {
        "spoiled": (loss, norm), "skipped": made.skipped, "said": said,
        "unchanged": all(torch.equal(after[name], value) for name, value in before.items()),
        "moments' steps": steps == [state["step"].item() for state in made.optimizer.state.values()],
        "whole": made.is_whole(),
    }  # fmt: skip


def fitted(rank: int, kind: str, folder: str) -> dict[str, Any]:
    """`Trainer.fit`: rank 1 is told to stop in its step 4; then a run in which it alone has NaN from step 3 on."""
    found: dict[str, Any] = {}
    for name in ("told", "bad"):
        trainer = tiny_trainer(
            Path(folder), name=name, model=tiny_model(dropout=0.0), strategy=kind, steps=12, batch_size=1,
            val=False,
        )  # fmt: skip
        begin_step = trainer.begin_step

        def told(trainer=trainer, begin_step=begin_step):
            if rank == 1 and trainer.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return begin_step()

        def spoil(module, args, output, trainer=trainer):
            return output * (math.nan if rank == 1 and trainer.step >= 2 else 1.0)

        if name == "told":
            trainer.begin_step = told
            result = trainer.fit()
            found[name] = (result.step, result.stopped_by, len(result.losses))
        else:
            trainer.model.blocks[0].ffn.register_forward_hook(spoil)
            try:
                trainer.fit()
            except FloatingPointError as error:
                found[name] = str(error)
    return found
