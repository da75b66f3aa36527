"""The cost study: how a training step's bytes and seconds grow with layers (L), tokens (T) and width (D).

rows = memory_cost(CostConfig(layers=(2, 4, 8)))         # bytes on paper, of each implementation at each point
found = exponents(CostConfig(layers=(2, 4, 8)), rows)    # bytes ~ L^a, T^b, D^c, with 95 % intervals
record = cost_study(CostConfig(), time_on="cuda")        # all of it, and where a GPU's memory ends: what the page draws
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import CostConfig as CostConfig
    from .counting import memory_cost as memory_cost
    from .growth import exponents as exponents
    from .limits import memory_limits as memory_limits
    from .study import cost_study as cost_study
    from .timing import step_times as step_times

_PLACES = {
    "CostConfig": "config", "memory_cost": "counting", "exponents": "growth", "memory_limits": "limits",
    "cost_study": "study", "step_times": "timing",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Each when it is asked for: a command's help needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
