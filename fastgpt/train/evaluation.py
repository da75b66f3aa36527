"""`evaluate`: a model's loss over a text, per token and per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..base.settings import SettingError, check_integer
from ..data import TokenDataset
from ..data.sampler import IGNORED, check_dataset, sequential_batches
from ..data.tokenizer import Tokenizer
from ..model.modes import evaluating
from ..parallel.world import World
from . import metrics, sharing
from .devices import autocast


@dataclass(frozen=True)
class Validation:
    """loss (nats per token), perplexity, bits_per_byte (None without a tokenizer), tokens that were scored."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int

    @property
    def is_finite(self) -> bool:
        """False where the model gives NaN or an infinite loss."""
        return math.isfinite(self.loss)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: TokenDataset,
    *,
    batch_size: int,
    device: torch.device,
    seq_len: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_batches: int | None = None,
    tokenizer: Tokenizer | None = None,
    stop: Callable[[], bool] | None = None,
    world: World | None = None,
) -> Validation | None:
    """The model's loss over `data`, every token scored once in windows of `seq_len`; None if `stop` said so.

    Args:
        seq_len: tokens per window; the model's max_len if not given.
        max_batches: score only so many batches, spread evenly over the data; the same ones on any number of ranks,
            which share them.
        tokenizer: bits per byte need it; they count the bytes of the scored tokens.
        stop: asked before each batch; where one rank is told to stop, all do.
        world: the ranks that share the work, all of which call this and get the same result; None: this one alone.

    Each module of the model is afterwards in the mode that it was in.

    Raises:
        ValueError, TypeError: a size below 1, a seq_len beyond the model's max_len, data of fewer than 2 tokens.
    """
    check_integer("evaluate", "batch_size", batch_size, least=1)
    if max_batches is not None:
        check_integer("evaluate", "max_batches", max_batches, least=1)
    check_dataset("evaluate", "data", data)
    seq_len = fitting_seq_len("evaluate", model, seq_len)
    lengths = None if tokenizer is None else torch.from_numpy(tokenizer.token_bytes())
    world = World() if world is None else world
    nats, tokens, n_bytes = 0.0, 0, 0
    at = sharing.place(getattr(model, "ring", None), world, seq_len)
    batches = sequential_batches(data, batch_size, seq_len, max_batches, rank=at.rank, world_size=at.size)
    with evaluating(model):
        for idx, targets in batches:
            idx, targets = sharing.cut(idx, at.columns), sharing.cut(targets, at.columns)
            if stop is not None and any(world.objects(stop())):
                return None
            with autocast(device, dtype):
                loss = model(idx.to(device), targets.to(device)).loss
            valid = targets[targets != IGNORED]
            if len(valid) == 0:  # there was nothing left for this rank, and its loss is a mean over nothing
                continue
            nats += float(loss) * valid.numel()
            tokens += valid.numel()
            n_bytes += 0 if lengths is None else int(lengths[valid].sum())
    if world.size > 1:
        sums = [sum(column) for column in zip(*world.objects((nats, tokens, n_bytes)), strict=True)]
        nats, tokens, n_bytes = float(sums[0]), int(sums[1]), int(sums[2])
    loss = nats / tokens
    return Validation(loss, metrics.perplexity(loss), metrics.bits_per_byte(nats, n_bytes), tokens)


def fitting_seq_len(owner: str, model: nn.Module, seq_len: int | None) -> int:
    """`seq_len`, or the model's max_len if it is None.

    Raises:
        SettingError: beyond max_len; or None, and the model has no `config.max_len`. SettingTypeError: no integer.
    """
    max_len = getattr(getattr(model, "config", None), "max_len", None)
    if seq_len is None:
        if max_len is None:
            raise SettingError(owner, "seq_len", None, "must be given: this model has no config.max_len")
        return max_len
    seq_len = check_integer(owner, "seq_len", seq_len, least=1)
    if max_len is not None and seq_len > max_len:
        need = f"exceeds the model's max_len={max_len}; lower it, or make the model with a larger max_len"
        raise SettingError(owner, "seq_len", seq_len, need)
    return seq_len
