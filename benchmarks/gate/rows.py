"""What each kernel family asks the gate to compile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fastgpt.kernels.attention.hopper import choice

EXPECTATIONS = frozenset({"tensor_core", "wide_loads", "no_spills", "no_spills_in_hot_loops"})


@dataclass(frozen=True)
class Row:
    """One call of a family's launch functions, compiled for every architecture.

    family  "attention", "attention_weights", "layer_norm", "ffn" or "linear_cross_entropy"
    label   what this call is, without spaces, unique in its family: "fwd-bf16-d128-causal"
    call    runs launch functions on meta tensors, once for each arch, inside `offline(arch)`. It may launch several
            kernels: each becomes a row of the table. To leave an arch out, return without launching.
    expect  what must be seen in the machine code:
            "tensor_core"  every kernel that holds a dot uses tensor-core instructions
            "wide_loads"   global memory is read 16 bytes at a time (or by TMA), and 16-bit loads do not outnumber that
            "no_spills"    no kernel spills; without it a spill is allowed, and recorded in the table
            "no_spills_in_hot_loops"
                           no warp-specialised kernel spills where its roles spend their time. Elsewhere it may: what a
                           role is told once a CTA, the loop that sends warps to their roles has no registers to keep
    """

    family: str
    label: str
    call: Callable[[], None]
    expect: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = set(self.expect) - EXPECTATIONS
        if unknown:
            raise ValueError(f"Row {self.label!r}: unknown expectation {min(unknown)!r}, use {sorted(EXPECTATIONS)}")
        if any(c.isspace() for c in self.label + self.family):
            raise ValueError(f"Row {self.label!r}: family and label must hold no spaces (they are columns of a table)")


@contextlib.contextmanager
def multiplying_in(precision: str) -> Iterator[None]:
    """float32 products inside the block may run on tensor cores, where the GPU has TF32 ("tf32"), or not ("ieee").

    By torch's new API alone, whose setting can be taken back; the old getters raise meanwhile.
    """
    matmul = torch.backends.cuda.matmul
    saved, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = saved


@contextlib.contextmanager
def attending_by(setting: str) -> Iterator[None]:
    """Attention inside the block chooses its kernels as FASTGPT_ATTENTION=setting would."""
    saved, choice.setting = choice.setting, setting
    try:
        yield
    finally:
        choice.setting = saved
