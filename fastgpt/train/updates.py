"""The updates of a training run: batch, forward, backward, clip, AdamW; one after the other, whole or not at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data import TokenDataset
from ..data.prefetch import BatchesAhead
from ..data.sampler import BatchSampler
from . import checkpoint, metrics
from .devices import autocast, resolve_device, resolve_dtype
from .evaluation import fitting_seq_len
from .optim import build_adamw, learning_rate
from .owed import Owed
from .room import check_room_of
from .train_config import TrainConfig


class Updates:
    """`model`, its optimizer and its place in the data, after `step` updates.

    A step is the same whoever runs it: the batch depends on the sampler's position, dropout on the random state.
    """

    def __init__(self, model: nn.Module, train_data: TokenDataset, config: TrainConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device, owner="Trainer")
        self.dtype = resolve_dtype(config.dtype, self.device, owner="Trainer")
        self.seq_len = fitting_seq_len("Trainer", model, config.seq_len)
        check_room_of(
            model, batch_size=config.batch_size, seq_len=self.seq_len, grad_accum=config.grad_accum,
            device=self.device, dtype=self.dtype,
        )  # fmt: skip
        self.model = model.to(self.device)
        self.sampler = BatchSampler(train_data, config.batch_size, self.seq_len, seed=config.seed)
        self.optimizer = build_adamw(
            model, config.lr, weight_decay=config.weight_decay, betas=(config.beta1, config.beta2)
        )
        owned = {p for group in self.optimizer.param_groups for p in group["params"]}
        self._trained = [p for p in model.parameters() if p in owned]
        self.step = 0
        self.owed = Owed()  # of `step`
        self._forward: Callable[..., Any] = torch.compile(model) if config.compile else model
        self._batches = BatchesAhead(self.device)
        self._in_update = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of version 0.1 have no batches made ahead."""
        self.__dict__.update({"_batches": BatchesAhead(state["device"])} | state)

    def train_step(self) -> tuple[float, float, float]:
        """One update. Returns (loss: mean over the step's tokens, norm of the gradient, learning rate).

        An error before the parameters change leaves the trainer as it was, position and random state included.

        Raises:
            FloatingPointError: the loss or the gradient is not finite.
            RuntimeError: an error has ended the update before this one when it had changed some of the parameters.
        """
        if self._in_update:
            raise RuntimeError(
                f"Trainer: update {self.step + 1} was broken off half-way, so the weights are of no step; go on from a "
                "checkpoint: fit(resume=True) or load(folder)"
            )
        config = self.config
        lr = learning_rate(
            self.step, steps=config.steps, peak=config.lr, warmup_fraction=config.warmup_fraction,
            final_fraction=config.final_lr_fraction,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        position, random_state = self.sampler.position, self._random_state()
        try:
            loss, norm = self._gradient()
        except BaseException:
            self.sampler.position = position
            checkpoint.set_rng(random_state)
            raise
        self._in_update = True  # until the step is counted, an error leaves weights of no step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.owed = Owed()
        self._in_update = False
        return loss, norm, lr

    def _gradient(self) -> tuple[float, float]:
        """The gradient of the next batches, clipped. Returns (loss, norm before clipping)."""
        more = self.step + 1 < self.config.steps
        batches = self._batches.take(self.sampler, self.config.grad_accum, more=more)
        counted = sum(batch.counted for batch in batches)
        self.optimizer.zero_grad(set_to_none=True)  # those that others left are not this step's
        if not self.model.training:  # who has put parts of a model in eval mode, to freeze them, finds them so
            self.model.train()
        shares = []
        for batch in batches:
            with autocast(self.device, self.dtype):
                loss = self._forward(self._move(batch.idx), self._move(batch.targets)).loss
            # Each micro-batch weighs as its tokens do: accumulating equals one large batch.
            share = loss * (batch.counted / counted)
            share.backward()
            shares.append(share.detach())
        clip = math.inf if self.config.grad_clip == 0 else self.config.grad_clip
        # Only what is trained: a gradient that someone left on a frozen parameter is not cleared, and does not count.
        norm = torch.nn.utils.clip_grad_norm_(self._trained, clip)
        loss, norm = torch.stack([sum(shares), norm.to(shares[0])]).tolist()  # the step's only wait for the device
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"Trainer: loss {loss}, gradient norm {norm} at step {self.step + 1}; lower lr ({self.config.lr}), or "
                "set grad_clip, and go on from a checkpoint with allow_changes=True (--allow-changes)"
            )
        return loss, norm

    def is_whole(self) -> bool:
        """Whether the parameters are those after `step` updates, and they and their moments finite."""
        return not self._in_update and self._is_finite()

    def _is_finite(self) -> bool:
        # The moments too: a gradient whose square overflows leaves finite weights, and a checkpoint of no use.
        updated = [p for p in self._trained if p in self.optimizer.state]
        moments = [m for p in updated for kind, m in self.optimizer.state[p].items() if kind != "step"]
        return not updated or bool(torch.stack([t.detach().isfinite().all() for t in updated + moments]).all())

    def _random_state(self) -> dict[str, Tensor]:
        state = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            number = torch.cuda.current_device() if self.device.index is None else self.device.index
            state[f"rng/cuda/{number}"] = torch.cuda.get_rng_state(number)
        return state

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation (see `fastgpt.train.metrics`), or None where it is not known."""
        if self._flops_per_token is None:
            return None
        return metrics.mfu(tokens_per_second, self._flops_per_token, self.device, self.dtype)

    @functools.cached_property
    def _flops_per_token(self) -> float | None:
        of_length = getattr(self.model, "flops_per_token", None)
        return None if of_length is None else of_length(self.seq_len)

    def _move(self, batch: Tensor) -> Tensor:
        return batch.to(self.device, non_blocking=True) if self.device.type == "cuda" else batch
