"""Device code of the passes over memory: what is left beside a product that cuBLAS computes, and the sums of biases.

On CUDA the second and third dimension of a grid end at 65535: only bands are counted there, never rows or columns.
"""

import triton
import triton.language as tl

from .forward import drop
from .gelu import gelu, gelu_and_derivative


@triton.jit
def gelu_kernel(Pre, Act, numel, tanh: tl.constexpr, block: tl.constexpr):
    """Act = gelu(Pre), both contiguous; Act may be Pre itself."""
    offs = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    pre = tl.load(Pre + offs, mask=offs < numel, other=0.0).to(tl.float32)
    tl.store(Act + offs, gelu(pre, tanh).to(Act.dtype.element_ty), mask=offs < numel)


@triton.jit
def dgelu_pass_kernel(
    Dact, Pre, Dpre, Act, Dbias, stride_gm, stride_pm, stride_dm, stride_am, M, N, rows_per_program,
    has_bias: tl.constexpr, write_act: tl.constexpr, tanh: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Dpre = Dact ⊙ gelu'(Pre) and Act = gelu(Pre), (M, N) each, and sums of Dpre's columns over a band of rows.

    Dbias is (bands, N) float32. Dpre may be Pre, and Act may be Dact: one thread reads an element, then writes it.
    Grid (cdiv(N, block_n), bands).
    """
    band = tl.program_id(1)
    offs_n = tl.program_id(0) * block_n + tl.arange(0, block_n)[None, :]  # (1, block_n)
    sums = tl.zeros((block_m, block_n), tl.float32)
    for m0 in tl.range(band * rows_per_program, (band + 1) * rows_per_program, block_m):
        offs_m = m0 + tl.arange(0, block_m)[:, None]  # (block_m, 1)
        inside = (offs_m < M) & (offs_n < N)
        row = offs_m.to(tl.int64)
        dact = tl.load(Dact + row * stride_gm + offs_n, mask=inside, other=0.0).to(tl.float32)
        pre = tl.load(Pre + row * stride_pm + offs_n, mask=inside, other=0.0).to(tl.float32)
        act, slope = gelu_and_derivative(pre, tanh)
        dpre = dact * slope
        if write_act:
            tl.store(Act + row * stride_am + offs_n, act.to(Act.dtype.element_ty), mask=inside)
        tl.store(Dpre + row * stride_dm + offs_n, dpre.to(Dpre.dtype.element_ty), mask=inside)
        sums += dpre
    if has_bias:
        columns = tl.program_id(0) * block_n + tl.arange(0, block_n)
        tl.store(Dbias + band.to(tl.int64) * N + columns, tl.sum(sums, axis=0), mask=columns < N)


@triton.jit
def finish_kernel(
    Y, Residual, Seed, Out, stride_ym, stride_rm, stride_om, M, N, row0, drop_threshold, keep_scale,
    has_dropout: tl.constexpr, has_residual: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Out = Residual + dropout(Y), (M, N) each, rows row0, ... of the dropout mask; Out may be Y itself.

    Grid (cdiv(M, block_m) * cdiv(N, block_n),).
    """
    tiles = tl.cdiv(N, block_n)
    offs_m = tl.program_id(0) // tiles * block_m + tl.arange(0, block_m)[:, None]
    offs_n = tl.program_id(0) % tiles * block_n + tl.arange(0, block_n)[None, :]
    inside, row = (offs_m < M) & (offs_n < N), offs_m.to(tl.int64)
    y = tl.load(Y + row * stride_ym + offs_n, mask=inside, other=0.0).to(tl.float32)
    if has_dropout:
        y = drop(y, Seed, row0 + offs_m, offs_n, drop_threshold, keep_scale)
    if has_residual:
        y += tl.load(Residual + row * stride_rm + offs_n, mask=inside, other=0.0).to(tl.float32)
    tl.store(Out + row * stride_om + offs_n, y.to(Out.dtype.element_ty), mask=inside)


@triton.jit
def prepare_grad_kernel(
    Dout, Seed, Dy, Dbias, stride_gm, stride_gn, stride_ym, M, N, rows_per_program, drop_threshold, keep_scale,
    has_dropout: tl.constexpr, has_bias: tl.constexpr, write_dy: tl.constexpr, block_m: tl.constexpr,
    block_n: tl.constexpr,
):  # fmt: skip
    """Dy = dropout's mask applied to Dout, in the products' dtype, and sums of Dy's columns over a band of rows.

    Grid (cdiv(N, block_n), bands).
    """
    band = tl.program_id(1)
    offs_n = tl.program_id(0) * block_n + tl.arange(0, block_n)[None, :]
    sums = tl.zeros((block_m, block_n), tl.float32)
    for m0 in tl.range(band * rows_per_program, (band + 1) * rows_per_program, block_m):
        offs_m = m0 + tl.arange(0, block_m)[:, None]
        inside, row = (offs_m < M) & (offs_n < N), offs_m.to(tl.int64)
        dy = tl.load(Dout + row * stride_gm + offs_n.to(tl.int64) * stride_gn, mask=inside, other=0.0).to(tl.float32)
        if has_dropout:
            dy = drop(dy, Seed, offs_m, offs_n, drop_threshold, keep_scale)
        if write_dy:
            tl.store(Dy + row * stride_ym + offs_n, dy.to(Dy.dtype.element_ty), mask=inside)
        sums += dy
    if has_bias:
        columns = tl.program_id(0) * block_n + tl.arange(0, block_n)
        tl.store(Dbias + band.to(tl.int64) * N + columns, tl.sum(sums, axis=0), mask=columns < N)


@triton.jit
def sum_parts_kernel(Parts, Out, count, N, block_p: tl.constexpr, block_n: tl.constexpr):
    """Out (N,) = sum of Parts (count, N) float32 over its rows, in one fixed order, rounded once."""
    offs_n = tl.program_id(0).to(tl.int64) * block_n + tl.arange(0, block_n)[None, :]
    sums = tl.zeros((block_p, block_n), tl.float32)
    for p0 in tl.range(0, count, block_p):
        offs_p = p0 + tl.arange(0, block_p)[:, None]
        inside = (offs_p < count) & (offs_n < N)
        sums += tl.load(Parts + offs_p.to(tl.int64) * N + offs_n, mask=inside, other=0.0)
    columns = tl.program_id(0).to(tl.int64) * block_n + tl.arange(0, block_n)
    tl.store(Out + columns, tl.sum(sums, axis=0).to(Out.dtype.element_ty), mask=columns < N)
