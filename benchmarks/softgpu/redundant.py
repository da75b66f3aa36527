"""Faults that change nothing, and why: the arguments that `planting.py` asks for."""

from __future__ import annotations

import re
from typing import NamedTuple

from .faults import Fault


class Argument(NamedTuple):
    """Of all faults of this kind, in a kernel of which `kernel` is a regular expression, in an instruction like `text`."""

    kind: str
    kernel: str
    text: str
    why: str


ARGUMENTS: tuple[Argument, ...] = ()


def argument(kernel: str, capability: int, fault: Fault, text: str) -> str:
    """Why this fault changes nothing; "" if nobody has said so."""
    for one in ARGUMENTS:
        if one.kind == fault.kind and re.search(one.kernel, kernel) and re.search(one.text, fault.before):
            return one.why
    return ""


def home_of(kernel: str) -> str:
    """The case in which faults of this kernel are tried; "": every case of the sample that launches it."""
    return HOMES.get(kernel, "")


# Kernels that many cases launch.
HOMES = {
    "sum_partials_kernel": "layer_norm bf16 37 x 768",
    "count_targets_kernel": "linear_cross_entropy bf16 mean",
}
