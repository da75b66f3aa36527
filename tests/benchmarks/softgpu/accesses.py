"""Kernels of a few accesses to memory, and the kinds of what is found in them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from benchmarks.softgpu.engine import Result

from .support import kernel, kinds

DECLARATIONS = ".reg .b64 %a<6>; .reg .b32 %s<8>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<4>;"
SCHEDULES = ("forward", "backward", "random")


def run(body: str, *arrays: np.ndarray, declarations: str = DECLARATIONS, **keywords) -> Result:
    return kernel(body, *arrays, declarations=declarations, **keywords)


def found(body: str, *arrays: np.ndarray, schedules: Iterable[str] = SCHEDULES, **keywords) -> set[str]:
    """The kinds of findings, the same under every schedule."""
    all_kinds = [kinds(run(body, *arrays, schedule=schedule, seed=5, **keywords)) for schedule in schedules]
    assert all(k == all_kinds[0] for k in all_kinds), all_kinds
    return all_kinds[0]


# The warp in %s4, the lane in %s5; smem in %s0; the thread's own word of it in %s1.
START = """
    shr.u32 %s4, %tid, 5; and.b32 %s5, %tid, 31; mov.u32 %s0, smem; mad.lo.u32 %s1, %tid, 4, %s0;
    setp.eq.u32 %p0, %s4, 0; setp.eq.u32 %p1, %s4, 1; setp.eq.u32 %p2, %s5, 0;
"""
