"""Which tokens make up which batch: every epoch shows every token once, in an order that only the seed decides.

The stream of N tokens is cut into ceil((N - 1) / T) windows of T inputs and T targets (the inputs shifted by one); the
last window's missing targets are -100, which the loss ignores. Samples are numbered 0, 1, 2, ... for ever: sample s is
window `permutation(seed, epoch = s // n_windows)[s % n_windows]`. That number is the whole state, so a run resumes
exactly, on any number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import machine
from ..base.settings import SettingError, SettingTypeError, check_integer
from ..kernels._runtime import cdiv
from .dataset import TokenDataset

IGNORED = -100  # torch's ignore_index


class BatchSampler:
    """Batches of (idx, targets), each (batch_size, T) int64, without end.

    With `world_size` processes, each step's world_size * batch_size samples are dealt to the ranks in turn; together
    they see what one process with a batch that large would. `columns` (n,) int64: which of a window's T tokens this
    process takes, where several share each window; None: all.

    Raises:
        ValueError, TypeError: sizes below 1, a rank outside the world, a negative seed, fewer than two tokens.
    """

    columns: Tensor | None = None  # of older pickles too

    def __init__(
        self, dataset: TokenDataset, batch_size: int, seq_len: int, *, seed: int = 0, rank: int = 0,
        world_size: int = 1, columns: Tensor | None = None,
    ) -> None:  # fmt: skip
        check_dataset("BatchSampler", "dataset", dataset)
        for name, value in (("batch_size", batch_size), ("seq_len", seq_len), ("world_size", world_size)):
            check_integer("BatchSampler", name, value, least=1)
        _check_room(batch_size, seq_len)
        check_integer("BatchSampler", "rank", rank, least=0, most=world_size - 1, hint=f" (world_size={world_size})")
        check_integer("BatchSampler", "seed", seed, least=0, most=2**64 - 1)
        self.dataset, self.batch_size, self.seq_len, self.seed = dataset, batch_size, seq_len, seed
        self.rank, self.world_size, self.columns = rank, world_size, columns
        self.n_windows = windows_in(len(dataset), seq_len)
        self.position = 0  # samples dealt so far, over all ranks
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def epoch(self) -> float:
        """Epochs completed so far, with fraction."""
        return self.position / self.n_windows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.next_batch()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """This rank's next (idx, targets), each (batch_size, T or columns) int64; moves on by one step of all."""
        first = self.position + self.rank * self.batch_size
        idx, targets = window_batch(
            self.dataset, [self._window(first + n) for n in range(self.batch_size)], self.seq_len
        )
        self.position += self.batch_size * self.world_size
        if self.columns is not None:
            idx, targets = idx[:, self.columns], targets[:, self.columns]
        return idx, targets

    def ranges(self, first: int, count: int) -> list[tuple[int, int]]:
        """[start, stop) of the stream's tokens in the samples first ... first + count - 1 of all ranks, targets
        included; in the order of the stream, those that touch or overlap as one."""
        other = copy.copy(self)
        found: list[tuple[int, int]] = []
        for window in sorted(other._window(first + n) for n in range(count)):
            start = window * self.seq_len
            stop = min(start + self.seq_len + 1, len(self.dataset))
            if found and start <= found[-1][1]:
                found[-1] = found[-1][0], max(stop, found[-1][1])
            else:
                found.append((start, stop))
        return found

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without the order of the windows, which the seed gives again."""
        return self.__dict__ | {"_epoch": -1, "_order": np.zeros(0, np.int64)}

    def _window(self, sample: int) -> int:
        epoch = sample // self.n_windows
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n_windows)
        return int(self._order[sample % self.n_windows])

    def state_dict(self) -> dict[str, int]:
        """All that is needed to go on from here: plain integers."""
        return {
            "position": self.position, "seed": self.seed, "seq_len": self.seq_len, "n_tokens": len(self.dataset),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, int], *, allow_changes: bool = False) -> None:
        """Go on where `state` was taken; the batch and world sizes may differ.

        With `allow_changes` also with other data, another sequence length or seed: then from the same part of the epoch
        on, in the order that the new ones give.

        Raises:
            ValueError: such a change without `allow_changes`.
        """
        mine = self.state_dict()
        changed = [name for name in ("n_tokens", "seq_len", "seed") if state[name] != mine[name]]
        if changed and not allow_changes:
            differ = ", ".join(f"{name}={state[name]}, this run has {mine[name]}" for name in changed)
            raise ValueError(
                f"BatchSampler: the checkpoint was made with {differ}; resume with the same data and settings, or "
                "start a new run"
            )
        n_windows = windows_in(state["n_tokens"], state["seq_len"])
        self.position = state["position"] * self.n_windows // n_windows


def _check_room(batch_size: int, seq_len: int) -> None:
    """Raise SettingError where the int64 ids and targets of a batch are more than the memory that there is."""
    n_bytes, room = 16 * batch_size * seq_len, machine.host_room()
    if room is not None and n_bytes > room.n_bytes:
        takes = f"batches of {batch_size:,} x {seq_len:,} tokens take {machine.readable(n_bytes)}"
        name, value = ("batch_size", batch_size) if batch_size > 1 else ("seq_len", seq_len)
        raise SettingError("BatchSampler", name, value, f"is too large: {takes}, and {room}; lower it")


def check_dataset(owner: str, name: str, dataset: TokenDataset) -> TokenDataset:
    """`dataset`, which has tokens enough to learn from or to score: two.

    Raises:
        SettingTypeError: no TokenDataset. SettingError: fewer tokens.
    """
    if not isinstance(dataset, TokenDataset):
        need = (
            "must be a TokenDataset: make one with prepare(texts, folder, tokenizer), or open a folder of `fastgpt "
            "prepare` with TokenDataset.open(folder)"
        )
        raise SettingTypeError(owner, name, dataset, need)
    if len(dataset) < 2:
        raise SettingError(
            owner, name, dataset.name, f"has {len(dataset)} tokens; at least 2 are needed: give more text"
        )
    return dataset


def windows_in(n_tokens: int, seq_len: int) -> int:
    """How many windows the tokens are cut into: the last token is a target only, the last window may be shorter."""
    return cdiv(n_tokens - 1, seq_len)


def window_batch(dataset: TokenDataset, windows: list[int], seq_len: int) -> tuple[Tensor, Tensor]:
    """(idx, targets), each (len(windows), T) int64; beyond the end of the data idx is 0 and targets -100."""
    idx = torch.zeros(len(windows), seq_len, dtype=torch.int64, device="cpu")
    targets = torch.full((len(windows), seq_len), IGNORED, dtype=torch.int64, device="cpu")
    for row, window in enumerate(windows):
        start = window * seq_len
        tokens = torch.from_numpy(dataset.read(start, min(start + seq_len + 1, len(dataset))))
        n = len(tokens) - 1
        idx[row, :n], targets[row, :n] = tokens[:-1], tokens[1:]
    return idx, targets


def sequential_batches(
    dataset: TokenDataset, batch_size: int, seq_len: int, max_batches: int | None = None, *, rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Every token once, in order: for validation. At most `max_batches` batches, spread evenly over the data.

    `world_size` processes share these same windows: world_size * batch_size of them at a time are dealt to the ranks in
    turn. Each yields as often as all others: where no window is left for it, one whose targets are all -100.
    """
    n_windows, together = windows_in(len(dataset), seq_len), batch_size * world_size
    chosen = list(range(n_windows))
    if max_batches is not None and max_batches * batch_size < n_windows:
        chosen = [round(at) for at in np.linspace(0, n_windows - 1, max_batches * batch_size)]
    for first in range(0, len(chosen), together):
        mine = chosen[first : first + together][rank * batch_size : (rank + 1) * batch_size]
        idx, targets = window_batch(dataset, mine or chosen[:1], seq_len)
        yield idx, targets if mine else torch.full_like(targets, IGNORED)
