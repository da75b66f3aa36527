"""`Pending`: what a step measured, on its way from the device to the host, read when nobody has to wait for it."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.prefetch import Batch


class Measured(NamedTuple):
    """What a step measured, over all ranks.

    loss    mean over the tokens of the step that count, nats per token
    norm    of the gradient, before clipping
    stop    number of a signal that has come to one of the ranks, or 0
    memory  bytes: the largest of the ranks

    None for `stop` and `memory` on one device, where the host knows them without being told.
    """

    loss: float
    norm: float
    stop: int | None
    memory: int | None

    @property
    def is_finite(self) -> bool:
        """Whether loss and norm are: else the step was skipped."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.norm))


class Begun(NamedTuple):
    """Where a step began: what a second pass over it needs."""

    batches: list[Batch]
    position: int  # of the sampler
    random_state: dict[str, Tensor]


class Pending:
    """A step that the device has been told of.

    step    number of the update, from 1
    lr      its learning rate
    epoch   epochs of the data behind it
    samples of the step, over all ranks
    tokens  of these, ignored ones too
    begun   where it began
    skipped steps that were skipped up to this one; known when it is settled (`Updates.settle`)

    `read` gives the figures without waiting for more than this step.
    """

    def __init__(self, values: Tensor, begun: Begun, *, step: int, lr: float) -> None:
        """values (ranks, 2 or 4) float64 on the device: loss share, norm, and among several ranks stop and memory."""
        self.step, self.lr, self.begun, self.skipped = step, lr, begun, 0
        self.epoch, self.samples, self.tokens = 0.0, 0, 0
        self._since: Mark | None = None
        self._done: Mark | None = None
        self._measured: Measured | None = None
        self._copied: Mark | None = None
        if values.device.type == "cuda":  # a copy to pinned memory is waited for by its event; any other waits for all
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = Mark(values.device)
        else:
            self._host = values

    def ended(self, *, epoch: float, samples: int, tokens: int, since: Mark, done: Mark) -> Pending:
        """The step's end is enqueued: `done`; its time counts from `since`."""
        self.epoch, self.samples, self.tokens = epoch, samples, tokens
        self._since, self._done = since, done
        return self

    @property
    def done(self) -> Mark:
        """When the device has ended the step."""
        assert self._done is not None
        return self._done

    @property
    def seconds(self) -> float:
        """From the end of the step before it, or from its own begin where there was a pause between the two."""
        assert self._since is not None
        return self.done.seconds_after(self._since)

    def read(self) -> Measured:
        """What the step measured. Waits for this step alone, and only the first time."""
        if self._measured is None:
            if self._copied is not None:
                self._copied.wait()
            values = self._host.numpy()
            with np.errstate(invalid="ignore"):
                loss = float(values[:, 0].sum())  # in the same order on all ranks: the same bits
            several = values.shape[1] > 2
            self._measured = Measured(
                loss,
                float(values[:, 1].max()),  # numpy's max of a NaN is NaN
                int(values[:, 2].max()) if several else None,
                int(values[:, 3].max()) if several else None,
            )
        return self._measured


class Mark:
    """A moment of the device's own time: when it has done what it was told until now."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._time = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        else:
            self._time = perf_counter()

    def wait(self) -> None:
        """Until then."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_after(self, earlier: Mark) -> float:
        """Seconds from `earlier` to this one. Waits for this one."""
        self.wait()
        if self._event is not None and earlier._event is not None:
            return earlier._event.elapsed_time(self._event) / 1000
        return self._time - earlier._time
