"""Launch: allocation, grids and tile look-up for the attention kernels."""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import _runtime
from .._random import drop_threshold
from . import backward as device_backward
from . import forward as device_forward
from . import masks, tiles

LOG2_E = 1.4426950408889634
# Positions and bounds are int32 in the kernels, which add at most a tile (1024 columns of document ids) to T_q + T_k.
MAX_POSITIONS = 2**31 - 2**11
WIDE_STRIDE = 2**22  # two offsets of at most 256 strides of this size still fit in int32 together
MAX_PROGRAMS = 2**31 - 1  # CUDA's limit of a grid's first dimension, and what an int32 program id can tell apart


def forward(
    q: Tensor, k: Tensor, v: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None, seed: Tensor | None,
    softmax_scale: float, dropout_p: float, causal: bool, left: int, right: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, H, T_q, D), in (B, T_q, H, D) memory; lse (B, H, T_q) float32. left, right < 0: no bound."""
    B, H, T_q, D = q.shape
    H_kv, T_k = k.shape[1:3]
    check_positions("flash_attention", T_q, T_k)
    out = empty_heads_last(q, (B, H, T_q, D))
    lse = torch.empty((B, H, T_q), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    target = _runtime.target_of(q)
    tile = tiles.forward(target, q.element_size(), D, roomy=dropout_p > 0.0, T_q=T_q, heads=B * H)
    d_a, d_b = tiles.split_head_dim(D)
    num_tiles = -(-T_q // tile.block_m)
    lower, upper = band(T_q, T_k, causal, left, right)
    with _runtime.on_device_of(q):
        ranges = document_ranges(document_ids, T_q, T_k, tile.block_m, of_keys=False)
        device_forward.attention_forward[grid("flash_attention", num_tiles * B * H)](
            q, k, v, *descriptors(target, k, tile.block_n), *descriptors(target, v, tile.block_n), out, lse,
            q.stride(), k.stride(), v.stride(), out.stride(),
            key_starts, key_lengths, document_ids, 0 if document_ids is None else document_ids.stride(0), ranges, seed,
            T_q, T_k, H, H // H_kv, lower or 0, upper or 0, B * H,
            min(tiles.heads_per_section(target, 2 * T_k * D * q.element_size(), H // H_kv), B * H),
            softmax_scale * LOG2_E, drop_threshold(dropout_p), 1.0 / (1.0 - dropout_p),
            HEAD_DIM=D, D_A=d_a, D_B=d_b, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, EDGE=tile.edge,
            HAS_LOWER=lower is not None, HAS_UPPER=upper is not None, HAS_DROPOUT=dropout_p > 0.0,
            WIDE=has_wide_strides(q, k, v, out), PRECISION=_runtime.dot_precision(q),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out, lse


def backward(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None, seed: Tensor | None,
    softmax_scale: float, dropout_p: float, causal: bool, left: int, right: int, need_dq: bool, need_dkdv: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """d_q, d_k, d_v, each in heads-last memory like `out`; an empty tensor in the place of those not needed."""
    B, H, T_q, D = q.shape
    H_kv, T_k = k.shape[1:3]
    none = q.new_empty(0)
    d_q = empty_heads_last(q, q.shape) if need_dq else none
    d_k, d_v = (empty_heads_last(x, x.shape) if need_dkdv else q.new_empty(0) for x in (k, v))
    if q.numel() == 0 or k.numel() == 0:  # nothing was attended: every gradient that has elements is 0
        return d_q.zero_(), d_k.zero_(), d_v.zero_()
    target, itemsize = _runtime.target_of(q), q.element_size()
    d_a, d_b = tiles.split_head_dim(D)
    lower, upper = band(T_q, T_k, causal, left, right)
    group, name = H // H_kv, "flash_attention's backward"
    delta, lse2 = torch.empty_like(lse), torch.empty_like(lse)
    # d_q, d_k and d_v have the strides of `out` or smaller ones: k has no more heads than q.
    wide = has_wide_strides(q, k, v, d_out, out)
    document_stride = 0 if document_ids is None else document_ids.stride(0)
    flags = {
        "HEAD_DIM": D, "D_A": d_a, "D_B": d_b, "HAS_LOWER": lower is not None, "HAS_UPPER": upper is not None,
        "HAS_DROPOUT": dropout_p > 0.0, "WIDE": wide, "PRECISION": _runtime.dot_precision(q),
    }  # fmt: skip
    with _runtime.on_device_of(q):
        block_d = triton.next_power_of_2(D)
        block_m = 32
        device_backward.attention_delta[grid(name, triton.cdiv(T_q, block_m) * B * H)](
            out, d_out, d_lse, lse, lse2, delta,
            out.stride(), d_out.stride(), None if d_lse is None else d_lse.stride(),
            T_q, H, HEAD_DIM=D, BLOCK_M=block_m, BLOCK_D=block_d,
            WIDE=wide or (d_lse is not None and d_lse.stride(2) >= WIDE_STRIDE), num_warps=4,
        )  # fmt: skip
        if need_dkdv:
            tile = tiles.dkdv(target, itemsize, D, roomy=dropout_p > 0.0, T_k=T_k, heads=B * H_kv)
            check_steps(name, T_q, group, min(tile.block_m, tile.edge))
            device_backward.attention_dkdv[grid(name, triton.cdiv(T_k, tile.block_n) * B * H_kv)](
                q, k, v, d_out, *descriptors(target, q, tile.block_m), *descriptors(target, d_out, tile.block_m),
                lse2, delta, d_k, d_v, q.stride(), k.stride(), v.stride(), d_out.stride(),
                d_k.stride(), d_v.stride(), key_starts, key_lengths, document_ids, document_stride,
                document_ranges(document_ids, T_q, T_k, tile.block_n, of_keys=True), seed,
                T_q, T_k, H_kv, lower or 0, upper or 0, B * H_kv,
                min(tiles.heads_per_section(target, 2 * group * T_q * D * itemsize, 1), B * H_kv), softmax_scale,
                drop_threshold(dropout_p), 1.0 / (1.0 - dropout_p), GROUP=group, BLOCK_M=tile.block_m,
                BLOCK_N=tile.block_n, EDGE=tile.edge, num_warps=tile.num_warps, num_stages=tile.num_stages, **flags,
            )  # fmt: skip
        if need_dq:
            roomy = dropout_p > 0.0 or document_ids is not None
            tile = tiles.dq(target, itemsize, D, roomy=roomy, T_q=T_q, heads=B * H)
            device_backward.attention_dq[grid(name, triton.cdiv(T_q, tile.block_m) * B * H)](
                q, k, v, d_out, *descriptors(target, k, tile.block_n), *descriptors(target, v, tile.block_n),
                lse2, delta, d_q, q.stride(), k.stride(), v.stride(), d_out.stride(), d_q.stride(),
                key_starts, key_lengths, document_ids, document_stride,
                document_ranges(document_ids, T_q, T_k, tile.block_m, of_keys=False), seed,
                T_q, T_k, H, group, lower or 0, upper or 0, B * H,
                min(tiles.heads_per_section(target, 2 * T_k * D * itemsize, group), B * H), softmax_scale,
                drop_threshold(dropout_p), 1.0 / (1.0 - dropout_p), BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
                EDGE=tile.edge, num_warps=tile.num_warps, num_stages=tile.num_stages, **flags,
            )  # fmt: skip
    return d_q, d_k, d_v


def empty_heads_last(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """(B, H, T, D) on (B, T, H, D) memory, so that merging the heads is a view."""
    B, H, T, D = shape
    return like.new_empty((B, T, H, D)).transpose(1, 2)


def descriptors(target: _runtime.Target, x: Tensor, rows: int) -> tuple[TensorDescriptor | None, ...]:
    """TMA descriptors of x (B, H, T, D) for its tiles (rows, d_a) and (rows, d_b); None where pointers must serve."""
    if x.shape[2] < tiles.MIN_TMA_ROWS or x.data_ptr() % 16:
        return None, None
    a, b = descriptor_fields(target, x.dtype, x.shape, x.stride(), rows)
    return _descriptor(x, a), _descriptor(x, b)


@functools.lru_cache(maxsize=1024)
def descriptor_fields(
    target: _runtime.Target, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], rows: int
) -> tuple[dict | None, dict | None]:
    """What the two descriptors of a tensor of this layout hold besides the tensor; None where pointers must serve.

    The copy engine wants a contiguous last dimension, and 16-byte alignment of every stride. Triton checks this each
    time that a descriptor is made, which takes longer than all the rest of a launch: here it does so once a layout.
    """
    if not tiles.loads_by_tma(target, dtype.itemsize, shape[2]) or stride[3] != 1:
        return None, None
    # The stride of a dimension of size 1 is never used, and may be anything.
    strides = [s if n > 1 else 16 for n, s in zip(shape[:3], stride)]
    if any(s * dtype.itemsize % 16 or s <= 0 for s in strides):
        return None, None

    def fields(columns: int) -> dict | None:
        if not columns:
            return None
        nothing = torch.empty(0, dtype=dtype, device="meta")
        return vars(TensorDescriptor(nothing, [*shape], [*strides, 1], [1, 1, rows, columns]))

    d_a, d_b = tiles.split_head_dim(shape[3])
    return fields(d_a), fields(d_b)


def _descriptor(x: Tensor, fields: dict | None) -> TensorDescriptor | None:
    if fields is None:
        return None
    descriptor = object.__new__(TensorDescriptor)
    descriptor.__dict__.update(fields, base=x)
    return descriptor


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
    if T_q + T_k > MAX_POSITIONS:
        raise ValueError(
            f"{name}: positions are int32 numbers, so T_q + T_k may be {MAX_POSITIONS} at most; got T_q = {T_q} and "
            f"T_k = {T_k}: attend to the keys in parts, and combine them by their lse (return_lse=True)"
        )


def check_steps(name: str, T_q: int, group: int, step: int) -> None:
    """A program of dK/dV counts its steps, over the queries of a whole group of heads, in int32."""
    if (-(-T_q // step) + 2) * group >= 2**31:
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


def document_ranges(document_ids: Tensor | None, T_q: int, T_k: int, block: int, *, of_keys: bool) -> Tensor | None:
    """For each tile of `block` queries, the keys that may share a document with it; of keys, the queries."""
    if document_ids is None:
        return None
    rows, columns = (T_k, T_q) if of_keys else (T_q, T_k)
    num_tiles, B = triton.cdiv(rows, block), document_ids.shape[0]
    ranges = document_ids.new_empty((B, num_tiles, 3), dtype=torch.int32)
    masks.document_ranges[grid("flash_attention", num_tiles * B)](
        document_ids, ranges, document_ids.stride(0), T_k - rows, rows, T_k - columns, columns,
        BLOCK=block, CHUNK=1024, num_warps=4,
    )  # fmt: skip
    return ranges


def has_wide_strides(*tensors: Tensor) -> bool:
    """Whether offsets inside one tile (at most 256 on a side) may pass 2^31."""
    for x in tensors:  # noqa: SIM110 (a generator takes twice as long, on every call)
        if x.stride(2) >= WIDE_STRIDE or x.stride(3) >= WIDE_STRIDE:
            return True
    return False
