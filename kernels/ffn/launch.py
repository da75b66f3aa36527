"""Launch: the forward and backward passes that the operators run, and the kernels' launches that they are made of.

    pre = x W1ᵀ + b1      act = gelu(pre)      y = residual + dropout(act W2ᵀ + b2)

    dy = mask ⊙ dout      dpre = (dy W2) ⊙ gelu'(pre)      dW2 = dyᵀ act      dW1 = dpreᵀ x      dx = dpre W1

A pass returns new tensors, and an empty one for a gradient not asked for. They are allocated in their final shape: a
view that is made inside of an autograd.Function may not be modified. Inside, matrices are 2-D; M counts tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import _runtime
from .._partials import sum_partials
from .._random import threshold_and_scale
from .._runtime import cdiv
from ..device.dropout import Dropout
from . import backward as bwd
from . import forward as fwd
from . import tiles
from .products import linear, product, weight_grad
from .structs import Config, Strides

# Kernels number rows and columns in 32 bits, and look past the end: the last tile, or the last band of `_bands`.
LARGEST = 2**31 - 2**25


# ------------------------------------------------------------------------------------------------------- the passes


def linear_gelu_forward(
    x: Tensor, w: Tensor, b: Tensor | None, approximate: str, save_pre: bool, path: str
) -> tuple[Tensor, Tensor]:
    """(gelu(x wᵀ + b), pre-activation (M, d_out) or an empty tensor)."""
    with _runtime.on_device_of(x):
        flat, act = rows_of(x), x.new_empty(*x.shape[:-1], w.shape[0])
        pre = x.new_empty(flat.shape[0], w.shape[0]) if save_pre else None
        up(flat, w, b, approximate == "tanh", pre, path, rows_of(act))
    return act, x.new_empty(0) if pre is None else pre


def linear_gelu_backward(
    dact: Tensor, x: Tensor, w: Tensor, b: Tensor | None, pre: Tensor | None, approximate: str, grads: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, db) of `linear_gelu`; `grads` says which are wanted, `pre` None recomputes the pre-activation."""
    with _runtime.on_device_of(x):
        need_dx, need_dw, need_db = grads
        flat = rows_of(x)
        dact = rows_of(dact)
        dact = dact if dact.stride(1) == 1 else dact.contiguous()
        pre = linear(flat, w, b, x.new_empty(flat.shape[0], w.shape[0])) if pre is None else pre
        dpre = torch.empty_like(pre)
        _, partials = dgelu_pass(dact, pre, dpre, False, need_db, approximate == "tanh")
        db = x.new_empty(0) if partials is None else sum_partials(partials, x.new_empty(w.shape[0]))
        dw = weight_grad(dpre, flat) if need_dw else x.new_empty(0)
        dx = product(dpre, w).view(x.shape) if need_dx else x.new_empty(0)
    return dx, dw, db


def gelu_ffn_forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, residual: Tensor | None,
    seed: Tensor | None, dropout_p: float, approximate: str, save_pre: bool, path: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y, pre-activation (M, d_hidden) or an empty tensor)."""
    with _runtime.on_device_of(x):
        flat, d_hidden, d_out = rows_of(x), w1.shape[0], w2.shape[0]
        M, dropout = flat.shape[0], _dropout(seed, dropout_p)
        flat_residual = None if residual is None else rows_of(residual)
        pre = x.new_empty(M, d_hidden) if save_pre else None
        y = x.new_empty(*x.shape[:-1], d_out, dtype=x.dtype if residual is None else residual.dtype)
        flat_y = rows_of(y)
        for begin, end in tiles.token_chunks(M, d_hidden):
            x_, y_ = flat[begin:end], flat_y[begin:end]
            pre_ = None if pre is None else pre[begin:end]
            residual_ = None if flat_residual is None else flat_residual[begin:end]
            act = up(x_, w1, b1, approximate == "tanh", pre_, path)
            down(act, w2, b2, residual_, dropout, y_, begin)
            del act  # before the next chunk's is allocated
    return y, x.new_empty(0) if pre is None else pre


def gelu_ffn_backward(
    dout: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, pre: Tensor | None, seed: Tensor | None,
    dropout_p: float, approximate: str, grads: Sequence[bool], path: str, overwrite_pre: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dw1, db1, dw2, db2); `grads` says which are wanted, `pre` None recomputes the pre-activation.

    The hidden columns are handled in chunks, each with its own activation, which dies with dW2's columns. With
    `overwrite_pre`, dpre takes the place of the pre-activation: one hidden-sized matrix and one chunk is all there is.
    """
    with _runtime.on_device_of(x):
        need_dx, need_dw1, need_db1, need_dw2, need_db2 = grads
        empty, dtype, is_tanh = x.new_empty(0), x.dtype, approximate == "tanh"
        flat, (d_hidden, M) = rows_of(x), (w1.shape[0], x.shape[:-1].numel())
        dy, db2 = prepare_grad(rows_of(dout), _dropout(seed, dropout_p), dtype, need_db2)
        db2 = empty if db2 is None else db2
        need_dpre = need_dx or need_dw1 or need_db1
        if not (need_dpre or need_dw2):
            return empty, empty.clone(), empty.clone(), empty.clone(), db2
        if pre is None:
            pre, overwrite_pre = linear(flat, w1, b1, x.new_empty(M, d_hidden)), True
        dpre = pre if overwrite_pre else torch.empty_like(pre)
        dw2 = x.new_empty(w2.shape) if need_dw2 else x.new_empty(0)
        db1 = x.new_empty(d_hidden) if need_db1 else x.new_empty(0)
        for begin, end in tiles.hidden_chunks(M, d_hidden):
            columns = slice(begin, end)
            act, partials = dgelu(
                dy, w2[:, columns], pre[:, columns], dpre[:, columns], need_dw2, need_db1, is_tanh, path
            )
            if act is not None:
                weight_grad(dy, act, dw2[:, columns])
            if partials is not None:
                sum_partials(partials, db1[columns])
            del act  # before the next chunk's is allocated
        dx = product(dpre, w1).view(x.shape) if need_dx else x.new_empty(0)
        dw1 = weight_grad(dpre, flat) if need_dw1 else x.new_empty(0)
    return dx, dw1, db1, dw2, db2


def rows_of(x: Tensor) -> Tensor:
    """(..., d) -> (M, d): a view whenever the leading dimensions share one stride."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _dropout(seed: Tensor | None, dropout_p: float) -> Dropout | None:
    return None if seed is None else Dropout(seed, *threshold_and_scale(dropout_p))


# ---------------------------------------------------------------------------------------------------------- forward


def up(
    x: Tensor, w: Tensor, b: Tensor | None, is_tanh: bool, pre: Tensor | None, path: str, out: Tensor | None = None
) -> Tensor:
    """gelu(x wᵀ + b), into `out` if given, and x wᵀ + b into `pre` if given; both contiguous.

    x (M, d_in), w (d_hidden, d_in), out and pre (M, d_hidden).
    """
    (M, K), N = x.shape, w.shape[0]
    plan = _plan("up", path, x, w, N, is_tanh, out_tma=N % 8 == 0)
    act = x.new_empty(M, N) if out is None else out
    if plan is None:
        pre = act if pre is None else pre
        linear(x, w, b, pre)
        gelu_pass(pre, act, is_tanh)
        return act
    C, stride_bias = plan.config, None if b is None else b.stride(0)
    stride = Strides(x.stride(0), x.stride(1), w.stride(1), w.stride(0), stride_bias, pre=N, act=N)
    fwd.up_kernel[plan.grid](
        _operand(x, C.block_m, C.block_k, C.is_tma), _operand(w, C.block_n, C.block_k, C.is_tma), b,
        None if pre is None else _band(pre, C), _band(act, C),
        stride, M, N, K, C, num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return act


def gelu_pass(pre: Tensor, act: Tensor, is_tanh: bool) -> None:
    """act = gelu(pre), both contiguous; they may be the same."""
    if pre.numel():
        fwd.gelu_kernel[(cdiv(pre.numel(), 2048),)](pre, act, pre.numel(), IS_TANH=is_tanh, BLOCK=2048, num_warps=8)


def down(
    a: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None, dropout: Dropout | None, out: Tensor, row0: int
) -> None:
    """out = residual + dropout(a wᵀ + b); a (M, d_hidden), w (d_out, d_hidden), out (M, d_out) contiguous.

    `row0` is the row of a whole matrix at which these M rows start: dropout's mask depends on it.
    """
    _check_sizes(a, w)
    y = linear(a, w, b, out if out.dtype == a.dtype else a.new_empty(out.shape))
    finish_pass(y, residual, dropout, out, row0)


def finish_pass(y: Tensor, residual: Tensor | None, dropout: Dropout | None, out: Tensor, row0: int) -> None:
    """out = residual + dropout(y), all (M, N), y and out contiguous; out may be y."""
    M, N = y.shape
    if (residual is None and dropout is None) or not y.numel():
        return  # then y is out
    if residual is not None and residual.stride(1) != 1 and N != 1:
        residual = residual.contiguous()
    fwd.finish_kernel[(cdiv(M, 16) * cdiv(N, 128),)](
        y, residual, out, dropout, N, 0 if residual is None else residual.stride(0), N, M, N, row0,
        BLOCK_M=16, BLOCK_N=128, num_warps=4,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- backward


def prepare_grad(
    dout: Tensor, dropout: Dropout | None, dtype: torch.dtype, need_dbias: bool
) -> tuple[Tensor, Tensor | None]:
    """(dy, sum of dy's rows or None): dropout's mask applied to dout (M, N), in `dtype`, with contiguous rows."""
    M, N = dout.shape
    rewrite = dropout is not None or dout.dtype != dtype or (N > 1 and dout.stride(1) != 1) or dout.stride(0) == 0
    if not M or not N:
        return dout.to(dtype), dout.new_zeros(N, dtype=dtype) if need_dbias else None
    if not rewrite and not need_dbias:
        return dout, None
    bands, rows = _bands(M)
    dy = dout.new_empty(M, N, dtype=dtype) if rewrite else None
    partials = dout.new_empty(bands, N, dtype=torch.float32) if need_dbias else None
    bwd.prepare_grad_kernel[(cdiv(N, 128), bands)](
        dout, dy, partials, dropout, dout.stride(0), dout.stride(1), N, M, N, rows, BLOCK_M=16, BLOCK_N=128, num_warps=4
    )
    db = None if partials is None else sum_partials(partials, dout.new_empty(N, dtype=dtype))
    return dout if dy is None else dy, db


def dgelu(
    dy: Tensor, w: Tensor, pre: Tensor, dpre: Tensor, need_act: bool, need_dbias: bool, is_tanh: bool, path: str
) -> tuple[Tensor | None, Tensor | None]:
    """Fill dpre = (dy w) ⊙ gelu'(pre); returns (gelu(pre) or None, partial sums of dpre's rows or None).

    dy (M, d_out); w (d_out, N), pre and dpre (M, N) may be columns of larger matrices; dpre may be pre itself.
    """
    (M, K), N = dy.shape, w.shape[1]
    plan = _plan("dgelu", path, dy, w, N, is_tanh, out_tma=N % 8 == 0 and _can_tma(pre, dpre))
    if plan is None:
        return dgelu_pass(product(dy, w), pre, dpre, need_act, need_dbias, is_tanh)
    C = plan.config
    act = dy.new_empty(M, N) if need_act else None
    partials = dy.new_empty(cdiv(M, C.block_m), N, dtype=torch.float32) if need_dbias else None
    stride = Strides(
        dy.stride(0), dy.stride(1), w.stride(0), w.stride(1), pre=pre.stride(0), dpre=dpre.stride(0), act=N
    )
    bwd.dgelu_kernel[plan.grid](
        _operand(dy, C.block_m, C.block_k, C.is_tma), _operand(w, C.block_k, C.block_n, C.is_tma),
        _band(pre, C), _band(dpre, C), None if act is None else _band(act, C), partials,
        stride, M, N, K, C, num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return act, partials


def dgelu_pass(
    dact: Tensor, pre: Tensor, dpre: Tensor, need_act: bool, need_dbias: bool, is_tanh: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`dgelu` from dact = dy w, which it overwrites with the activation if that is asked for."""
    M, N = dact.shape
    bands, rows = _bands(max(M, 1))
    act = dact if need_act else None
    partials = dact.new_empty(bands, N, dtype=torch.float32) if need_dbias else None
    if dact.numel():
        bwd.dgelu_pass_kernel[(cdiv(N, 128), bands)](
            dact, pre, dpre, act, partials, dact.stride(0), pre.stride(0), dpre.stride(0), dact.stride(0), M, N, rows,
            IS_TANH=is_tanh, BLOCK_M=16, BLOCK_N=128, num_warps=4,
        )  # fmt: skip
    elif partials is not None:
        partials.zero_()
    return act, partials


def _bands(M: int) -> tuple[int, int]:
    """(bands, rows in each): a column sum's partial sums, one a band. Depends on M alone, hence deterministic.

    At most 128 bands: as many as a grid's second dimension (65535 on CUDA) has room for.
    """
    rows = 64 if M <= 8192 else cdiv(M, 128 * 16) * 16
    return cdiv(M, rows), rows


# --------------------------------------------------------------------------------------- products that Triton computes


class _Plan(NamedTuple):
    config: Config
    grid: tuple[int]
    num_warps: int
    num_stages: int


def _plan(role: str, path: str, a: Tensor, b: Tensor, N: int, is_tanh: bool, out_tma: bool) -> _Plan | None:
    """How to launch the product `role` of a (M, K) and b, with N columns; None: it is cuBLAS's.

    out_tma: whether TMA could take the matrices of the epilogue, too.
    """
    _check_sizes(a, b)
    (M, K), target, precision = a.shape, _runtime.target_of(a), _runtime.dot_precision(a)
    is_tma = _can_tma(a, b)
    kind = tiles.kind_of(a.dtype, precision, is_tma)
    if not (M and N and K and tiles.runs_in_triton(path, target, kind, role, K)):
        return None
    tile = tiles.product_tile(target, kind, role)
    config = Config(
        tile.block_m,
        tile.block_n,
        tile.block_k,
        tile.parts,
        tile.group_m,
        is_tma,
        is_tma and out_tma,
        is_tanh,
        precision,
    )
    work = cdiv(M, tile.block_m) * cdiv(N, tile.block_n)
    return _Plan(config, (min(work, target.num_sms * tile.programs_per_sm),), tile.num_warps, tile.num_stages)


def _check_sizes(a: Tensor, b: Tensor) -> None:
    """Raise ValueError if the kernels cannot number the rows and columns of these operands of a product."""
    if max(*a.shape, *b.shape) > LARGEST:
        raise ValueError(
            f"gelu_ffn, linear_gelu: a product of {tuple(a.shape)} and {tuple(b.shape)}; the kernels number rows "
            f"and columns in 32 bits, up to {LARGEST}: split the batch, or use fastgpt.kernels.reference"
        )


def _can_tma(*matrices: Tensor) -> bool:
    """TMA wants contiguous rows that start on 16-byte boundaries."""
    return _runtime.target_of(matrices[0]).has_tma and all(
        m.dtype in (torch.float16, torch.bfloat16)
        and m.stride(1) == 1
        and m.stride(0) > 0
        and m.stride(0) % 8 == 0
        and m.data_ptr() % 16 == 0
        for m in matrices
    )


def _operand(matrix: Tensor, rows: int, columns: int, is_tma: bool) -> Any:
    """The matrix, or a descriptor that loads and stores its tiles of rows x columns."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns]) if is_tma else matrix


def _band(matrix: Tensor, C: Config) -> Any:
    """A matrix of the epilogue, which handles it by bands of columns."""
    return _operand(matrix, C.block_m, C.block_n // C.parts, C.is_tma_out)
