"""The layers and heads that one may ask a model about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base.settings import check_integer


def chosen_indices(what: str, wanted: Sequence[int] | int | None, count: int) -> list[int]:
    """The layers or heads (`what`) that attention_maps was asked for, of `count`.

    Raises:
        IndexError: one that is not there. TypeError: no integers.
    """
    if wanted is None:
        return list(range(count))
    asked: Any = wanted  # whatever it really is
    try:
        several = [asked] if isinstance(asked, str) else list(asked)
    except TypeError:  # one number
        several = [asked]
    numbers = [check_integer("attention_maps", f"{what}s", n) for n in several]
    for n in numbers:
        if not -count <= n < count:
            raise IndexError(f"attention_maps: there is no {what} {n}; the model has {count}, numbered from 0")
    return [n % count for n in numbers]
