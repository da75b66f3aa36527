"""A warp-specialised Gluon kernel: roles in branch tables, registers handed over, a ring of TMA loads, wgmma."""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from benchmarks.softgpu.counting import EXECUTED
from benchmarks.softgpu.driver import simulate
from benchmarks.softgpu.engine import SCHEDULES, Settings
from benchmarks.softgpu.faults import faults_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU's driver is in this process")
SIDE = gl.constexpr(64)


@gluon.jit
def produce(a_desc, b_desc, a_ring, b_ring, full, empty, tiles, STAGES: gl.constexpr):
    for i in range(tiles):
        stage = i % STAGES
        mbarrier.wait(empty.index(stage), 1 - i // STAGES % 2)
        mbarrier.expect(full.index(stage), 2 * SIDE * SIDE * 2)
        tma.async_copy_global_to_shared(a_desc, [0, i * SIDE], full.index(stage), a_ring.index(stage))
        tma.async_copy_global_to_shared(b_desc, [i * SIDE, 0], full.index(stage), b_ring.index(stage))


@gluon.jit
def consume(Out, a_ring, b_ring, full, empty, tiles, STAGES: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, SIDE, 16])
    out = gl.full([SIDE, SIDE], 0, gl.float32, layout)
    for i in range(tiles):
        stage = i % STAGES
        mbarrier.wait(full.index(stage), i // STAGES % 2)
        out = warpgroup_mma(a_ring.index(stage), b_ring.index(stage), out, is_async=True)
        out = warpgroup_mma_wait(num_outstanding=0, deps=[out])
        mbarrier.arrive(empty.index(stage), count=1)
    row = gl.arange(0, SIDE, gl.SliceLayout(1, layout))
    column = gl.arange(0, SIDE, gl.SliceLayout(0, layout))
    gl.store(Out + row[:, None] * SIDE + column[None, :], out)


@gluon.jit
def product_kernel(Out, a_desc, b_desc, tiles, STAGES: gl.constexpr):
    """Out (64, 64) = A (64, K) B (K, 64), 64 of K at a time: one warp loads, a warpgroup multiplies."""
    a_ring = gl.allocate_shared_memory(gl.float16, [STAGES, SIDE, SIDE], a_desc.layout)
    b_ring = gl.allocate_shared_memory(gl.float16, [STAGES, SIDE, SIDE], b_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    gl.warp_specialize([
        (consume, (Out, a_ring, b_ring, full, empty, tiles, STAGES)),
        (produce, (a_desc, b_desc, a_ring, b_ring, full, empty, tiles, STAGES)),
    ], [1], [24])  # fmt: skip


def run(settings: Settings, edit=None, tiles: int = 5):
    a, b = torch.randn(64, 64 * tiles).half(), torch.randn(64 * tiles, 64).half()
    out = torch.empty(64, 64)
    layout = gl.NVMMASharedLayout.get_default_for([64, 64], gl.float16)
    with simulate(90, settings=settings) as gpu:
        gpu.on_ptx = edit
        descriptors = [TensorDescriptor(x, list(x.shape), list(x.stride()), [64, 64], layout) for x in (a, b)]
        product_kernel[(1,)](out, *descriptors, tiles, STAGES=2, num_warps=4)
    return out, a.double() @ b.double(), gpu


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_roles_that_hand_over_by_mbarriers_alone(schedule, seed):
    out, exact, gpu = run(
        Settings(schedule=schedule, landing="random" if schedule == "random" else "late", seed=seed % 97)
    )
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)
    keys = {record.key for record in gpu.launches[0].program.lowered.records}
    assert {"brx.idx", "setmaxnreg.dec.sync.aligned.u32"} <= keys
    assert any(key.startswith("barrier.sync") for key in keys)
    assert any(key.startswith("wgmma.mma_async") for key in keys)


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("mbarrier.arrive.shared::cta.b64", "", {"deadlock"}),
        ("wgmma.wait_group.sync.aligned 0", "wgmma.wait_group.sync.aligned 1", {"in flight", "race: write after read"}),
        (
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [",
            "mbarrier.arrive.shared::cta.b64 _, [",
            {"bytes unannounced", "in flight"},
        ),
    ],
)
def test_what_a_role_leaves_out_is_found(old, new, kinds):
    def edit(name: str, text: str) -> str:
        lines = text.splitlines()
        at = max(n for n, line in enumerate(lines) if old in line)
        if not new:
            lines[at] = ""
        elif "expect_tx" in old:
            lines[at] = lines[at].replace(old, new).rsplit(",", 1)[0] + ";"
        else:
            lines[at] = lines[at].replace(old, new)
        return "\n".join(lines)

    _, _, gpu = run(Settings(schedule="worst", seed=1), edit)
    assert {finding.kind for finding in gpu.findings} & kinds, "\n".join(map(str, gpu.findings))


# Of these kinds so many change nothing.
LEFT = {
    "registers not released": 3,  # every warp starts with 256, the most, and nobody waits for more
    "warp's barrier removed": 3,  # the lanes between them meet at an elect.sync
    "shuffle's lane changed": 1,  # of the warp's number, which every lane holds
    "barrier removed": 2,  # each thread waits at the mbarrier itself; the last one of all, behind which the roles end
    "predicate negated": 1,  # 127 lanes arrive where one should: as many phases, whose parity is the same
}


def test_faults_of_every_kind_are_found_in_roles():
    """All that the kernel's text has a place for, by the machine or by the product."""
    _, _, gpu = run(Settings())
    launch = gpu.launches[0]
    text = launch.result.program.text
    counts = launch.result.counts
    reached = {record.line for record in launch.program.lowered.records if counts[record.pc][EXECUTED]}
    planted = [fault for fault in faults_of(text) if fault.line in reached]
    survive = [fault for fault in planted if not _shows(fault.planted(text))]
    kinds = {"arrival removed", "barrier's number changed", "mbarrier's phase flipped", "copy not begun"}
    assert kinds <= {fault.kind for fault in planted} - {fault.kind for fault in survive}
    assert Counter(fault.kind for fault in survive) == LEFT, "\n".join(map(str, survive))


def _shows(text: str) -> bool:
    """Whether the machine reports something of this text in one of these settings, or the product is wrong."""
    for schedule, landing in (("forward", "late"), ("backward", "early"), ("worst", "random")):
        settings = Settings(schedule=schedule, landing=landing, seed=1, max_steps=300_000)
        out, exact, gpu = run(settings, lambda name, _: text)
        if gpu.findings or not torch.allclose(out.double(), exact, rtol=1e-5, atol=1e-4):
            return True
    return False
