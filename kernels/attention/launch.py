"""Launch: allocation, grids and tile look-up for the attention kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .. import _runtime
from .._random import drop_threshold
from .._runtime import cdiv
from . import backward as device_backward
from . import forward as device_forward
from . import masks, structs, tiles
from .descriptors import descriptors

LOG2_E = 1.4426950408889634
# Positions and bounds are int32 in the kernels, which add at most a tile (1024 columns of document ids) to T_q + T_k.
MAX_POSITIONS = 2**31 - 2**11
WIDE_STRIDE = 2**22  # two offsets of at most 256 strides of this size still fit in int32 together
MAX_PROGRAMS = 2**31 - 1  # CUDA's limit of a grid's first dimension, and what an int32 program id can tell apart
NAME, BACKWARD = "flash_attention", "flash_attention's backward"


class Call(NamedTuple):
    """One call: its inputs, and what forward and backward work out from them alike."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_starts: Tensor | None
    key_lengths: Tensor | None
    document_ids: Tensor | None  # contiguous
    target: _runtime.Target
    group: int  # query heads that share a key head
    lower: int | None
    upper: int | None
    roomy: bool  # whether tiles must leave registers for dropout
    precision: str
    qkv: structs.QKV
    dropout: structs.Dropout


def forward(
    q: Tensor, k: Tensor, v: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None, seed: Tensor | None,
    softmax_scale: float, dropout_p: float, causal: bool, left: int, right: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, H, T_q, D), in (B, T_q, H, D) memory; lse (B, H, T_q) float32. left, right < 0: no bound."""
    B, H, T_q, D = q.shape
    T_k = k.shape[2]
    check_positions(NAME, T_q, T_k)
    out = empty_heads_last(q)
    lse = torch.empty((B, H, T_q), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    call = _call(q, k, v, key_starts, key_lengths, document_ids, seed, dropout_p, causal, left, right)
    target = call.target
    tile = tiles.forward(target, q.element_size(), D, roomy=call.roomy, T_q=T_q, heads=B * H)
    C = _config(call, tile, has_wide_strides(q, k, v, out))
    section = tiles.heads_per_section(target, 2 * T_k * D * q.element_size(), call.group)

    with _runtime.on_device_of(q):
        device_forward.attention_forward[grid(NAME, cdiv(T_q, tile.block_m) * B * H)](
            call.qkv, _matrix(out), lse, *descriptors(target, k, tile.block_n), *descriptors(target, v, tile.block_n),
            _masks(call, tile.block_m, of_keys=False), call.dropout, T_q, T_k, H, call.lower, call.upper,
            min(section, B * H), softmax_scale * LOG2_E, C, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None, seed: Tensor | None,
    softmax_scale: float, dropout_p: float, causal: bool, left: int, right: int, need_dq: bool, need_dkdv: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, each in heads-last memory like `out`; an empty tensor in the place of those not needed."""
    dq = empty_heads_last(q) if need_dq else q.new_empty(0)
    dk, dv = (empty_heads_last(x) if need_dkdv else q.new_empty(0) for x in (k, v))
    if q.numel() == 0 or k.numel() == 0:  # nothing was attended: every gradient that has elements is 0
        return dq.zero_(), dk.zero_(), dv.zero_()
    call = _call(q, k, v, key_starts, key_lengths, document_ids, seed, dropout_p, causal, left, right)
    # dq, dk and dv have the strides of `out` or smaller ones: k has no more heads than q.
    is_wide = has_wide_strides(q, k, v, dout, out)
    with _runtime.on_device_of(q):
        lse2, delta = _row_statistics(call, out, dout, dlse, lse, is_wide)
        if need_dkdv:
            _dkdv(call, dout, lse2, delta, dk, dv, softmax_scale, is_wide)
        if need_dq:
            _dq(call, dout, lse2, delta, dq, softmax_scale, is_wide)
    return dq, dk, dv


def _row_statistics(
    call: Call, out: Tensor, dout: Tensor, dlse: Tensor | None, lse: Tensor, is_wide: bool
) -> tuple[Tensor, Tensor]:
    """lse2 and delta, both (B, H, T_q) float32: what dK/dV and dQ need of each row of scores."""
    B, H, T_q, D = out.shape
    block_m = 32
    is_wide = is_wide or (dlse is not None and dlse.stride(2) >= WIDE_STRIDE)

    lse2, delta = torch.empty_like(lse), torch.empty_like(lse)
    device_backward.attention_delta[grid(BACKWARD, cdiv(T_q, block_m) * B * H)](
        _matrix(out), _matrix(dout), None if dlse is None else _matrix(dlse), lse, lse2, delta, T_q, H,
        HEAD_DIM=D, BLOCK_M=block_m, BLOCK_D=triton.next_power_of_2(D), IS_WIDE=is_wide, num_warps=4,
    )  # fmt: skip
    return lse2, delta


def _dkdv(
    call: Call, dout: Tensor, lse2: Tensor, delta: Tensor, dk: Tensor, dv: Tensor, softmax_scale: float, is_wide: bool
) -> None:
    """Fill dk and dv."""
    q, target, group = call.q, call.target, call.group
    B, _, T_q, D = q.shape
    H_kv, T_k = dk.shape[1:3]
    tile = tiles.dkdv(target, q.element_size(), D, roomy=call.roomy, T_k=T_k, heads=B * H_kv)
    check_steps(BACKWARD, T_q, group, min(tile.block_m, tile.edge))
    section = tiles.heads_per_section(target, 2 * group * T_q * D * q.element_size(), 1)

    device_backward.attention_dkdv[grid(BACKWARD, cdiv(T_k, tile.block_n) * B * H_kv)](
        call.qkv, _matrix(dout), *descriptors(target, q, tile.block_m), *descriptors(target, dout, tile.block_m),
        lse2, delta, _matrix(dk), _matrix(dv), _masks(call, tile.block_n, of_keys=True), call.dropout, T_q, T_k, H_kv,
        call.lower, call.upper, min(section, B * H_kv), softmax_scale, _config(call, tile, is_wide),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _dq(call: Call, dout: Tensor, lse2: Tensor, delta: Tensor, dq: Tensor, softmax_scale: float, is_wide: bool) -> None:
    """Fill dq."""
    k, v, target = call.k, call.v, call.target
    B, H, T_q, D = dq.shape
    T_k = k.shape[2]
    roomy = call.roomy or call.document_ids is not None
    tile = tiles.dq(target, k.element_size(), D, roomy=roomy, T_q=T_q, heads=B * H)
    section = tiles.heads_per_section(target, 2 * T_k * D * k.element_size(), call.group)

    device_backward.attention_dq[grid(BACKWARD, cdiv(T_q, tile.block_m) * B * H)](
        call.qkv, _matrix(dout), *descriptors(target, k, tile.block_n), *descriptors(target, v, tile.block_n),
        lse2, delta, _matrix(dq), _masks(call, tile.block_m, of_keys=False), call.dropout, T_q, T_k, H,
        call.lower, call.upper, min(section, B * H), softmax_scale, _config(call, tile, is_wide),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _call(
    q: Tensor, k: Tensor, v: Tensor, key_starts: Tensor | None, key_lengths: Tensor | None,
    document_ids: Tensor | None, seed: Tensor | None, dropout_p: float, causal: bool, left: int, right: int,
) -> Call:  # fmt: skip
    lower, upper = band(q.shape[2], k.shape[2], causal, left, right)
    has_dropout = dropout_p > 0.0
    return Call(
        q, k, v, key_starts, key_lengths, None if document_ids is None else document_ids.contiguous(),
        _runtime.target_of(q), q.shape[1] // k.shape[1], lower, upper, has_dropout, _runtime.dot_precision(q),
        structs.QKV(_matrix(q), _matrix(k), _matrix(v)),
        structs.Dropout(seed if has_dropout else None, drop_threshold(dropout_p), 1.0 / (1.0 - dropout_p)),
    )  # fmt: skip


def _config(call: Call, tile: tiles.Tile, is_wide: bool) -> structs.Config:
    head_dim = call.q.shape[3]
    d_low, d_high = tiles.split_head_dim(head_dim)
    return structs.Config(
        head_dim, d_low, d_high, tile.block_m, tile.block_n, tile.edge, call.group, is_wide, call.precision
    )


def _matrix(x: Tensor) -> structs.Matrix:
    return structs.Matrix(x, x.stride())


def _masks(call: Call, block: int, *, of_keys: bool) -> structs.Masks:
    """The masks of a kernel whose programs hold tiles of `block` queries, or keys."""
    ids, ranges = call.document_ids, None
    if ids is not None:
        ranges = document_ranges(ids, call.q.shape[2], call.k.shape[2], block, of_keys=of_keys)
    return structs.Masks(call.key_starts, call.key_lengths, ids, ranges)


def document_ranges(document_ids: Tensor, T_q: int, T_k: int, block: int, *, of_keys: bool) -> Tensor:
    """For each tile of `block` queries, the keys that may share a document with it; of keys, the queries."""
    rows, columns = (T_k, T_q) if of_keys else (T_q, T_k)
    num_tiles, B = cdiv(rows, block), document_ids.shape[0]

    ranges = document_ids.new_empty((B, num_tiles, 3), dtype=torch.int32)
    masks.document_ranges[grid(NAME, num_tiles * B)](
        document_ids, ranges, T_k, T_k - rows, rows, T_k - columns, columns, BLOCK=block, CHUNK=1024, num_warps=4
    )
    return ranges


def empty_heads_last(like: Tensor) -> Tensor:
    """(B, H, T, D) on (B, T, H, D) memory, so that merging the heads is a view."""
    B, H, T, D = like.shape
    return like.new_empty((B, T, H, D)).transpose(1, 2)


def band(T_q: int, T_k: int, causal: bool, left: int, right: int) -> tuple[int | None, int | None]:
    """(lower, upper): query i sees the keys i + lower <= j <= i + upper; None = no bound."""
    diagonal = T_k - T_q
    # A bound that no pair of indices reaches is no bound; leaving it out also keeps the sums inside int32.
    lower = diagonal - left if left >= 0 and diagonal - left > -T_q else None
    upper = diagonal + right if right >= 0 and diagonal + right < T_k - 1 else None
    if causal:
        upper = diagonal
    return lower, upper


def check_positions(name: str, T_q: int, T_k: int) -> None:
    """Raise ValueError where positions would not fit the kernels' int32."""
    if T_q + T_k > MAX_POSITIONS:
        raise ValueError(
            f"{name}: positions are int32 numbers, so T_q + T_k may be {MAX_POSITIONS} at most; got T_q = {T_q} and "
            f"T_k = {T_k}: attend to the keys in parts, and combine them by their lse (return_lse=True)"
        )


def check_steps(name: str, T_q: int, group: int, step: int) -> None:
    """A program of dK/dV counts its steps, over the queries of a whole group of heads, in int32."""
    if (cdiv(T_q, step) + 2) * group >= 2**31:
        raise ValueError(
            f"{name}: {group} query heads of T_q = {T_q} share one key head, which is too many steps of {step} queries "
            "to count in int32; pass the query heads in several calls"
        )


def grid(name: str, programs: int) -> tuple[int]:
    """The grid of a launch of so many programs."""
    if programs > MAX_PROGRAMS:
        raise ValueError(
            f"{name}: {programs} tiles of batch rows, heads and tokens, and one launch takes {MAX_PROGRAMS} at most; "
            "split the batch"
        )
    return (programs,)


def has_wide_strides(*tensors: Tensor) -> bool:
    """Whether offsets inside one tile (at most 256 on a side) may pass 2^31."""
    for x in tensors:  # noqa: SIM110 (a generator takes twice as long, on every call)
        if x.stride(2) >= WIDE_STRIDE or x.stride(3) >= WIDE_STRIDE:
            return True
    return False
