"""The time of a whole launch of causal attention, from the rhythm of its kernel's two loops.

Every program goes round the loop without a mask and then the one with, as often as its tile asks; programs go to the
first free place on a multiprocessor, in the order of their ids.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from .machines import Machine
from .timeline import Loops

PROGRAM = 8400  # cycles outside the loops: it begins, its first tiles come in, its results go out
L2_BYTES = 50 << 20  # as kernels/attention/tiles.py has it for sm_90
MEMORY = 0.83  # of the peak bandwidth, that a copy reaches


@dataclass(frozen=True)
class Causal:
    """One kernel's work.

    length   of the sequence
    heads    B · H
    held     rows of a program's tile
    step     rows of the streamed tile, and of the narrower one where the mask cuts (edge)
    section  heads whose programs start together, the longest first
    """

    length: int
    heads: int
    held: int
    step: int
    edge: int
    section: int


def section(length: int, head_dim: int) -> int:
    """Heads whose two streamed tensors, 2 bytes a number, fill half of L2."""
    return max(1, L2_BYTES // 2 // (2 * length * head_dim * 2))


def seconds(work: Causal, full: Loops, masked: Loops, machine: Machine) -> float:
    """Time of the launch; all loops as if every place were taken."""
    tiles = math.ceil(work.length / work.held)
    cut = math.ceil((work.held + max(0, work.step - work.held) / 2) / work.edge)  # steps at the diagonal
    cycles = [
        PROGRAM + (i * work.held // work.step) * full.timeline.cycles + cut * masked.timeline.cycles
        for i in reversed(range(tiles))
    ]
    places = [0.0] * (machine.sms * full.ctas)
    for first in range(0, work.heads, work.section):
        for length in cycles:
            for _ in range(min(work.section, work.heads - first)):
                heapq.heapreplace(places, places[0] + length)
    return max(places) / machine.sustained_clock


def row_statistics(shape: tuple[int, int, int, int], machine: Machine) -> float:
    """Seconds of the kernel before the backward's two, which reads out and dout once."""
    B, H, T, head_dim = shape
    return 2 * B * H * T * head_dim * 2 / (MEMORY * 4.8e12)
