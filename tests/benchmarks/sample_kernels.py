"""Small kernels that the tests of the gate and of the loop report compile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from benchmarks.gate.rows import Row


@triton.jit
def matmul(A, B, C, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """C (M, N) = A (M, K) @ B (K, N), all sizes multiples of the blocks."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start_k in tl.range(0, K, BLOCK_K):
        a = tl.load(A + offs_m[:, None] * K + (start_k + offs_k)[None, :])  # (BLOCK_M, BLOCK_K)
        b = tl.load(B + (start_k + offs_k)[:, None] * N + offs_n[None, :])  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(a, b, acc)
    tl.store(C + offs_m[:, None] * N + offs_n[None, :], acc.to(C.dtype.element_ty))


@triton.jit
def row_sum(X, Out, N: tl.constexpr, BLOCK: tl.constexpr):
    """Out (M,) = sums of the rows of X (M, N)."""
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, N, BLOCK):
        total += tl.load(X + row * N + start + tl.arange(0, BLOCK)).to(tl.float32)
    tl.store(Out + row, tl.sum(total))


@triton.jit
def grouped_product(A, B, C, Tiles, GROUP: tl.constexpr, BLOCK: tl.constexpr, SAFE: tl.constexpr):
    """C (BLOCK, BLOCK): the first Tiles[program] // 64 tiles of each of GROUP matrices in A, times those of B."""
    tiles = tl.maximum(tl.load(Tiles + tl.program_id(0)), 0) // 64
    offs = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in tl.range(0, tiles * GROUP, num_stages=3):
        g = step // (tl.maximum(tiles, 1) if SAFE else tiles)
        a = tl.load(A + (g * 4096 + step) * BLOCK * BLOCK + offs)  # (BLOCK, BLOCK)
        b = tl.load(B + (step - g * tiles) * BLOCK * BLOCK + offs)  # (BLOCK, BLOCK)
        acc = tl.dot(a, b, acc)
    tl.store(C + offs, acc)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def matmul_row(label: str, block_m: int, block_n: int, num_warps: int, *, expect: set[str], block_k: int = 64) -> Row:
    def call() -> None:
        a, b, c = empty(1024, 1024), empty(1024, 1024), empty(1024, 1024)
        matmul[(8, 8)](a, b, c, 1024, 1024, 1024, block_m, block_n, block_k, num_warps=num_warps)

    return Row("sample", label, call, frozenset(expect))


def row_sum_row(label: str, n: int, *, expect: set[str], block: int = 1024) -> Row:
    def call() -> None:
        row_sum[(64,)](empty(64, n), empty(64, dtype=torch.float32), n, block, num_warps=4)

    return Row("sample", label, call, frozenset(expect))


def grouped_row(label: str, *, safe: bool) -> Row:
    def call() -> None:
        c, tiles = empty(64, 64, dtype=torch.float32), empty(8, dtype=torch.int32)
        grouped_product[(8,)](empty(4, 64, 64), empty(64, 64), c, tiles, 3, 64, safe, num_warps=4)

    return Row("sample", label, call)
