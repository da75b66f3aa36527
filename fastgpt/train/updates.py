"""The updates of a training run: batch, forward, backward, clip, AdamW; one after the other, whole or not at all.

The host never waits for the device inside a step: `begin_step` tells the device of it, and its figures are read when
the next one has begun (`pending.py`). So what is not finite is found on the device, where AdamW then leaves weights and
moments as they were; which step that was, and where it came from, is said when its figures are read (`diagnosis.py`).

Several ranks (`fastgpt.parallel`) make one update together: of the tokens that count over all of them, with the
gradient, its norm and the loss of all.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data import TokenDataset
from ..data.prefetch import Batch, BatchesAhead
from ..data.sampler import BatchSampler
from ..model import remat
from ..nn._sharded import local
from ..parallel.launch import current
from ..parallel.strategy import Strategy
from ..parallel.world import World
from . import checkpoint, diagnosis, metrics, sharing
from .devices import autocast, resolve_device, resolve_dtype
from .evaluation import fitting_seq_len
from .optim import build_adamw, learning_rate, skips_on_device
from .owed import Owed
from .pending import Begun, Mark, Pending
from .placing import choose, config_of, place
from .room import check_room_of
from .stopping import StopSignals
from .train_config import TrainConfig

MOST_SKIPPED = 3  # steps in a row, after which training stops

_log = logging.getLogger("fastgpt")


class Updates:
    """`model`, its optimizer and its place in the data, after `step` updates.

    A step is the same whoever runs it: the batch depends on the sampler's position, dropout on the random state.

    skipped     updates whose loss or gradient was not finite, which changed nothing, so far
    in_a_row    the newest of them, without another between
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: TokenDataset,
        config: TrainConfig,
        *,
        world: World | None = None,
        fill: Callable[[nn.Module], object] | None = None,
    ) -> None:
        """world: of this process; None: that of torch.distributed, or alone. fill: see `placing.place`."""
        if world is None or world.size == 1:
            self.device = resolve_device(config.device, owner="Trainer")
            self.world = world = current(self.device) if world is None else world
        else:
            self.device, self.world = world.device, world
        self.config = config = config.on_ranks(world.size)
        self.dtype = resolve_dtype(config.dtype, self.device, owner="Trainer")
        self.seq_len = fitting_seq_len("Trainer", model, config.seq_len)
        self.chosen = choose(config, config_of(model), world)
        check_room_of(
            model, batch_size=config.batch_size, seq_len=self.seq_len // config.context_parallel,
            grad_accum=config.grad_accum, device=self.device, dtype=self.dtype, shards=self.chosen.shards,
            remat=config.remat,
        )  # fmt: skip
        if config.remat != "none":
            remat.apply(model, config.remat, owner="TrainConfig")
        whole = config.compile and not remat.compile_blocks(model)
        self.model = model
        at = sharing.place(sharing.join(model, config, world, self.seq_len), world, self.seq_len)
        self.strategy = place(model, self.chosen, world, device=self.device, dtype=self.dtype, fill=fill)
        self.sampler = BatchSampler(
            train_data, config.batch_size, self.seq_len, seed=config.seed, rank=at.rank, world_size=at.size,
            columns=at.columns,
        )  # fmt: skip
        self.optimizer = build_adamw(
            model, config.lr, weight_decay=config.weight_decay, betas=(config.beta1, config.beta2)
        )
        owned = {p for group in self.optimizer.param_groups for p in group["params"]}
        self._trained = [p for p in model.parameters() if p in owned]
        self.step = 0
        self.owed = Owed()  # of `step`
        self._forward: Callable[..., Any] = torch.compile(self.strategy.forward) if whole else self.strategy.forward
        self._batches = BatchesAhead(self.device)
        self._signals = StopSignals()
        self.skipped, self._told_of_waiting = 0, False
        self._start_afresh()

    def _start_afresh(self) -> None:
        """The state is that after `step`, whatever had begun before."""
        self._in_update = False
        self._unsettled: Pending | None = None
        self._flows_from: Mark | None = None  # the end of the step before, if nothing has come between
        self.in_a_row = 0

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: without what is on its way from the device."""
        return self.__dict__ | {"_unsettled": None, "_flows_from": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of version 0.1 have no batches made ahead, no world, and skipped nothing."""
        self.skipped, self._told_of_waiting = 0, False
        self.world, self._signals = World(device=state["device"]), StopSignals()
        self.strategy = Strategy(state["model"], self.world)
        self._batches = BatchesAhead(state["device"])
        self._start_afresh()
        self.__dict__.update(state)

    def train_step(self) -> tuple[float, float, float]:
        """One update, waited for. Returns (loss: mean over the step's tokens, norm of the gradient, learning rate).

        One whose loss or gradient is not finite is skipped: it counts as a step, and changes nothing. An error before
        the parameters change leaves the trainer as it was, position and random state included.

        Raises:
            FloatingPointError: it is the third in a row that was skipped.
            RuntimeError: an error has ended the update before this one when it had changed some of the parameters.
        """
        begun = self.begin_step()
        self.settle()
        loss, norm, _, _ = begun.read()
        return loss, norm, begun.lr

    def begin_step(self) -> Pending:
        """Tell the device of one update, and settle the one before. Waits for no more than that one.

        Raises:
            as `train_step`, of the step before; then this one has not begun.
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
        since = Mark(self.device) if self._flows_from is None else self._flows_from
        position, random_state = self.sampler.position, self._random_state()
        self.world.mark(self.step + 1)
        try:
            values, batches = self._gradient()
            if self._settled():  # a second pass over the step before has used the gradients
                self._go_back(position, random_state)
                values, batches = self._gradient()
        except BaseException:
            self._go_back(position, random_state)
            raise
        pending = Pending(values, Begun(batches, position, random_state), step=self.step + 1, lr=lr)
        self._in_update = True  # until the step is counted, an error leaves weights of no step
        self._apply(values)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.owed = Owed()
        self._in_update = False
        self._unsettled, self._flows_from = pending, Mark(self.device)
        samples = config.batch_size * self.sampler.world_size * config.grad_accum
        return pending.ended(
            epoch=self.sampler.epoch, samples=samples, tokens=samples * self.seq_len, since=since, done=self._flows_from
        )

    def settle(self, *, explain: bool = True) -> None:
        """Wait for the step that has begun last, if it is not settled: skipped steps are counted and told of.

        explain: with a second pass that looks where it came from.

        Raises:
            FloatingPointError: as `train_step`.
        """
        self._flows_from = None
        self._settled(explain=explain)

    def _settled(self, *, explain: bool = True) -> bool:
        """Settle the step that has begun last. Returns whether a second pass was made over it."""
        last, self._unsettled = self._unsettled, None
        if last is None:
            return False
        found = last.read()
        if found.is_finite:
            self.in_a_row, last.skipped = 0, self.skipped
            return False
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        last.skipped = self.skipped
        what = f"loss {found.loss}, gradient norm {found.norm}"
        where = f"; {self._explanation(last.begun)}" if explain else ""
        if self.world.is_first:
            _log.warning("step %d is skipped: %s%s", last.step, what, where)
        if self.in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"Trainer: {what} at step {last.step}, the last of {self.in_a_row} in a row that were skipped{where}; "
                f"lower lr ({self.config.lr}), or set grad_clip, and go on from a checkpoint with allow_changes=True "
                "(--allow-changes)"
            )
        return explain

    def _explanation(self, begun: Begun) -> str:
        """Where a step was not finite, by a second pass over it, which leaves no gradient and no other random state."""
        random_state = self._random_state()

        def again() -> None:
            checkpoint.set_rng(begun.random_state)
            self._backward(begun.batches)

        try:
            return diagnosis.explain(self.model, again, self.world)
        finally:
            checkpoint.set_rng(random_state)
            self.optimizer.zero_grad(set_to_none=True)

    def _go_back(self, position: int, random_state: dict[str, Tensor]) -> None:
        self.sampler.position = position
        checkpoint.set_rng(random_state)

    def _gradient(self) -> tuple[Tensor, list[Batch]]:
        """The gradient of the next batches, clipped. Returns (what `Pending` takes, the batches)."""
        more = self.step + 1 < self.config.steps
        batches = self._batches.take(self.sampler, self.config.grad_accum, more=more)
        loss = self._backward(batches)
        most = math.inf if self.config.grad_clip == 0 else self.config.grad_clip
        # Only what is trained: a gradient that someone left on a frozen parameter is not cleared, and does not count.
        norm = self.strategy.clip(self._trained, most)
        values = torch.stack([loss, norm.to(loss)]).double()
        if self.world.size > 1:
            host = [float(self._signals.number), float(metrics.memory_bytes(self.device))]
            values = torch.cat([values, self._on_device(host)])
        return self.world.gathered(values), batches

    def _backward(self, batches: list[Batch]) -> Tensor:
        """Forward and backward of one update's micro-batches. Returns this rank's share of the loss, on the device."""
        shares, of_all = [], self._share_of_all(batches)
        self.optimizer.zero_grad(set_to_none=True)  # those that others left are not this step's
        if not self.model.training:  # who has put parts of a model in eval mode, to freeze them, finds them so
            self.model.train()
        for number, batch in enumerate(batches, 1):
            # Where no target counts the mean over them is NaN. Any others do in their place, and weigh nothing; the
            # other ranks wait for this one's part in the backward.
            targets = batch.targets if batch.counted else batch.idx
            with self.strategy.accumulating(last=number == len(batches)):
                with autocast(self.device, self.dtype):
                    loss = self._forward(self._move(batch.idx), self._move(targets)).loss
                # Each micro-batch weighs as its tokens do: accumulating equals one large batch.
                share = loss * of_all(batch, loss)
                (share if self.strategy.share == 1 else share * self.strategy.share).backward()
            shares.append(share.detach())
        return sum(shares[1:], shares[0])

    def _share_of_all(self, batches: list[Batch]) -> Callable[[Batch, Tensor], float | Tensor]:
        """What gives a batch's part of all tokens that count, over all micro-batches of all ranks."""
        counted = sum(batch.counted for batch in batches)
        if self.world.size == 1:
            return lambda batch, _: batch.counted / counted if counted else math.nan
        total = self.world.gathered(self._on_device([float(counted)])).sum()
        return lambda batch, loss: (batch.counted / total).to(loss.dtype)

    def _on_device(self, values: list[float]) -> Tensor:
        """(n,) float64, copied without waiting."""
        on_host = torch.tensor(values, dtype=torch.float64, device="cpu", pin_memory=self.device.type == "cuda")
        return self._move(on_host)

    def _apply(self, values: Tensor) -> None:
        """AdamW's update, unless loss or norm of one of the ranks, `values[:, :2]`, is not finite."""
        is_bad = 1 - values[:, :2].isfinite().all().float()
        if not skips_on_device(self.optimizer):
            if not self._told_of_waiting and self.world.is_first:
                kind = type(self.optimizer).__name__
                _log.warning("%s is not fused, so each step waits for the device, to be skipped if not finite", kind)
            self._told_of_waiting = True
            if not is_bad:
                self.optimizer.step()
            return
        scaled: Any = self.optimizer  # by these attributes torch.amp's GradScaler tells it too
        scaled.grad_scale, scaled.found_inf = None, is_bad
        try:
            self.optimizer.step()
        finally:
            del scaled.grad_scale, scaled.found_inf

    def is_whole(self) -> bool:
        """Whether the parameters are those after `step` updates, and they and their moments finite."""
        return not self._in_update and self._is_finite()

    def _is_finite(self) -> bool:
        # The moments too: a gradient whose square overflows leaves finite weights, and a checkpoint of no use.
        updated = [p for p in self._trained if p in self.optimizer.state]
        moments = [m for p in updated for kind, m in self.optimizer.state[p].items() if kind != "step"]
        mine = torch.ones((), dtype=torch.bool, device=self.device)
        for t in map(local, updated + moments):
            mine = mine & t.isfinite().all()
        return bool(self.world.gathered(mine.float().view(1)).all())

    def _random_state(self) -> dict[str, Tensor]:
        state = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            number = torch.cuda.current_device() if self.device.index is None else self.device.index
            state[f"rng/cuda/{number}"] = torch.cuda.get_rng_state(number)
        return state

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation of each device (see `fastgpt.train.metrics`) when all of them together make so many
        tokens; None where it is not known."""
        if self._flops_per_token is None:
            return None
        return metrics.mfu(tokens_per_second / self.world.size, self._flops_per_token, self.device, self.dtype)

    @functools.cached_property
    def _flops_per_token(self) -> float | None:
        of_length = getattr(self.model, "flops_per_token", None)
        return None if of_length is None else of_length(self.seq_len)

    def _move(self, batch: Tensor) -> Tensor:
        return batch.to(self.device, non_blocking=True) if self.device.type == "cuda" else batch
