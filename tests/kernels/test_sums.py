"""Sums of products have the same bits in every lane: no lane's product is fused into the addition of its partner's."""

from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.gate.offline import offline
from fastgpt.kernels.device.sums import sum_of_products

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1 leaves nothing to compile in this process"
)


@triton.jit
def row_products(A, B, Out, N: tl.constexpr, ROUNDED: tl.constexpr):
    """Out (32,) = the sums over the rows of A * B, both (32, N)."""
    offs = tl.arange(0, 32)[:, None] * N + tl.arange(0, N)[None, :]
    a, b = tl.load(A + offs), tl.load(B + offs)
    out = sum_of_products(a, b, 1) if ROUNDED else tl.sum(a * b, 1)
    tl.store(Out + tl.arange(0, 32), out)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("N", [2, 16, 32])
def test_products_are_rounded_before_they_are_exchanged(arch, N):
    def fused(rounded: bool) -> int:
        """How many words that come from another lane are the addend of a multiply-add that rounds no product."""
        with offline(arch) as compiled:
            row_products[(1,)](*(torch.empty(32, N, device="meta") for _ in "ab"), torch.empty(32, device="meta"), N,
                               rounded, num_warps=4)  # fmt: skip
        ptx = compiled[0].kernel.asm["ptx"]
        exchanged = re.findall(r"shfl\.sync\.bfly\.b32\s+(%r\d+)", ptx)
        assert exchanged
        return sum(bool(re.search(rf"fma\.rn\.f32\s.*, {word};", ptx)) for word in exchanged)

    assert fused(rounded=True) == 0
    if N == 2:  # one product a lane: what the helper is for
        assert fused(rounded=False) > 0
