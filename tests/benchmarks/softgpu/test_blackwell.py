"""What Triton and Gluon make of products on sm_100: roles that share tensor memory, all shapes of its loads."""

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.blackwell import (
    TensorMemoryLayout,
    allocate_tensor_memory,
    get_tmem_reg_layout,
    tcgen05_commit,
    tcgen05_mma,
)
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from benchmarks.softgpu.driver import simulate
from benchmarks.softgpu.engine import SCHEDULES, Settings
from fastgpt.kernels import flash_attention

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU's driver is in this process")
SIDE, DEPTH = gl.constexpr(64), gl.constexpr(64)


@gluon.jit
def produce(a_desc, b_desc, a_ring, b_ring, full, empty, tiles):
    for i in range(tiles):
        stage = i % 2
        mbarrier.wait(empty.index(stage), 1 - i // 2 % 2)
        mbarrier.expect(full.index(stage), a_desc.block_type.nbytes + b_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(a_desc, [0, i * DEPTH], full.index(stage), a_ring.index(stage))
        tma.async_copy_global_to_shared(b_desc, [i * DEPTH, 0], full.index(stage), b_ring.index(stage))


@gluon.jit
def multiply(a_ring, b_ring, full, empty, done, acc, tiles):
    for i in range(tiles):
        stage = i % 2
        mbarrier.wait(full.index(stage), i // 2 % 2)
        tcgen05_mma(a_ring.index(stage), b_ring.index(stage), acc, use_acc=i > 0)
        tcgen05_commit(empty.index(stage))
    tcgen05_commit(done)


@gluon.jit
def store(Out, done, acc, VARIANT: gl.constexpr):
    mbarrier.wait(done, 0)
    layout: gl.constexpr = get_tmem_reg_layout(gl.float32, acc.shape, acc.layout, 4, VARIANT)
    out = acc.load(layout)
    row = gl.arange(0, acc.shape[0], gl.SliceLayout(1, layout))
    column = gl.arange(0, SIDE, gl.SliceLayout(0, layout))
    gl.store(Out + row[:, None] * SIDE + column[None, :], out)


@gluon.jit
def product_kernel(Out, a_desc, b_desc, tiles, ROWS: gl.constexpr, VARIANT: gl.constexpr):
    """Out (ROWS, 64) = A (ROWS, K) B (K, 64): one warp loads, one multiplies, four store."""
    a_ring = gl.allocate_shared_memory(gl.float16, [2, ROWS, DEPTH], a_desc.layout)
    b_ring = gl.allocate_shared_memory(gl.float16, [2, DEPTH, SIDE], b_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(2):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    mbarrier.init(done, count=1)
    acc = allocate_tensor_memory(gl.float32, [ROWS, SIDE], TensorMemoryLayout([ROWS, SIDE], col_stride=1))
    gl.warp_specialize([
        (store, (Out, done, acc, VARIANT)),
        (multiply, (a_ring, b_ring, full, empty, done, acc, tiles)),
        (produce, (a_desc, b_desc, a_ring, b_ring, full, empty, tiles)),
    ], [1, 1], [24, 24])  # fmt: skip


def run(settings: Settings, rows: int = 128, variant: str = "32x32b", tiles: int = 5, edit=None):
    torch.manual_seed(0)
    a, b = torch.randn(rows, 64 * tiles).half(), torch.randn(64 * tiles, 64).half()
    out = torch.empty(rows, 64)
    with simulate(100, settings=settings) as gpu:
        gpu.on_ptx = edit
        descriptors = []
        for x, block in ((a, [rows, 64]), (b, [64, 64])):
            layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
            descriptors.append(TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout))
        product_kernel[(1,)](out, *descriptors, tiles, rows, variant, num_warps=4)
    return out, a.double() @ b.double(), gpu


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_roles_that_share_tensor_memory(schedule):
    landing = "random" if schedule == "random" else "late"
    out, exact, gpu = run(Settings(schedule=schedule, landing=landing, seed=5))
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("variant", ["32x32b", "16x64b", "16x128b", "16x256b", "32x32b_splitn"])
def test_shapes_of_loads_are_what_triton_takes_them_for(variant, rows):
    out, exact, gpu = run(Settings(), rows, variant)
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)


@triton.jit
def two_products_kernel(Q, K, V, Out, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Out = exp2(Q K') V, for rows of 64 + 16 elements."""
    row, low, high = tl.arange(0, ROWS)[:, None] * 80, tl.arange(0, 64)[None, :], 64 + tl.arange(0, 16)[None, :]
    q, q_high = tl.load(Q + row + low), tl.load(Q + row + high)
    out, out_high = tl.zeros([ROWS, 64], tl.float32), tl.zeros([ROWS, 16], tl.float32)
    for start in tl.range(0, n, COLUMNS, num_stages=2):
        column = (start + tl.arange(0, COLUMNS)[:, None]) * 80
        scores = tl.dot(q, tl.trans(tl.load(K + column + low)))
        scores = tl.dot(q_high, tl.trans(tl.load(K + column + high)), scores)
        p = tl.exp2(scores).to(tl.bfloat16)
        out = tl.dot(p, tl.load(V + column + low), out)
        out_high = tl.dot(p, tl.load(V + column + high), out_high)
    tl.store(Out + row + low, out)
    tl.store(Out + row + high, out_high)


def test_a_fence_that_triton_leaves_out():
    """What cp.async brought is read by tcgen05.mma: why attention's tiles.num_stages prefetches none of two parts."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(rows, 80).bfloat16() * 0.2 for rows in (64, 256, 256))
    out = torch.zeros(64, 80)
    with simulate(100) as gpu:
        two_products_kernel[(1,)](q, k, v, out, 256, 64, 64)
    assert {finding.kind for finding in gpu.findings} <= {"no proxy fence"}  # nothing, once Triton has mended it
    exact = torch.exp2(q.float() @ k.float().T).bfloat16().float() @ v.float()
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-4)


def test_attention_whose_head_dim_is_two_halves():
    """Its tiles fit into tensor memory, and nothing is prefetched whose fence Triton leaves out."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 140, 112).bfloat16().requires_grad_() for _ in range(3))
    with simulate(100) as gpu:
        torch.autograd.grad(flash_attention(q, k, v).sum(), (q, k, v))
    assert {launch.kernel for launch in gpu.launches} > {"attention_dkdv_kernel", "attention_dq_kernel"}
    assert not gpu.findings
