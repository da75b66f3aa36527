"""Launch: allocation, tile look-up and grids of the FFN's kernels. Matrices here are 2-D; M counts tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import _runtime
from . import backward as bwd
from . import elementwise, tiles
from . import forward as fwd

_HALF = (torch.float16, torch.bfloat16)
# Kernels number rows and columns in 32 bits, and look past the end: the last tile, or the last band of `_bands`.
LARGEST = 2**31 - 2**25


def _can_tma(*matrices: Tensor) -> bool:
    """TMA wants contiguous rows that start on 16-byte boundaries."""
    return _runtime.target_of(matrices[0]).has_tma and all(
        m.dtype in _HALF and m.stride(1) == 1 and m.stride(0) > 0 and m.stride(0) % 8 == 0 and m.data_ptr() % 16 == 0
        for m in matrices
    )


def _operand(matrix: Tensor, block: list[int], tma: bool) -> Any:
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), block) if tma else matrix


def check_sizes(a: Tensor, b: Tensor) -> None:
    """Raise ValueError if the kernels cannot number the rows and columns of these operands of a product."""
    if max(*a.shape, *b.shape) > LARGEST:
        raise ValueError(
            f"gelu_ffn, linear_gelu: a product of {tuple(a.shape)} and {tuple(b.shape)}; the kernels number rows "
            f"and columns in 32 bits, up to {LARGEST}: split the batch, or use fastgpt.kernels.reference"
        )


class _Product:
    """What the launch of one product needs: its tile, whether operands come by TMA, and who computes it."""

    def __init__(self, role: str, path: str, a: Tensor, b: Tensor, depth: int) -> None:
        check_sizes(a, b)
        target = _runtime.target_of(a)
        self.precision = _runtime.dot_precision(a)
        self.tma = _can_tma(a, b)
        kind = tiles.kind_of(a.dtype, self.precision, self.tma)
        self.tile = tiles.product_tile(target, kind, role)
        self.programs = target.num_sms * self.tile.programs_per_sm
        empty = a.numel() == 0 or b.numel() == 0
        self.triton = not empty and tiles.runs_in_triton(path, target, kind, role, depth)

    def count(self, M: int, N: int) -> int:
        return triton.cdiv(M, self.tile.block_m) * triton.cdiv(N, self.tile.block_n)

    def grid(self, work: int) -> tuple[int]:
        return (min(work, self.programs),)

    def options(self) -> dict[str, Any]:
        t = self.tile
        return {
            "tma": self.tma, "precision": self.precision, "block_m": t.block_m, "block_n": t.block_n,
            "block_k": t.block_k, "parts": t.parts, "group_m": t.group_m, "num_warps": t.num_warps,
            "num_stages": t.num_stages,
        }  # fmt: skip

    def out(self, tma_out: bool, matrix: Tensor) -> Any:
        return _operand(matrix, [self.tile.block_m, self.tile.block_n // self.tile.parts], tma_out)


def rows_of(x: Tensor) -> Tensor:
    """(..., d) -> (M, d): a view whenever the leading dimensions share one stride."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def up(
    x: Tensor, w: Tensor, b: Tensor | None, tanh: bool, pre: Tensor | None, path: str, out: Tensor | None = None
) -> Tensor:
    """gelu(x wᵀ + b), into `out` if given, and x wᵀ + b into `pre` if given; both contiguous.

    x (M, d_in), w (d_hidden, d_in), out and pre (M, d_hidden).
    """
    (M, K), N = x.shape, w.shape[0]
    act = x.new_empty(M, N) if out is None else out
    product = _Product("up", path, x, w, K)
    if not product.triton:
        pre = act if pre is None else pre
        linear(x, w, b, pre)
        gelu_pass(pre, act, tanh)
        return act
    tile, out_tma = product.tile, product.tma and _can_tma(act)
    fwd.up_kernel[product.grid(product.count(M, N))](
        _operand(x, [tile.block_m, tile.block_k], product.tma), _operand(w, [tile.block_n, tile.block_k], product.tma),
        b, product.out(out_tma, act if pre is None else pre), product.out(out_tma, act),
        x.stride(0), x.stride(1), w.stride(1), w.stride(0), b.stride(0) if b is not None else 0, N, N, M, N, K,
        has_bias=b is not None, save_pre=pre is not None, tanh=tanh, tma_out=out_tma, **product.options(),
    )  # fmt: skip
    return act


def linear(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
    """x wᵀ + b by cuBLAS, into `out`."""
    return product_of(x, w.t(), out) if b is None else torch.addmm(b, x, w.t(), out=out)


def product_of(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b, into `out` if given.

    Autocast leaves alone what writes to `out`. It would cast the operands of any other product, and a backward pass may
    run inside of it though its forward did not.
    """
    return torch.mm(a, b, out=a.new_empty(a.shape[0], b.shape[1]) if out is None else out)


def gelu_pass(pre: Tensor, act: Tensor, tanh: bool) -> None:
    """act = gelu(pre), both contiguous; they may be the same."""
    if pre.numel():
        elementwise.gelu_kernel[(triton.cdiv(pre.numel(), 2048),)](
            pre, act, pre.numel(), tanh=tanh, block=2048, num_warps=8
        )


def down(
    a: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None, seed: Tensor | None, drop: tuple[int, float],
    out: Tensor, row0: int,
) -> None:  # fmt: skip
    """out = residual + dropout(a wᵀ + b); a (M, d_hidden), w (d_out, d_hidden); drop = (threshold, 1 / (1 - p)).

    `row0` is the row of a whole matrix at which these M rows start: dropout's mask depends on it.
    """
    check_sizes(a, w)
    residual = None if residual is None else _rows_contiguous(residual)
    y = linear(a, w, b, out if out.dtype == a.dtype else a.new_empty(a.shape[0], w.shape[0]))
    finish_pass(y, residual, seed, drop, out, row0)


def finish_pass(
    y: Tensor, residual: Tensor | None, seed: Tensor | None, drop: tuple[int, float], out: Tensor, row0: int
) -> None:
    """out = residual + dropout(y); out may be y."""
    M, N = y.shape
    if (residual is None and seed is None) or not y.numel():
        return  # then y is out
    elementwise.finish_kernel[(triton.cdiv(M, 16) * triton.cdiv(N, 128),)](
        y, residual, seed, out, N, residual.stride(0) if residual is not None else 0, N, M, N, row0, *drop,
        has_dropout=seed is not None, has_residual=residual is not None, block_m=16, block_n=128, num_warps=4,
    )  # fmt: skip


def prepare_grad(
    dout: Tensor, seed: Tensor | None, drop: tuple[int, float], dtype: torch.dtype, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """(dy, sum of dy's rows or None): dropout's mask applied to dout (M, N), in `dtype`, with contiguous rows."""
    M, N = dout.shape
    rewrite = seed is not None or dout.dtype != dtype or (N > 1 and dout.stride(1) != 1) or dout.stride(0) == 0
    if not M or not N:
        return dout.to(dtype), dout.new_zeros(N, dtype=dtype) if bias else None
    if not rewrite and not bias:
        return dout, None
    dy = dout.new_empty(M, N, dtype=dtype) if rewrite else dout
    bands, rows = _bands(M)
    parts = dout.new_empty(bands, N, dtype=torch.float32) if bias else None
    elementwise.prepare_grad_kernel[(triton.cdiv(N, 128), bands)](
        dout, seed, dy, parts, dout.stride(0), dout.stride(1), dy.stride(0), M, N, rows, *drop,
        has_dropout=seed is not None, has_bias=bias, write_dy=rewrite, block_m=16, block_n=128, num_warps=4,
    )  # fmt: skip
    return dy, sum_parts(parts, dout.new_empty(N, dtype=dtype)) if bias else None


def _bands(M: int) -> tuple[int, int]:
    """(bands, rows in each): a column sum's partial sums, one a band. Depends on M alone, hence deterministic.

    At most 128 bands: as many as a grid's second dimension (65535 on CUDA) has room for.
    """
    rows = 64 if M <= 8192 else triton.cdiv(M, 128 * 16) * 16
    return triton.cdiv(M, rows), rows


def sum_parts(parts: Tensor, out: Tensor) -> Tensor:
    """out = the sum over dimension 0 of float32 partial sums, in a fixed order, rounded once."""
    count, N = parts.shape[0], out.numel()
    block_p, block_n = (16, 64) if count > 16 else (1, 1024)
    if N:
        elementwise.sum_parts_kernel[(triton.cdiv(N, block_n),)](
            parts, out, count, N, block_p=block_p, block_n=block_n, num_warps=4
        )
    return out


def dgelu(
    dy: Tensor, w: Tensor, pre: Tensor, dpre: Tensor, act: bool, bias: bool, tanh: bool, path: str
) -> tuple[Tensor | None, Tensor | None]:
    """Fill dpre = (dy w) ⊙ gelu'(pre); returns (gelu(pre) or None, partial sums of dpre's rows or None).

    dy (M, d_out); w (d_out, N), pre and dpre (M, N) may be columns of larger matrices; dpre may be pre itself.
    """
    (M, K), N = dy.shape, w.shape[1]
    product = _Product("dgelu", path, dy, w, K)
    if not product.triton:
        return dgelu_pass(product_of(dy, w), pre, dpre, act, bias, tanh)
    tile = product.tile
    out = dy.new_empty(M, N) if act else None
    parts = dy.new_empty(triton.cdiv(M, tile.block_m), N, dtype=torch.float32) if bias else None
    out_tma = product.tma and _can_tma(pre, dpre) and (out is None or _can_tma(out))
    bwd.dgelu_kernel[product.grid(product.count(M, N))](
        _operand(dy, [tile.block_m, tile.block_k], product.tma), _operand(w, [tile.block_k, tile.block_n], product.tma),
        product.out(out_tma, pre), product.out(out_tma, dpre), product.out(out_tma, out if act else dpre), parts,
        dy.stride(0), dy.stride(1), w.stride(0), w.stride(1), pre.stride(0), dpre.stride(0), N, M, N, K,
        has_bias=bias, write_act=act, tanh=tanh, tma_out=out_tma, **product.options(),
    )  # fmt: skip
    return out, parts


def dgelu_pass(
    dact: Tensor, pre: Tensor, dpre: Tensor, act: bool, bias: bool, tanh: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`dgelu` from dact = dy w, which it overwrites with the activation if that is asked for."""
    M, N = dact.shape
    bands, rows = _bands(max(M, 1))
    parts = dact.new_empty(bands, N, dtype=torch.float32) if bias else None
    if dact.numel():
        elementwise.dgelu_pass_kernel[(triton.cdiv(N, 128), bands)](
            dact, pre, dpre, dact, parts, dact.stride(0), pre.stride(0), dpre.stride(0), dact.stride(0), M, N, rows,
            has_bias=bias, write_act=act, tanh=tanh, block_m=16, block_n=128, num_warps=4,
        )  # fmt: skip
    elif bias:
        parts.zero_()
    return dact if act else None, parts


def weight_grad(dy: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """dyᵀ x, summed over tokens in float32: (M, N) x (M, K) -> (N, K); into `out` if given."""
    with _float32_reductions():
        return product_of(dy.t(), x, out)


@contextlib.contextmanager
def _float32_reductions() -> Iterator[None]:
    """cuBLAS may add the parts of a split sum in half precision if torch lets it; a weight's gradient may not."""
    flags = torch.backends.cuda.matmul
    names = "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"
    saved = {name: (getattr(flags, name), getattr(flags, f"{name}_split_k", True)) for name in names}
    for name, (_, split_k) in saved.items():
        _set_reduction(name, False, split_k)
    try:
        yield
    finally:
        for name, setting in saved.items():
            _set_reduction(name, *setting)


def _set_reduction(name: str, allowed: bool, split_k: bool) -> None:
    """A bare bool would allow split sums again where the user has forbidden them."""
    setattr(torch.backends.cuda.matmul, name, allowed if split_k else (allowed, split_k))
