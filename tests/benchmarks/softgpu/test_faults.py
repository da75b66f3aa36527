"""Planted faults are found: in the PTX of shipped kernels, a sample of each kind; and in Triton's source."""

import functools

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

import fastgpt.kernels
from benchmarks.softgpu import driver, faults, planting
from benchmarks.softgpu.driver import simulate
from benchmarks.softgpu.engine import Settings
from benchmarks.softgpu.faults import KINDS, faults_of

# Kinds that the machine itself must name in this kernel, and those that it may leave to the comparison with float64.
NAMED, ANY = {"found"}, {"found", "wrong"}
SAMPLE = {
    ("attention_forward_kernel", 80): {
        "barrier removed": NAMED, "commit of cp.async removed": NAMED, "wait for cp.async removed": NAMED,
        "wait for cp.async one group short": NAMED, "copy not begun": ANY, "copy's size changed": ANY,
        "shared address 16 bytes off": ANY, "global address 16 bytes off": ANY, "swizzle changed": ANY,
        "predicate negated": ANY, "predicate removed": NAMED, "shuffle without a lane": NAMED,
        "shuffle's lane changed": ANY, "operands of mma turned round": ANY, "ldmatrix transposes or not": ANY,
        "store removed": ANY,
    },
    ("attention_forward_kernel", 90): {
        "barrier removed": NAMED, "mbarrier's phase flipped": NAMED, "wait at an mbarrier removed": NAMED,
        "expected bytes changed": NAMED, "mbarrier's count changed": NAMED, "copy not begun": NAMED,
        "proxy fence removed": NAMED, "commit of wgmma removed": NAMED, "wait for wgmma removed": NAMED,
        "wait for wgmma one group short": NAMED, "wgmma's fence removed": NAMED, "operands of wgmma swapped": ANY,
        "operand of wgmma transposed": ANY, "descriptor's swizzle changed": ANY, "descriptor's stride changed": ANY,
    },
    ("attention_forward_kernel", 100): {
        "commit of tcgen05 removed": NAMED, "wait for tensor memory removed": NAMED,
        "wait at an mbarrier removed": NAMED, "mbarrier's phase flipped": NAMED, "barrier removed": NAMED,
        "tensor memory not given back": NAMED, "tensor memory a column off": ANY, "proxy fence removed": NAMED,
        "descriptor's swizzle changed": ANY, "descriptor's stride changed": ANY, "operand of tcgen05 transposed": ANY,
        "accumulators of tcgen05 added or not": ANY,
    },
    ("up_kernel", 90): {
        "wait for bulk copies removed": NAMED, "wait for bulk copies one group short": NAMED,
        "commit of bulk copies removed": NAMED, "predicate removed": NAMED,
    },
}  # fmt: skip
CASES = [(*kernel, kind) for kernel, kinds in SAMPLE.items() for kind in kinds]


compiled = functools.cache(planting.compiled)


@pytest.mark.parametrize(("name", "capability", "kind"), CASES)
def test_a_fault_of_this_kind_is_found(name, capability, kind):
    """One of three, from the first to the last in the text: some change nothing, as redundant.py argues."""
    kernel = compiled(name, capability)
    of_kind = planting.spread([fault for fault in kernel.faults() if fault.kind == kind], 3)
    assert of_kind, f"{name} has no place for it"
    wanted = SAMPLE[name, capability][kind]
    verdicts = []
    for fault in of_kind:
        verdicts.append(planting.plant(kernel, fault))
        if verdicts[-1].outcome in wanted:
            return
    pytest.fail("\n".join(map(str, verdicts)))


def test_every_kind_of_our_kernels_is_in_the_sample():
    """The others need what our kernels have not: warps with roles of their own, tcgen05's fences."""
    roles = {
        "warp's barrier removed", "barrier's number changed", "registers not released", "arrival removed",
        "fence of mbarrier's init removed", "tcgen05's fence removed",
    }  # fmt: skip
    assert {kind for kinds in SAMPLE.values() for kind in kinds} | roles == set(KINDS)


def test_a_text_without_faults_gives_none():
    kernel = compiled("attention_forward_kernel", 80)
    assert kernel.reached
    for home in kernel.homes:
        outcome = planting.execute(home.trial, home.expected, 80, planting.SETTINGS[0], lambda name, text: text)
        assert not outcome.problems
        assert home.known == frozenset()


def test_no_launch_of_a_home_is_too_long_without_faults():
    """Its longest one may be another kernel's, which would be told for a deadlock in place of the fault."""
    home = compiled("attention_delta_kernel", 80).homes[0]
    launches = planting.execute(home.trial, home.expected, 80, planting.SETTINGS[0]).launches
    assert home.steps == max(launch.result.steps for launch in launches)
    assert home.steps > max(launch.result.steps for launch in launches if launch.kernel == "attention_delta_kernel")


TEXT = """\
	bar.sync 	1, 128;
	@%p1 mbarrier.arrive.shared::cta.b64 _, [%r1];
	@!%p2 st.shared.b32 [ %r2 + 0 ], %r3;
	setmaxnreg.dec.sync.aligned.u32 	40;
	xor.b32 	%r2, %r4, 64;
	xor.b32 	%r9, %r4, 64;
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r5], %r6;
	or.b64 	%rd1, %rd2, 4611686293305294848;
	cp.async.cg.shared.global [ %r7 + 0 ], [ %rd3 + 0 ], 0x10, %r8;
	shfl.sync.bfly.b32 	%r10, %r11, 16, 31, -1;  // a comment
	fence.mbarrier_init.release.cluster;
	bar.warp.sync 	-1;
	@%p3 tcgen05.mma.cta_group::1.kind::f16 [ %r12 + 0 ], [ %r13 + 8 ], %rd4, %r14, %p4;
"""


def test_what_stands_in_an_instructions_place():
    found = {(fault.kind, fault.line): fault.after for fault in faults_of(TEXT)}
    assert found["barrier removed", 1] == ""
    assert found["barrier's number changed", 1] == "bar.sync 2, 128;"
    assert found["arrival removed", 2] == ""
    assert found["predicate negated", 2] == "@!%p1 mbarrier.arrive.shared::cta.b64 _, [%r1];"
    assert found["predicate negated", 3] == "@%p2 st.shared.b32 [ %r2 + 0 ], %r3;"
    assert found["shared address 16 bytes off", 3] == "@!%p2 st.shared.b32 [%r2+16], %r3;"
    assert found["registers not released", 4] == ""
    assert found["swizzle changed", 5] == "xor.b32 %r2, %r4, 80;"
    assert ("swizzle changed", 6) not in found  # no address
    assert "xor.b32 %flipped, %r6, 1;" in found["mbarrier's phase flipped", 7]
    assert found["wait at an mbarrier removed", 7] == "setp.eq.u32 complete, 0, 0;"
    assert found["descriptor's swizzle changed", 8] == f"or.b64 %rd1, %rd2, {0x8000004000000000};"
    assert found["descriptor's stride changed", 8] == f"or.b64 %rd1, %rd2, {0x4000002000000000};"
    assert found["copy's size changed", 9] == "cp.async.cg.shared.global [ %r7 + 0 ], [ %rd3 + 0 ], 0x10;"
    assert found["global address 16 bytes off", 9] == "cp.async.cg.shared.global [ %r7 + 0 ], [%rd3+16], 0x10, %r8;"
    assert found["shuffle's lane changed", 10] == "shfl.sync.bfly.b32 %r10, %r11, 8, 31, -1;"
    assert found["fence of mbarrier's init removed", 11] == ""
    assert found["warp's barrier removed", 12] == ""
    opcode = "@%p3 tcgen05.mma.cta_group::1.kind::f16"
    assert found["tensor memory a column off", 13] == f"{opcode} [ %r12 + 0 ], [%r13+9], %rd4, %r14, %p4;"
    turned = f"xor.b32 %turned, %r14, 65536; {opcode} [ %r12 + 0 ], [ %r13 + 8 ], %rd4, %turned, %p4; }}"
    assert found["operand of tcgen05 transposed", 13].endswith(turned)
    added = f"not.pred %not, %p4; {opcode} [ %r12 + 0 ], [ %r13 + 8 ], %rd4, %r14, %not; }}"
    assert found["accumulators of tcgen05 added or not", 13].endswith(added)


def test_a_fault_is_planted_in_its_line_alone():
    for fault in faults_of(TEXT):
        before, after = TEXT.split("\n"), fault.planted(TEXT).split("\n")
        assert [n for n, pair in enumerate(zip(before, after, strict=True), 1) if len({*pair}) > 1] == [fault.line]


def test_a_fault_says_what_it_is():
    fault = faults.Fault("kind", 3, "mma {%a, %b, %c, %d};", "")
    assert str(fault) == "kind, line 3: mma {%a, ..., %d}; -> nothing"


# ---- in a tensor map -------------------------------------------------------------------------------------------------

MAPS = {
    "no swizzle": lambda at, swizzle, *rest: (at, 0, *rest),
    "half the box": lambda at, swizzle, size, kind, box, *rest: (
        at, swizzle, size, kind, [*box[:-2], box[-2] // 2, box[-1]], *rest
    ),
    "twice the box": lambda at, swizzle, size, kind, box, *rest: (
        at, swizzle, size, kind, [*box[:-2], box[-2] * 2, box[-1]], *rest
    ),
    "16 bytes off": lambda at, *rest: (at + 16, *rest),
    "rows apart": lambda *a: (*a[:6], [*a[6][:-2], a[6][-2] + 8, a[6][-1]], a[7]),
    "fewer rows": lambda *a: (*a[:5], [*a[5][:-2], a[5][-2] // 2, a[5][-1]], *a[6:]),
}  # fmt: skip


@pytest.mark.parametrize("fault", MAPS)
def test_a_fault_in_a_tensor_map_shows(monkeypatch, fault):
    """In what the host asks of cuTensorMapEncodeTiled: by the machine, or by the values."""
    home = compiled("attention_forward_kernel", 90).homes[0]
    utilities = driver._utilities()
    encode, encoded = utilities.fill_tma_descriptor_tiled, []

    def faulty(*arguments):
        if arguments[1] == 0:  # a row of statistics, which is not swizzled: the faults are in tiles
            return encode(*arguments)
        changed = MAPS[fault](*arguments)
        encoded.append(changed != arguments)
        return encode(*changed)

    monkeypatch.setattr(utilities, "fill_tma_descriptor_tiled", faulty)
    outcome = planting.execute(home.trial, home.expected, 90, planting.SETTINGS[0])
    assert encoded
    assert all(encoded)
    assert outcome.problems


def test_a_swizzle_that_its_box_is_too_wide_for_is_refused(monkeypatch):
    home, utilities = compiled("attention_forward_kernel", 90).homes[0], driver._utilities()
    encode = utilities.fill_tma_descriptor_tiled
    monkeypatch.setattr(utilities, "fill_tma_descriptor_tiled", lambda at, swizzle, *rest: encode(at, 1, *rest))
    with pytest.raises(RuntimeError, match="invalid argument"):
        planting.execute(home.trial, home.expected, 90, planting.SETTINGS[0])


# ---- in the source: what the interpreter, which runs a program's threads as one, cannot see --------------------------


@triton.jit
def exchange_kernel(X, Scratch, Out, N: tl.constexpr, HAS_BARRIER: tl.constexpr):
    """Out = X from the last to the first, by way of memory."""
    i = tl.arange(0, N)
    tl.store(Scratch + i, tl.load(X + i))
    if HAS_BARRIER:
        tl.debug_barrier()
    tl.store(Out + i, tl.load(Scratch + N - 1 - i))


@triton.jit
def less_the_first_kernel(X, N: tl.constexpr, HAS_BARRIER: tl.constexpr):
    """X = X - X[0], in place: all warps read X[0], and one of them writes over it."""
    i = tl.arange(0, N)
    difference = tl.load(X + i) - tl.load(X)
    if HAS_BARRIER:
        tl.debug_barrier()
    tl.store(X + i, difference)


def exchange(barrier):
    x, scratch, out = torch.randn(512), torch.empty(512), torch.empty(512)
    exchange_kernel[(1,)](x, scratch, out, 512, barrier)
    return out, x.flip(0)


def less_the_first(barrier):
    x = torch.randn(512)
    wanted = x - x[0]
    less_the_first_kernel[(1,)](x, 512, barrier)
    return x, wanted


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("call", [exchange, less_the_first])
def test_a_barrier_that_the_source_lacks(call, capability):
    """By the interpreter both are right, with the barrier and without."""
    with fastgpt.kernels.interpret():
        assert all(torch.equal(*call(barrier)) for barrier in (True, False))
    seen_in_values = []
    for schedule in ("forward", "backward"):
        with simulate(capability, settings=Settings(schedule=schedule)) as gpu:
            assert torch.equal(*call(True))
        assert not gpu.findings
        with simulate(capability, settings=Settings(schedule=schedule)) as gpu:
            seen_in_values.append(not torch.equal(*call(False)))
        assert any(finding.kind.startswith("race") for finding in gpu.findings)
    assert any(seen_in_values)
