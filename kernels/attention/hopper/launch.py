"""Launch: what Hopper's kernels are called with. The launch above allocates, and calls these functions.

Each takes, after its tensors, what hides keys and the scale, as the operator has them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from ... import _runtime
from ..._runtime import cdiv
from .. import tiles as portable_tiles
from ..host import band, check_positions, check_steps, grid, hidden_keys
from . import dkdv as device_dkdv
from . import dq as device_dq
from . import forward as device_forward
from . import structs, tiles
from .descriptors import descriptors, row_descriptor
from .tiles import ROWS

LOG2_E = 1.4426950408889634
# The forward masks a score by -inf and then scales it: 0 · -inf would be NaN. Float32 has no smaller number than this
# one, and times it the largest score is 0 in effect.
LEAST_SCALE = 2.0**-149


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None,
    softmax_scale: float, causal: bool, left: int, right: int,
) -> None:  # fmt: skip
    """out (B, H, T_q, D) and lse (B, H, T_q)."""
    H, T_q, T_k = q.shape[1], q.shape[2], k.shape[2]
    hides = key_starts is not None, document_ids is not None
    plan = plan_of("forward", _runtime.target_of(q), q.shape, k.shape, causal, left, right, *hides)
    block = plan.tile.block
    device_forward.hopper_forward_kernel[plan.grid](
        *descriptors(q, ROWS), *descriptors(k, block), *descriptors(v, block), *descriptors(out, ROWS), lse,
        hidden_keys(key_starts, key_lengths, document_ids, T_q, T_k, plan.tile.rows),
        T_q, T_k, H, plan.group, plan.heads, plan.lower, plan.upper, plan.heads_per_section,
        max(softmax_scale, LEAST_SCALE) * LOG2_E, plan.C, num_warps=4,
    )  # fmt: skip


def run_dkdv(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse2: Tensor, delta: Tensor, dk: Tensor, dv: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None,
    softmax_scale: float, causal: bool, left: int, right: int,
) -> None:  # fmt: skip
    """dk and dv (B, H_kv, T_k, D). lse2, delta (B, H, T_q or more) float32, of attention_delta_kernel."""
    T_q, H_kv, T_k = q.shape[2], *k.shape[1:3]
    hides = key_starts is not None, document_ids is not None
    plan = plan_of("dkdv", _runtime.target_of(q), q.shape, k.shape, causal, left, right, *hides)
    block = plan.tile.block
    device_dkdv.hopper_dkdv_kernel[plan.grid](
        *descriptors(q, block), *descriptors(dout, block), *descriptors(k, ROWS), *descriptors(v, ROWS),
        *descriptors(dk, ROWS), *descriptors(dv, ROWS), row_descriptor(lse2, T_q, block),
        row_descriptor(delta, T_q, block),
        hidden_keys(key_starts, key_lengths, document_ids, T_q, T_k, plan.tile.rows, of_keys=True),
        T_q, T_k, H_kv, plan.heads, plan.lower, plan.upper, plan.heads_per_section, softmax_scale, plan.C, num_warps=4,
    )  # fmt: skip


def run_dq(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse2: Tensor, delta: Tensor, dq: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None,
    softmax_scale: float, causal: bool, left: int, right: int,
) -> None:  # fmt: skip
    """dq (B, H, T_q, D). lse2, delta as in `run_dkdv`."""
    H, T_q, T_k = q.shape[1], q.shape[2], k.shape[2]
    hides = key_starts is not None, document_ids is not None
    plan = plan_of("dq", _runtime.target_of(q), q.shape, k.shape, causal, left, right, *hides)
    block = plan.tile.block
    device_dq.hopper_dq_kernel[plan.grid](
        *descriptors(q, ROWS), *descriptors(dout, ROWS), *descriptors(k, block), *descriptors(v, block),
        *descriptors(dq, ROWS), lse2, delta,
        hidden_keys(key_starts, key_lengths, document_ids, T_q, T_k, plan.tile.rows),
        T_q, T_k, H, plan.group, plan.heads, plan.lower, plan.upper, plan.heads_per_section, lse2.stride(1),
        softmax_scale, plan.C, num_warps=4,
    )  # fmt: skip


class Plan(NamedTuple):
    """How a kernel is launched, but for its tensors."""

    grid: tuple[int]
    tile: tiles.Tile
    lower: int | None  # the band, see masks.py
    upper: int | None
    heads: int  # B · H; of dK/dV, B · H_kv
    heads_per_section: int  # see masks.tile_of
    group: int  # query heads that share a key head
    C: structs.Config


@functools.lru_cache(maxsize=1024)
def plan_of(
    kernel: str, target: _runtime.Target, q_shape: tuple[int, ...], k_shape: tuple[int, ...],
    causal: bool, left: int, right: int, has_starts: bool, has_documents: bool,
) -> Plan:  # fmt: skip
    """The Plan of `kernel` (forward, dkdv, dq); every layer asks for the same."""
    B, H, T_q, D = q_shape
    H_kv, T_k = k_shape[1:3]
    group = H // H_kv
    name = "flash_attention" if kernel == "forward" else "flash_attention's backward"
    check_positions(name, T_q, T_k)
    of_keys = kernel == "dkdv"
    heads, rows, columns = (B * H_kv, T_k, group * T_q) if of_keys else (B * H, T_q, T_k)
    tile = tiles.tile(kernel, D, rows, columns, heads, causal, target.num_sms, has_documents)
    if of_keys:
        check_steps(name, T_q, group, tile.block)
        section = portable_tiles.heads_per_section(target, 4 * group * T_q * D, 1)
    else:
        section = portable_tiles.heads_per_section(target, 4 * T_k * D, group)
    items = grid(name, cdiv(rows, tile.rows) * heads)[0]
    lower, upper = band(T_q, T_k, causal, left, right)
    C = structs.Config(
        D, *portable_tiles.split_head_dim(D), tile.block, tile.stages, tile.consumers, tile.overlaps, tile.out_apart,
        lower is not None or has_starts or has_documents, group if of_keys else 0,
    )  # fmt: skip
    return Plan((tiles.programs(items, target.num_sms),), tile, lower, upper, heads, min(section, heads), group, C)
