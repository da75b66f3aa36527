"""Launch: allocation, grids and tile look-up for the attention kernels."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import _runtime
from .._random import threshold_and_scale
from .._runtime import cdiv, power_of_two
from ..device.dropout import Dropout
from . import backward as device_backward
from . import forward as device_forward
from . import structs, tiles
from .descriptors import descriptors, has_row_maps, row_descriptor
from .hopper import choice
from .host import band, check_positions, check_steps, grid, hidden_keys

LOG2_E = 1.4426950408889634
WIDE_STRIDE = 2**22  # two offsets of at most 256 strides of this size still fit in int32 together
NO_DROPOUT = Dropout(None, 0, 1.0)

Tensors = TypeVar("Tensors", structs.ForwardTensors, structs.DKDVTensors, structs.DQTensors)


def forward(
    q: Tensor, k: Tensor, v: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None, seed: Tensor | None,
    softmax_scale: float, dropout_p: float, causal: bool, left: int, right: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, H, T_q, D), in (B, T_q, H, D) memory; lse (B, H, T_q) float32. left, right < 0: no bound."""
    B, H, T_q, D = q.shape
    T_k = k.shape[2]
    check_positions("flash_attention", T_q, T_k)
    if q.numel() == 0:
        return empty_heads_last(q), q.new_empty((B, H, T_q), dtype=torch.float32)

    target, itemsize = _runtime.target_of(q), q.element_size()
    if choice.takes_gluon(target, dropout_p, q, k, v):
        out, lse = empty_heads_last(q), q.new_empty((B, H, T_q), dtype=torch.float32)
        with _runtime.on_device_of(q):
            _hopper().run_forward(
                q, k, v, out, lse, key_starts, key_lengths, document_ids, softmax_scale, causal, left, right
            )
        return out, lse

    is_wide = H * D >= WIDE_STRIDE or has_wide_strides(q, k, v)  # rows of out are H * D apart
    tile = tiles.forward(target, itemsize, D, roomy=dropout_p > 0.0, T_q=T_q, heads=B * H)

    out, lse = empty_heads_last(q), q.new_empty((B, H, T_q), dtype=torch.float32)
    tensors = structs.ForwardTensors(q, k, v, out)
    maps = *descriptors(target, k, tile.block_n), *descriptors(target, v, tile.block_n)
    plan = _plan(
        "flash_attention", tile, target, itemsize, q.shape, k.shape, causal, left, right, is_wide,
        _runtime.dot_precision(q), _by_tma(maps), document_ids is not None,
    )  # fmt: skip
    with _runtime.on_device_of(q):
        device_forward.attention_forward_kernel[plan.grid](
            tensors, _strides(tensors), lse, *maps,
            hidden_keys(key_starts, key_lengths, document_ids, T_q, T_k, tile.block_m), _dropout(seed, dropout_p),
            T_q, T_k, H, plan.group, plan.lower, plan.upper, plan.heads_per_section, softmax_scale * LOG2_E, plan.C,
            num_warps=tile.num_warps, num_stages=_num_stages(target, tile, D, maps),
        )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None, seed: Tensor | None,
    softmax_scale: float, dropout_p: float, causal: bool, left: int, right: int, need_dq: bool, need_dkdv: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, each in heads-last memory like `out`; an empty tensor in the place of those not needed."""
    B, H, T_q, D = q.shape
    H_kv, T_k = k.shape[1:3]
    name = "flash_attention's backward"
    if q.numel() == 0 or k.numel() == 0:  # nothing was attended: every gradient that has elements is 0
        return _gradient(q, need_dq).zero_(), _gradient(k, need_dkdv).zero_(), _gradient(v, need_dkdv).zero_()

    target, itemsize, has_dropout = _runtime.target_of(q), q.element_size(), dropout_p > 0.0
    takes_gluon = choice.takes_gluon(target, dropout_p, q, k, v, dout)
    # dq, dk and dv have the strides of `out` or smaller ones: k has no more heads than q.
    is_wide = has_wide_strides(q, k, v, dout, out)
    numbers = (target, itemsize, q.shape, k.shape, causal, left, right, is_wide, _runtime.dot_precision(q))
    block_m = 32  # of the row statistics
    is_wide_dlse = dlse is not None and dlse.stride(2) >= WIDE_STRIDE

    dq, dk, dv = _gradient(q, need_dq), _gradient(k, need_dkdv), _gradient(v, need_dkdv)
    # lse2 and delta, in rows of whole 16 bytes: kernels may load them by TMA.
    stride_row = cdiv(T_q, 4) * 4
    statistics = lse.new_empty((2, B, H, stride_row))
    lse2, delta = statistics.unbind()

    dropout = _dropout(seed, dropout_p)
    with _runtime.on_device_of(q):
        device_backward.attention_delta_kernel[grid(name, cdiv(T_q, block_m) * B * H)](
            out, dout, None if dlse is None else structs.Matrix(dlse, dlse.stride()), lse, lse2, delta,
            out.stride(), dout.stride(), stride_row, T_q, H, HEAD_DIM=D, BLOCK_M=block_m, BLOCK_D=power_of_two(D),
            IS_WIDE=is_wide or is_wide_dlse, num_warps=4,
        )  # fmt: skip
        if need_dkdv and takes_gluon:
            _hopper().run_dkdv(
                dout, q, k, v, lse2, delta, dk, dv,
                key_starts, key_lengths, document_ids, softmax_scale, causal, left, right,
            )  # fmt: skip
        elif need_dkdv:
            tile = tiles.dkdv(target, itemsize, D, roomy=has_dropout, T_k=T_k, heads=B * H_kv)
            dkdv_tensors = structs.DKDVTensors(q, k, v, dout, dk, dv)
            maps = *descriptors(target, q, tile.block_m), *descriptors(target, dout, tile.block_m)
            plan = _plan(name, tile, *numbers, _by_tma(maps), document_ids is not None, of_keys=True)
            row_map = row_descriptor(statistics, T_q, tile.block_m) if plan.C.edge_stages else None
            device_backward.attention_dkdv_kernel[plan.grid](
                dkdv_tensors, _strides(dkdv_tensors), *maps, row_map, lse2, delta,
                hidden_keys(key_starts, key_lengths, document_ids, T_q, T_k, tile.block_n, of_keys=True), dropout,
                stride_row, T_q, T_k, H_kv, plan.lower, plan.upper, plan.heads_per_section, softmax_scale, plan.C,
                num_warps=tile.num_warps, num_stages=_num_stages(target, tile, D, maps),
            )  # fmt: skip
        if need_dq and takes_gluon:
            _hopper().run_dq(
                dout, q, k, v, lse2, delta, dq,
                key_starts, key_lengths, document_ids, softmax_scale, causal, left, right,
            )  # fmt: skip
        elif need_dq:
            is_roomy = has_dropout or document_ids is not None
            tile = tiles.dq(target, itemsize, D, roomy=is_roomy, T_q=T_q, heads=B * H)
            dq_tensors = structs.DQTensors(q, k, v, dout, dq)
            maps = *descriptors(target, k, tile.block_n), *descriptors(target, v, tile.block_n)
            plan = _plan(name, tile, *numbers, _by_tma(maps), document_ids is not None)
            device_backward.attention_dq_kernel[plan.grid](
                dq_tensors, _strides(dq_tensors), *maps, lse2, delta,
                hidden_keys(key_starts, key_lengths, document_ids, T_q, T_k, tile.block_m), dropout,
                stride_row, T_q, T_k, H, plan.group, plan.lower, plan.upper, plan.heads_per_section, softmax_scale,
                plan.C,
                num_warps=tile.num_warps, num_stages=_num_stages(target, tile, D, maps),
            )  # fmt: skip
    return dq, dk, dv


@functools.cache
def _hopper() -> ModuleType:
    """The launch of Hopper's kernels. It imports Gluon: so not before a call takes them."""
    from .hopper import launch

    return launch


def _num_stages(target: _runtime.Target, tile: tiles.Tile, head_dim: int, maps: tuple[object, ...]) -> int:
    return tiles.num_stages(target, tile, head_dim, by_tma=_by_tma(maps))


def _by_tma(maps: tuple[object, ...]) -> bool:
    """maps: (low, high) descriptors of both streamed tensors; None where pointers serve, or there is no high part."""
    return maps[0] is not None and maps[2] is not None


class Plan(NamedTuple):
    """How one of the kernels that stream tiles is launched, but for its tensors."""

    grid: tuple[int]
    lower: int | None  # the band, see masks.py
    upper: int | None
    heads_per_section: int  # see masks.program_tile
    group: int  # query heads that share a key head
    C: structs.Config


@functools.lru_cache(maxsize=1024)
def _plan(
    name: str, tile: tiles.Tile, target: _runtime.Target, itemsize: int, q_shape: tuple[int, ...],
    k_shape: tuple[int, ...], causal: bool, left: int, right: int, is_wide: bool, precision: str,
    by_tma: bool, has_documents: bool, *, of_keys: bool = False,
) -> Plan:  # fmt: skip
    """The Plan of a kernel whose programs hold a tile of queries, or of keys (dK/dV); every layer asks for the same."""
    B, H, T_q, D = q_shape
    H_kv, T_k = k_shape[1:3]
    group = H // H_kv
    if of_keys:
        check_steps(name, T_q, group, min(tile.block_m, tile.edge))
        programs, heads = cdiv(T_k, tile.block_n) * B * H_kv, B * H_kv
        section = tiles.heads_per_section(target, 2 * group * T_q * D * itemsize, 1)
    else:
        programs, heads = cdiv(T_q, tile.block_m) * B * H, B * H
        section = tiles.heads_per_section(target, 2 * T_k * D * itemsize, group)
    lower, upper = band(T_q, T_k, causal, left, right)
    d_low, d_high = tiles.split_head_dim(D)
    kernel_group = group if of_keys else 0
    edge_stages = tiles.edge_stages(tile, D, by_tma=by_tma, has_documents=has_documents, group=kernel_group or 1)
    has_rows = edge_stages > 0 and of_keys and has_row_maps(group)
    C = structs.Config(
        D, d_low, d_high, tile.block_m, tile.block_n, tile.edge, edge_stages, kernel_group, is_wide, has_rows, precision
    )
    return Plan(grid(name, programs), lower, upper, min(section, heads), group, C)


def _gradient(x: Tensor, needed: bool) -> Tensor:
    """Memory for the gradient of x, in heads-last order like `out`; an empty tensor if it is not needed."""
    return empty_heads_last(x) if needed else x.new_empty(0)


def _strides(tensors: Tensors) -> Tensors:
    """Their strides, as a NamedTuple of the same fields."""
    return type(tensors)(*[x.stride() for x in tensors])


def _dropout(seed: Tensor | None, dropout_p: float) -> Dropout:
    if dropout_p == 0.0:
        return NO_DROPOUT
    return Dropout(seed, *threshold_and_scale(dropout_p))


def empty_heads_last(like: Tensor) -> Tensor:
    """(B, H, T, D) on (B, T, H, D) memory, so that merging the heads is a view."""
    B, H, T, D = like.shape
    return like.new_empty((B, T, H, D)).transpose(1, 2)


def has_wide_strides(*tensors: Tensor) -> bool:
    """Whether offsets inside one tile (at most 256 on a side) may pass 2^31."""
    for x in tensors:  # noqa: SIM110 (a generator takes twice as long, on every call)
        if x.stride(2) >= WIDE_STRIDE or x.stride(3) >= WIDE_STRIDE:
            return True
    return False
