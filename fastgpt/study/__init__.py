"""The studies (depth, over-smoothing), the demo, and pictures that teach.

`fastgpt.study.smoothing(hidden)` is the measures of over-smoothing; see `measures.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measures import SmoothingMeasures as SmoothingMeasures
    from .measures import smoothing as smoothing


def __getattr__(name: str) -> Any:
    """The measures, once they are asked for: a command's settings lie here too, and its help needs no torch."""
    if name not in ("SmoothingMeasures", "smoothing"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import measures

    return getattr(measures, name)
