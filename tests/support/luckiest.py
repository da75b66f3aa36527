"""pytest -p tests.support.luckiest: the error budget beside a torch whose results are exact but for the last rounding.

No machine's torch is luckier; so whatever passes here passes beside any, and hangs on no order of its sums.
"""

from __future__ import annotations

import functools

from fastgpt.tools import budget

_judged = budget.assert_within_budget


@functools.wraps(_judged)
def beside_the_luckiest(name, ours, torchs, exact, **options) -> None:
    if isinstance(exact, budget.Exact) and torchs.shape == exact.value.shape:
        torchs = exact.value.to(torchs.dtype)
    _judged(name, ours, torchs, exact, **options)


budget.assert_within_budget = beside_the_luckiest
