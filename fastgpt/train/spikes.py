"""Loss spikes: steps whose loss is far above those before, told of with the text that they were trained on.

Chowdhery et al. 2022 ("PaLM", arXiv 2204.02311, section 5.1) saw them come from particular batches at particular
weights. Whoever reads the text knows whether it is damaged, or whether the learning rate is too high.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base import files
from ..data.origins import Document, documents_in
from ..data.sampler import BatchSampler
from . import metrics
from .pending import Pending

WINDOW = 200  # losses, by whose mean and deviation the next one is judged
LEAST = 50  # of them, before anything is a spike
NAME = "spikes.jsonl"
_MOST_SHOWN = 3  # documents in a warning; the file has all of them

_log = logging.getLogger("fastgpt")


class Spike(NamedTuple):
    """A loss above mean + k · deviation: those of the `steps` finite losses before it, at most `WINDOW`; deviation² is
    Σ (loss - mean)² / (steps - 1)."""

    loss: float
    mean: float
    deviation: float
    steps: int


class Spikes:
    """Judges the losses of a run, and writes <run>/spikes.jsonl, a line for each spike:

    {"step", "loss", "mean", "deviation", "steps", "tokens": [[start, stop], ...],
     "documents": [[number, start, stop, file], ...]}

    tokens: of the step's global batch, [start, stop) in the training data, targets included; documents: those that they
    are of, by their place in the data that was prepared. A file that cannot be written is a warning.

    k: of `Spike`; 0: none is one.
    """

    def __init__(self, folder: Path, k: float) -> None:
        self.path, self.k = folder / NAME, k
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def go_on(self, step: int, losses: Iterable[float]) -> None:
        """After `step`, with the losses of the steps until then; what is written of later ones is dropped."""
        self.losses = deque((loss for loss in losses if math.isfinite(loss)), maxlen=WINDOW)
        if self.path.exists():
            self._write(step, None)

    def judge(self, loss: float) -> Spike | None:
        """What the next loss is. A spike is one of the losses that the following are judged by."""
        if not math.isfinite(loss):
            return None
        before = list(self.losses)
        self.losses.append(loss)
        if not self.k or len(before) < LEAST:
            return None
        mean, deviation = float(np.mean(before)), float(np.std(before, ddof=1))
        return Spike(loss, mean, deviation, len(before)) if loss > mean + self.k * deviation else None

    def __call__(self, pending: Pending, sampler: BatchSampler) -> None:
        """Judge a step that is read; tell of it where its loss is a spike. Whatever fails is a warning."""
        spike = self.judge(pending.read().loss)
        if spike is not None:
            try:
                self._tell(spike, pending, sampler)
            except Exception as error:
                _log.warning("step %d: a loss spike; %s; training goes on", pending.step, files.reason(error))

    def _tell(self, spike: Spike, pending: Pending, sampler: BatchSampler) -> None:
        tokens = sampler.ranges(pending.begun.position, pending.samples)
        documents = _documents(sampler, tokens)
        _log.warning(
            "step %d: loss %.4f is a spike, over %g standard deviations (%.4f) above the mean %.4f of the last %d; it "
            "is of tokens %s of the training data, %s; all of them are in %s",
            pending.step, spike.loss, self.k, spike.deviation, spike.mean, spike.steps,
            _shown([f"{start}-{stop - 1}" for start, stop in tokens]), _shown([str(d) for d in documents]), self.path,
        )  # fmt: skip
        line = {"step": pending.step} | spike._asdict()
        self._write(pending.step - 1, line | {"tokens": [[*r] for r in tokens], "documents": [[*d] for d in documents]})

    def _write(self, keep: int, line: dict[str, Any] | None) -> None:
        try:
            log = metrics.MetricsLog(self.path, keep_steps=keep)
            try:
                if line is not None:
                    log.write(line)
            finally:
                log.close()
        except OSError as error:
            _log.warning("%s: %s; training goes on", self.path, files.reason(error))


def _documents(sampler: BatchSampler, tokens: list[tuple[int, int]]) -> list[Document]:
    found = [document for start, stop in tokens for document in documents_in(sampler.dataset, start, stop)]
    return sorted(set(found))


def _shown(words: list[str]) -> str:
    more = len(words) - _MOST_SHOWN
    return ", ".join(words[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
