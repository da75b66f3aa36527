"""Device code of the backward pass: dY W2 with GELU's derivative, the derivative alone, and dropout of dY.

    dy = mask ⊙ dout      dpre = (dy W2) ⊙ gelu'(pre)      db2 = Σ dy      db1 = Σ dpre

The products dX, dW1 and dW2 are cuBLAS's. Biases' gradients leave here as partial sums (`kernels/_partials.py`).
"""

import triton
import triton.language as tl

from ..device.sums import rounded_product
from ..device.tiles import load_tile, store_tile
from .device import band_of, drop, gelu_and_derivative, load_band, matmul_tile, store_band, tile_at


@triton.jit
def dgelu_kernel(DY, W, Pre, DPre, Act, DBias, stride, M, N, K, C: tl.constexpr):
    """dpre = (dy w) ⊙ gelu'(pre), and act = gelu(pre) again for dW2. Launched by `launch.dgelu`.

    DY         (M, K)               pointer with `stride`, or descriptor of (block_m, block_k)
    W          (K, N)               the same; block (block_k, block_n)
    Pre, DPre  (M, N)               contiguous rows: pointers, or descriptors of (block_m, block_n / parts)
    Act        (M, N)               the same; None: not wanted
    DBias      (cdiv(M, block_m), N) float32, each tile's column sums; None: not wanted

    DPre may be Pre itself: every element is read and written by one program, in this order. Persistent: each program
    computes the tiles pid, pid + num_programs, ... of the output. Better than cuBLAS and `dgelu_pass_kernel` up to
    K = 1024 (an estimate, VARIANTS.md): "auto" takes it there, on sm_90.
    """
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    PARTS: tl.constexpr = C.parts
    GROUP_M: tl.constexpr = C.group_m
    IS_TANH: tl.constexpr = C.is_tanh
    BAND: tl.constexpr = BLOCK_N // PARTS
    num_m, num_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        i, j = tile_at(index, num_m, num_n, GROUP_M)
        m0, n0 = i * BLOCK_M, j * BLOCK_N
        dact = matmul_tile(DY, W, stride, M, N, K, m0, n0, B_IS_NK=False, C=C)
        for p in tl.static_range(PARTS):
            n1 = n0 + p * BAND
            act, slope = gelu_and_derivative(load_band(Pre, stride.pre, M, N, m0, n1, C), IS_TANH)
            dpre = rounded_product(band_of(dact, p, PARTS), slope)  # (block_m, block_n / parts)
            if Act is not None:
                store_band(Act, stride.act, M, N, m0, n1, act, C)
            store_band(DPre, stride.dpre, M, N, m0, n1, dpre, C)
            if DBias is not None:
                offs_n = n1 + tl.arange(0, BAND)
                tl.store(DBias + i.to(tl.int64) * N + offs_n, tl.sum(dpre, axis=0), mask=offs_n < N)


@triton.jit
def dgelu_pass_kernel(
    DAct, Pre, DPre, Act, DBias, stride_dact, stride_pre, stride_dpre, stride_act, M, N, rows_per_program,
    IS_TANH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dpre = dact ⊙ gelu'(pre) and act = gelu(pre), after cuBLAS's product. Launched by `launch.dgelu_pass`.

    DAct, Pre, DPre, Act  (M, N)      contiguous rows; Act None: not wanted
    DBias                 (bands, N)  float32, sums of dpre's columns over a band of rows; None: not wanted

    DPre may be Pre, and Act may be DAct: one thread reads an element, then writes it. Grid (cdiv(N, BLOCK_N), bands).
    """
    band = tl.program_id(1)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = offs_n < N
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for m0 in tl.range(band * rows_per_program, (band + 1) * rows_per_program, BLOCK_M):
        offs_m = m0 + tl.arange(0, BLOCK_M)
        rows, row_ok = offs_m.to(tl.int64), offs_m < M
        dact = load_tile(DAct, rows, offs_n, stride_dact, 1, row_ok, column_ok).to(tl.float32)  # (BLOCK_M, BLOCK_N)
        pre = load_tile(Pre, rows, offs_n, stride_pre, 1, row_ok, column_ok).to(tl.float32)
        act, slope = gelu_and_derivative(pre, IS_TANH)
        dpre = dact * slope
        if Act is not None:
            store_tile(Act, act, rows, offs_n, stride_act, 1, row_ok, column_ok)
        store_tile(DPre, dpre, rows, offs_n, stride_dpre, 1, row_ok, column_ok)
        sums += dpre
    if DBias is not None:
        tl.store(DBias + band.to(tl.int64) * N + offs_n, tl.sum(sums, axis=0), mask=column_ok)


@triton.jit
def prepare_grad_kernel(
    DOut, DY, DBias, dropout, stride_m, stride_n, stride_dy, M, N, rows_per_program,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dy = dropout's mask applied to dout, in the products' dtype. Launched by `launch.prepare_grad`.

    DOut     (M, N)      of any float dtype and layout
    DY       (M, N)      contiguous rows; None: dout serves as it is
    DBias    (bands, N)  float32, sums of dy's columns over a band of rows; None: not wanted
    dropout              None: nothing was dropped

    Grid (cdiv(N, BLOCK_N), bands).
    """
    band = tl.program_id(1)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = offs_n < N
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for m0 in tl.range(band * rows_per_program, (band + 1) * rows_per_program, BLOCK_M):
        offs_m = m0 + tl.arange(0, BLOCK_M)
        rows, row_ok = offs_m.to(tl.int64), offs_m < M
        dy = load_tile(DOut, rows, offs_n.to(tl.int64), stride_m, stride_n, row_ok, column_ok).to(tl.float32)
        if dropout is not None:
            dy = drop(dy, dropout, offs_m[:, None], offs_n[None, :])
        if DY is not None:
            store_tile(DY, dy, rows, offs_n, stride_dy, 1, row_ok, column_ok)
        sums += dy
    if DBias is not None:
        tl.store(DBias + band.to(tl.int64) * N + offs_n, tl.sum(sums, axis=0), mask=column_ok)
