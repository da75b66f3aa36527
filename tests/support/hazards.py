"""Data races of a kernel, from an interpreter that runs one thread: what must not happen without a barrier between.

The threads of a program share its tiles out among them, in a layout that only the compiler knows. One thing is certain:
a load and a store of tiles of one shape at the same addresses give each element to the same thread both times, so that
a gradient may be written over the value that it was computed from. Every other pair of accesses to one address, one of
them a store, may belong to two threads, and a barrier must lie between: a scalar (each thread reads it for itself)
that lies in a tile, tiles that overlap shifted, the re-reading of what was written. Two programs have no barrier
between them at all.

    with interpret(), Hazards() as hazards:
        cross_entropy(logits, target, inplace=True).backward()
    assert not hazards.found

A sum over lanes has barriers, too, where it crosses warps; that is the compiler's choice, and does not count here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest


@dataclass(frozen=True)
class _Access:
    """One load or store of a tile: the addresses masked in (sorted), the place of each in the tile, the tile's size."""

    kind: str  # "load" or "store"
    addresses: np.ndarray
    places: np.ndarray
    size: int


class Hazards:
    """Collects in `found` what may race in the kernels run inside the block: one line for each pair of accesses."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._program: tuple[int, ...] = ()
        self._since_barrier: list[_Access] = []
        self._mine: list[_Access] = []  # everything that the current program has done
        self._others: list[_Access] = []  # everything that the programs before it have done

    def __enter__(self) -> Hazards:
        upstream = pytest.importorskip("triton.runtime.interpreter")
        builder, executor = upstream.InterpreterBuilder, upstream.GridExecutor
        load, store = builder.create_masked_load, builder.create_masked_store
        barrier, begin, launch = builder.create_barrier, builder.set_grid_idx, executor.__call__

        def watched_load(self_, pointers, mask, *args, **kwargs):
            self._access("load", pointers.data, mask.data)
            return load(self_, pointers, mask, *args, **kwargs)

        def watched_store(self_, pointers, value, mask, *args, **kwargs):
            self._access("store", pointers.data, mask.data)
            return store(self_, pointers, value, mask, *args, **kwargs)

        def watched_barrier(self_):
            self._since_barrier.clear()
            return barrier(self_)

        def watched_begin(self_, *index):
            self._end_program()
            self._program = index
            return begin(self_, *index)

        def watched_launch(executor_, *args, **kwargs):
            try:
                return launch(executor_, *args, **kwargs)
            finally:  # the next launch waits for this one
                self._end_program()
                self._others.clear()

        self._patch = pytest.MonkeyPatch()
        for owner, name, value in (
            (builder, "create_masked_load", watched_load), (builder, "create_masked_store", watched_store),
            (builder, "create_barrier", watched_barrier), (builder, "set_grid_idx", watched_begin),
            (executor, "__call__", watched_launch),
        ):  # fmt: skip
            self._patch.setattr(owner, name, value)
        return self

    def __exit__(self, *exc: object) -> None:
        self._patch.undo()

    def _access(self, kind: str, pointers: np.ndarray, mask: np.ndarray) -> None:
        shape = np.broadcast(pointers, mask).shape
        live = np.broadcast_to(mask, shape).reshape(-1).astype(bool)
        places = np.flatnonzero(live)
        addresses = np.broadcast_to(pointers, shape).reshape(-1)[live].astype(np.int64)
        if not addresses.size:
            return
        if (np.diff(addresses) < 0).any():
            order = np.argsort(addresses, kind="stable")
            addresses, places = addresses[order], places[order]
        now = _Access(kind, addresses, places, live.size)
        for before in self._since_barrier:
            if (address := _clash(before, now)) is not None:
                self.found.append(f"program {self._program}: {kind} after {before.kind} of {address:#x}, no barrier")
        for other in self._others:
            if (common := _common(other, now)) is not None:
                self.found.append(
                    f"program {self._program}: {kind} of {common[0][0]:#x}, another program's {other.kind}"
                )
        self._since_barrier.append(now)
        self._mine.append(now)

    def _end_program(self) -> None:
        self._others += self._mine
        self._mine.clear()
        self._since_barrier.clear()


def _common(before: _Access, now: _Access) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Addresses that both touch and one of them writes, and where in each; None: there are none."""
    if "store" not in (before.kind, now.kind):
        return None
    if before.addresses[-1] < now.addresses[0] or now.addresses[-1] < before.addresses[0]:
        return None
    common, i, j = np.intersect1d(before.addresses, now.addresses, return_indices=True)
    return (common, i, j) if common.size else None


def _clash(before: _Access, now: _Access) -> int | None:
    """An address of both accesses that two threads may have touched; None: there is none."""
    elementwise = (before.kind, now.kind) == ("load", "store") and before.size == now.size > 1
    if elementwise and np.array_equal(before.places, now.places) and np.array_equal(before.addresses, now.addresses):
        return None
    if (found := _common(before, now)) is None:
        return None
    common, i, j = found
    if elementwise:
        common = common[before.places[i] != now.places[j]]
    return int(common[0]) if common.size else None
