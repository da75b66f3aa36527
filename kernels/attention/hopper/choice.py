"""Which kernels a call of attention takes: those for Hopper in Gluon, or the portable ones of Triton.

FASTGPT_ATTENTION=auto     Gluon's where they can run and there are rows enough, else the portable ones (default)
                  triton   the portable ones
                  gluon    Gluon's, and ValueError where they cannot run

Nothing here imports Gluon: what does not take it does not pay for it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from ... import _runtime
from ..._notice import say_once
from . import tiles

VARIABLE = "FASTGPT_ATTENTION"
SETTINGS = ("auto", "triton", "gluon")
# Gluon is experimental: its names and its meaning change. These kernels compile with 3.8 and 3.9 too, where nothing has
# executed them.
KNOWN_TRITON = ("3.6", "3.7")
# Fewer rows than one consumer's tile are left to the portable kernels, which have tiles of 16.
MIN_ROWS = tiles.ROWS
MAX_STRIDE = 2**40  # bytes, of a tensor map


def setting_in(environment: Mapping[str, str]) -> str:
    """FASTGPT_ATTENTION, "auto" where it is not set.

    Raises:
        ValueError: it is something else.
    """
    value = environment.get(VARIABLE) or SETTINGS[0]
    if value not in SETTINGS:
        raise ValueError(f"{VARIABLE}={value} must be one of {', '.join(SETTINGS)}")
    return value


setting = setting_in(os.environ)


def takes_gluon(target: _runtime.Target, dropout_p: float, *tensors: Tensor) -> bool:
    """Whether this call takes Gluon's kernels.

    tensors: what they load, (B, heads, T, head_dim) each, q and k first.

    Raises:
        ValueError: FASTGPT_ATTENTION=gluon, and it cannot be.
    """
    if setting == "triton" or (setting == "auto" and target.arch != "sm_90"):
        return False
    if setting == "auto":
        rows = min(tensors[0].shape[2], tensors[1].shape[2])
        return rows >= MIN_ROWS and gluon_why_not(target, dropout_p, *tensors) is None
    reason = gluon_why_not(target, dropout_p, *tensors)
    if reason is not None:
        raise ValueError(f"flash_attention: {VARIABLE}=gluon, but {reason}; or set {VARIABLE}=auto")
    return True


def gluon_why_not(target: _runtime.Target, dropout_p: float, *tensors: Tensor) -> str | None:
    """Why Gluon's kernels cannot take this call, and what to do; None if it can."""
    if _runtime.is_interpreting() and not _runtime.simulating:
        return "Gluon has no interpreter; run on a GPU"
    layouts = []
    for name, x in zip(NAMES, tensors):
        if x.data_ptr() % 16:
            return f"{name} begins at no multiple of 16 bytes, {UNALIGNED}"
        layouts.append((x.shape, x.stride()))
    return _call_why_not(target, tensors[0].dtype, dropout_p > 0.0, *layouts) or _version_why_not()


NAMES = ("q", "k", "v", "the gradient of out")
UNALIGNED = (
    "and the copy engine wants tensors whose last dimension is contiguous, and whose first element and strides are at "
    "multiples of 16 bytes; call .contiguous()"
)


@functools.lru_cache(maxsize=4096)
def _call_why_not(
    target: _runtime.Target, dtype: torch.dtype, has_dropout: bool,
    *layouts: tuple[tuple[int, ...], tuple[int, ...]],
) -> str | None:  # fmt: skip
    """`gluon_why_not`, from what calls have in common: every layer of a model asks for the same."""
    head_dim = layouts[0][0][3]
    if target.arch != "sm_90":
        return f"these kernels are for Hopper, sm_90, and not for {target.arch}; run on an H100 or H200"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"these kernels take float16 and bfloat16, not {str(dtype).removeprefix('torch.')}; convert by .to()"
    if has_dropout:
        return "these kernels have no dropout; set dropout_p=0"
    # Results are rows of head_dim numbers, head beside head, and the copy engine stores them.
    if head_dim * dtype.itemsize % 16:
        return f"these kernels take head_dim in multiples of {16 // dtype.itemsize}, not {head_dim}; pad it with zeros"
    if layouts[1][0][2] == 0:
        return "these kernels need a key"
    for name, (shape, stride) in zip(NAMES, layouts):
        if not _can_be_copied(dtype.itemsize, shape, stride):
            return f"{name} has shape {tuple(shape)} and strides {stride}, {UNALIGNED}"
    return None


def _can_be_copied(itemsize: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor map can describe this layout. The stride of a dimension of size 1 is never used."""
    strides = [s * itemsize for n, s in zip(shape[:3], stride) if n > 1]
    return stride[3] == 1 and all(s % 16 == 0 and 0 < s < MAX_STRIDE for s in strides)


@functools.cache
def _version_why_not() -> str | None:
    """Asked last, where nothing else stands in the way: else its line in the log would name what changes nothing."""
    import triton

    if ".".join(triton.__version__.split(".")[:2]) in KNOWN_TRITON:
        return None
    reason = (
        f"Triton {triton.__version__} is none of those whose Gluon they are written for ({', '.join(KNOWN_TRITON)})"
    )
    say_once(f"attention: the portable kernels serve in place of those for Hopper, because {reason}")
    return f"{reason}; install one of those"
