"""Launches of the LayerNorm kernels: allocation, grid, tile choice.

Tensors come in their own shapes with `d` trailing normalised dimensions; kernels see them as (M, N) rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _runtime
from .._partials import sum_partials
from .._random import threshold_and_scale
from .._runtime import cdiv
from . import tiles
from .backward import (
    layer_norm_backward_held_kernel,
    layer_norm_backward_kernel,
    layer_norm_dh_long_kernel,
    layer_norm_dweight_long_kernel,
)
from .forward import layer_norm_forward_held_kernel, layer_norm_forward_kernel, layer_norm_forward_long_kernel
from .structs import Config


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    d: int,
    eps: float,
    dropout_p: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(y, new_residual, stats): y and new_residual contiguous, in x's shape; stats (2, M) float32 of mean and rstd.

    With residual None, so is new_residual. One launch.
    """
    M, N = rows_and_columns(x, d)
    inputs = [as_rows(t, M, N) for t in (x, residual) if t is not None]
    weight, bias = contiguous(weight), contiguous(bias)

    aligned = alignment(N, inputs)
    tile = tiles.forward_tile(N, itemsizes(inputs), seed is not None, _runtime.target_of(x))
    config = Config(N, aligned, tile.block_m, tile.block_n, tile.stages)

    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    new_residual = None if residual is None else torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    stats = torch.empty((2, M), dtype=torch.float32, device=x.device)
    if M == 0 or N == 0:
        return y, new_residual, stats

    (x_rows, stride_xm), (residual_rows, stride_rm) = (*inputs, (None, 0))[:2]
    with _runtime.on_device_of(x):
        if tile.held:
            layer_norm_forward_held_kernel[(M,)](
                x_rows, weight, bias, y, stats, M, stride_xm // aligned, eps, 0, C=config, num_warps=tile.num_warps
            )  # fmt: skip
        else:
            kernel = layer_norm_forward_long_kernel if tile.long else layer_norm_forward_kernel
            kernel[(cdiv(M, tile.block_m),)](
                x_rows, residual_rows, weight, bias, seed, y, new_residual, stats,
                M, stride_xm // aligned, stride_rm // aligned, eps, *threshold_and_scale(dropout_p),
                C=config, num_warps=tile.num_warps,
            )  # fmt: skip
    return y, new_residual, stats


def backward(
    dy: Tensor,
    dh_out: Tensor | None,
    h: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    seed: Tensor | None,
    d: int,
    dropout_p: float,
    dh_dtype: torch.dtype | None,
    dx_dtype: torch.dtype | None,
    dweight_dtype: torch.dtype | None,
    dbias_dtype: torch.dtype | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dh, dx, dweight, dbias) in the dtypes given; a dtype of None: not wanted, and None in its place.

    dy is y's gradient, dh_out the gradient of the new residual (or None), h what was normalised. One launch, and a
    second one that sums the partial sums of dweight and dbias.
    """
    M, N = rows_and_columns(h, d)
    inputs = [as_rows(t, M, N) for t in (dy, h, dh_out) if t is not None]
    weight = contiguous(weight)

    rows_wanted = dh_dtype is not None or dx_dtype is not None
    sums_wanted = dweight_dtype is not None or dbias_dtype is not None
    summed = sums_wanted and N <= tiles.LONGEST_SUMMED  # on the way, by the kernel that computes dh
    aligned = alignment(N, inputs)
    tile = tiles.backward_tile(N, itemsizes(inputs), seed is not None, _runtime.target_of(h))
    config = Config(
        N, aligned, tile.block_m, tile.block_n, tile.stages,
        summed and dweight_dtype is not None, summed and dbias_dtype is not None,
    )  # fmt: skip
    programs = min(tile.programs or 2**31 - 1, cdiv(M, tile.block_m))

    def new(dtype: torch.dtype | None, shape: torch.Size) -> Tensor | None:
        return None if dtype is None else torch.empty(shape, dtype=dtype, device=h.device)

    dh, dx = new(dh_dtype, h.shape), new(dx_dtype, h.shape)
    dweight, dbias = (new(dtype, h.shape[h.dim() - d :]) for dtype in (dweight_dtype, dbias_dtype))
    sums = [t for t in (dweight, dbias) if t is not None]
    if M == 0 or N == 0:
        for t in sums:
            t.zero_()
        return dh, dx, dweight, dbias
    partials = None
    if summed:
        shape = (programs, N) if len(sums) == 1 else (2, programs, N)
        partials = torch.empty(shape, dtype=torch.float32, device=h.device)

    (dy_rows, stride_dym), (h_rows, stride_hm), (dh_out_rows, stride_dhm) = (*inputs, (None, 0))[:3]
    tensors = dy_rows, dh_out_rows, h_rows, weight, stats, seed, dh, dx
    scalars = (
        M, stride_dym // aligned, stride_dhm // aligned, stride_hm // aligned,
        *threshold_and_scale(dropout_p),
    )  # fmt: skip
    with _runtime.on_device_of(h):
        if tile.long:
            if rows_wanted:
                layer_norm_dh_long_kernel[(M,)](*tensors, *scalars, C=config, num_warps=tile.num_warps)
        elif rows_wanted or summed:
            if tile.held:
                layer_norm_backward_held_kernel[(programs,)](
                    *tensors, partials, *scalars, 0, C=config, num_warps=tile.num_warps
                )
            else:
                layer_norm_backward_kernel[(programs,)](
                    *tensors, partials, *scalars, C=config, num_warps=tile.num_warps
                )  # fmt: skip
        if partials is not None:
            sum_partials(partials, *sums)
        elif sums_wanted:
            tile = tiles.DWEIGHT_LONG
            layer_norm_dweight_long_kernel[(cdiv(N, tile.block_n),)](
                dy_rows, h_rows, stats, dweight, dbias, M, stride_dym // aligned, stride_hm // aligned,
                C=Config(N, aligned, tile.block_m, tile.block_n), num_warps=tile.num_warps,
            )  # fmt: skip
    return dh, dx, dweight, dbias


def as_rows(x: Tensor, M: int, N: int) -> tuple[Tensor, int]:
    """x as M rows of N neighbouring elements each, and the stride of the rows. Copies only if it must."""
    if x.is_contiguous():
        return x, N
    try:
        rows = x.view(M, N)
    except RuntimeError:  # leading dimensions that cannot be merged, or normalised ones that are not contiguous
        return x.contiguous(), N
    return (rows, rows.stride(0)) if N == 1 or rows.stride(1) == 1 else (x.contiguous(), N)


def alignment(N: int, inputs: list[tuple[Tensor, int]]) -> int:
    """Elements in 16 bytes of the narrowest tensor if every row of every tensor starts on such a boundary, else 1.

    Triton loads 16 bytes per instruction only if it sees that it can, which a row stride of 1032 does not show: kernels
    take strides in units of the alignment. There is nothing in between 1 and 16 bytes, so that a row's bits do not
    depend on where its tensor happens to start.
    """
    elements = 16 // min(itemsizes(inputs))
    if N % elements:
        return 1
    for tensor, stride in inputs:
        if stride % elements or tensor.data_ptr() % 16:
            return 1
    return elements


def itemsizes(inputs: list[tuple[Tensor, int]]) -> tuple[int, ...]:
    return tuple([tensor.element_size() for tensor, _ in inputs])


def rows_and_columns(x: Tensor, d: int) -> tuple[int, int]:
    """(M, N): the products of the leading dimensions and of the `d` trailing ones.

    Raises:
        ValueError: rows so long that the kernels, which number columns in 32 bits, would lose count.
    """
    M, N = math.prod(x.shape[: x.dim() - d]), math.prod(x.shape[x.dim() - d :])
    if N > tiles.LONGEST:
        raise ValueError(
            f"layer_norm: rows of {N} elements, and the kernels take up to {tiles.LONGEST}; use "
            "fastgpt.kernels.reference.layer_norm"
        )
    return M, N


def contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
