"""Sums over lanes: a product contracted into a butterfly is found in machine code, and in no kernel of ours."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.gate import run, table
from benchmarks.gate.contraction import contracted_sums
from benchmarks.gate.offline import offline
from benchmarks.gate.rows import Row
from benchmarks.sass.parser import parse_amdgcn, parse_sass, program_of
from fastgpt.kernels.device.sums import sum_of_products
from fastgpt.kernels.layer_norm import launch as layer_norm
from fastgpt.kernels.linear_cross_entropy import launch as loss
from fastgpt.kernels.linear_cross_entropy.arguments import Formula, Work

from .test_sass import sass

compiles = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1 leaves nothing to compile in this process"
)
SHUFFLE = "SHFL.BFLY PT, R5, R4, 0x10, 0x1f"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ([SHUFFLE, "FFMA R6, R2, R3, R5"], 1),
        ([SHUFFLE, "FFMA R6, -R2, R3.reuse, -R5.reuse"], 1),
        ([SHUFFLE, "MOV R9, R5", "FFMA R6, R2, R2, R9"], 1),
        ([SHUFFLE, "@P0 BRA `(.L_x_0)", "FFMA R6, R2, R3, R5", ".L_x_0:", "EXIT"], 1),
        ([SHUFFLE, "FFMA2 R6, R2.F32x2.HI_LO, R8.F32x2.HI_LO, R4.F32x2.HI_LO"], 1),  # R5 is the upper half
        ([SHUFFLE, "FADD R6, R4, R5"], 0),  # as it should be
        ([SHUFFLE, "FFMA R6, RZ, R3, R5"], 0),  # 0 or NaN, whatever rounds
        ([SHUFFLE, "HFMA2.BF16_V2 R6, -RZ.H0_H0, RZ.H0_H0, |R5|"], 0),
        ([SHUFFLE, "FFMA R6, R5, R3, R7"], 0),  # the partner's value is a factor
        ([SHUFFLE, "FMUL R5, R5, R3", "FFMA R6, R2, R3, R5"], 0),  # no longer the partner's value
        ([SHUFFLE, "LDG.E.128 R4, [R2.64]", "FFMA R6, R2, R3, R5"], 0),  # R4 to R7 are loaded
        ([SHUFFLE, "LDG.E.128 R8, [R4.64]", "FFMA R6, R2, R3, R5"], 1),
        ([SHUFFLE, "HMMA.16816.F32.BF16 R4, R8, R12, R4", "FFMA R6, R2, R3, R5"], 0),
        ([SHUFFLE, ".L_x_0:", "FFMA R6, R2, R3, R5"], 0),  # who knows
        (["SHFL.IDX PT, R5, R4, R3, 0x1f", "FFMA R6, R2, R3, R5"], 0),  # a tile that changes its layout
        (["SHFL.BFLY PT, R15, R4, 0x10, 0x1f", "FFMA R6, R2, R3, R5"], 0),
    ],
)
def test_what_is_found_in_sass(body, found):
    assert len(contracted_sums(parse_sass(sass(*body)))) == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (["v_mov_b32_dpp v5, v4 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf", "v_fma_f32 v6, v2, v3, v5"], 1),
        (["ds_swizzle_b32 v5, v4 offset:swizzle(SWAP,16)", "v_fmac_f32_e32 v5, v2, v3"], 1),  # adds to what it writes
        (["ds_swizzle_b32 v5, v4 offset:swizzle(SWAP,16)", "v_pk_fma_f32 v[6:7], v[2:3], v[2:3], v[4:5]"], 1),
        (["ds_swizzle_b32 v5, v4 offset:swizzle(SWAP,16)", "v_fmac_f32_e32 v5, 0, v3"], 0),
        (["ds_swizzle_b32 v5, v4 offset:swizzle(SWAP,16)", "v_fmac_f32_e32 v6, v2, v5"], 0),
        (["ds_swizzle_b32 v5, v4 offset:swizzle(SWAP,16)", "v_add_f32_e32 v6, v4, v5"], 0),
        (["ds_swizzle_b32 v5, v4 offset:swizzle(SWAP,16)", "global_load_dwordx2 v[4:5], v[0:1], off",
          "v_fma_f32 v6, v2, v3, v5"], 0),
    ],
)  # fmt: skip
def test_what_is_found_in_amd_code(body, found):
    assert len(contracted_sums(parse_amdgcn("\n".join(body)))) == found


@triton.jit
def row_dot(X, Y, Out, N: tl.constexpr, rounded: tl.constexpr):
    """Out (M,) = the row-wise dot products of X and Y, (M, N) float32; a lane holds one product."""
    offs = tl.program_id(0) * N + tl.arange(0, N)
    x, y = tl.load(X + offs), tl.load(Y + offs)
    if rounded:
        dot = sum_of_products(x, y, axis=0)
    else:
        dot = tl.sum(x * y, axis=0)
    tl.store(Out + tl.program_id(0), dot)


def row_of_dots(rounded: bool) -> Row:
    def call() -> None:
        x, out = torch.empty(8, 32, device="meta"), torch.empty(8, device="meta")
        row_dot[(8,)](x, x, out, 32, rounded, num_warps=1)

    return Row("sample", "dots", call)


@compiles
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_the_gate_refuses_a_plain_sum_of_products(arch):
    (problem,) = table.problems(run.compile_row(row_of_dots(rounded=False), arch))
    assert "1 sums over lanes differ between the lanes" in problem
    assert table.problems(run.compile_row(row_of_dots(rounded=True), arch)) == []


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@compiles
@pytest.mark.parametrize(("arch", "N"), [("sm_80", 9), ("sm_90", 3), ("sm_90", 17), ("sm_90", 40)])
def test_few_columns_of_layer_norm(arch, N):
    """Rows of one or two elements a lane, of which GPT widths, those of the gate, have none."""
    x, weight, stats = (meta(*s, dtype=torch.float32) for s in ((64, N), (N,), (2, 64)))
    with offline(arch) as compiled:
        layer_norm.forward(x, None, weight, weight, None, 1, 1e-5, 0.0, x.dtype)
        layer_norm.backward(x, None, x, weight, stats, None, 1, 0.0, x.dtype, None, x.dtype, x.dtype)
    assert len(compiled) == 3
    assert [len(contracted_sums(program_of(c.kernel))) for c in compiled] == [0] * 3


@compiles
@pytest.mark.parametrize(("arch", "V"), [("sm_80", 300), ("sm_90", 9)])
def test_few_classes(arch, V):
    formula = Formula(-100, 0.1, 1e-4, 30.0)
    x, weight, target = meta(8, 16, dtype=torch.float32), meta(V, 16, dtype=torch.float32), meta(8, dtype=torch.int64)
    with offline(arch) as compiled:
        loss.linear_forward(x, weight, target, weight[:, 0], formula, Work(1, True, True, True))
        loss.linear_forward(x, weight, target, None, formula, Work(1, False, False, False))
        loss.linear_backward(meta(8, dtype=x.dtype), None, x, weight, target, None, meta(2, 8, dtype=x.dtype), formula,
                             Work(1, True, True, False))  # fmt: skip
    assert len(compiled) >= 5
    assert [len(contracted_sums(program_of(c.kernel))) for c in compiled] == [0] * len(compiled)
