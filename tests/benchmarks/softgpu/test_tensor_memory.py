"""Tensor memory: its allocation, and where tcgen05.ld and .st find a thread's registers in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.softgpu.engine import Unsupported
from tests.benchmarks.softgpu.support import kernel, kinds

TARGET, THREADS, LANES = "sm_100a", 128, 32
HALVES = 48  # columns between the halves of .16x32bx2

# Register r of thread t -> lane and column, from the address on: the ISA's figures of matrix fragments.
PLACES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "32x32b": lambda t, r: (t, r),
    "16x64b": lambda t, r: (t // 4 + 8 * (t % 2), 2 * r + t // 2 % 2),
    "16x128b": lambda t, r: (t // 4 + 8 * (r % 2), 4 * (r // 2) + t % 4),
    "16x256b": lambda t, r: (t // 4 + (8 if r % 4 >= 2 else 0), 8 * (r // 4) + 2 * (t % 4) + r % 2),
    "16x32bx2": lambda t, r: (t % 16, r if t < 16 else HALVES + r),
}
REGISTERS = {"32x32b": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4, "16x32bx2": 1}  # of a repetition
COLUMNS = {"32x32b": 1, "16x64b": 2, "16x128b": 4, "16x256b": 8, "16x32bx2": 1}

# %t: 512 columns; %mine: what of them this warp reaches.
START = """
setp.lt.u32 %first, %tid, 32;
@%first tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [smem], 512;
bar.sync 0;
ld.shared.b32 %t, [smem];
shr.u32 %mine, %tid, 5; and.b32 %mine, %mine, 3; shl.b32 %mine, %mine, 21; add.u32 %mine, %mine, %t;
"""
END = "bar.sync 0; @%first tcgen05.dealloc.cta_group::1.sync.aligned.b32 %t, 512;"
DECLARATIONS = ".reg .pred %first, %p; .reg .b32 %t, %mine, %u, %x<130>; .reg .b64 %to, %from;"
WAITS = "tcgen05.wait::ld.sync.aligned; tcgen05.wait::st.sync.aligned;"


def run(body: str, *arrays: np.ndarray, threads: int = THREADS, **settings):
    return kernel(body, *arrays, threads=threads, shared=64, target=TARGET, declarations=DECLARATIONS, **settings)


def access(op: str, shape: str, repeat: int, address: str, first: int = 0, apart: int = HALVES) -> str:
    registers = "{" + ", ".join(f"%x{first + r}" for r in range(repeat * REGISTERS[shape])) + "}"
    opcode = f"tcgen05.{op}.sync.aligned.{shape}.x{repeat}.b32"
    split = f", {apart}" if shape == "16x32bx2" else ""
    if op == "st":
        return f"{opcode} [{address}]{split}, {registers}; tcgen05.wait::st.sync.aligned;"
    return f"{opcode} {registers}, [{address}]{split}; tcgen05.wait::ld.sync.aligned;"


def words(op: str, count: int, array: str, row: int) -> str:
    """From or to row `tid` of an array."""
    lines = [f"mad.wide.u32 %to, %tid, {4 * row}, {array};"]
    for r in range(count):
        lines.append(f"{op}.global.b32 {f'%x{r}, [%to + {4 * r}]' if op == 'ld' else f'[%to + {4 * r}], %x{r}'};")
    return "\n".join(lines)


SHAPES = [(shape, repeat) for shape in PLACES for repeat in (1, 2, 8, 16) if repeat * REGISTERS[shape] <= 64]
SHAPES += [("32x32b", 128), ("16x64b", 128), ("16x128b", 64), ("16x256b", 32), ("16x32bx2", 32)]


def region(op: str, width: int, array: str) -> str:
    """Row `tid` of an array to or from this thread's lane, `width` columns, 16 at a time."""
    lines = [f"mad.wide.u32 %to, %tid, {4 * width}, {array};"]
    for column in range(0, width, 16):
        at = [f"[%to + {4 * (column + r)}]" for r in range(16)]
        copy = access("st" if op == "ld" else "ld", "32x32b", 16, f"%mine + {column}")
        if op == "ld":
            lines += [*(f"ld.global.b32 %x{r}, {at[r]};" for r in range(16)), copy]
        else:
            lines += [copy, *(f"st.global.b32 {at[r]}, %x{r};" for r in range(16))]
    return "\n".join(lines)


@pytest.mark.parametrize(("shape", "repeat"), SHAPES)
@pytest.mark.parametrize("upper", [0, 16])
def test_where_registers_lie(shape, repeat, upper):
    if shape == "32x32b" and upper:
        return
    count, rng = repeat * REGISTERS[shape], np.random.default_rng(repeat)
    width = COLUMNS[shape] * repeat + (HALVES if shape == "16x32bx2" else 0)
    width = -(-width // 16) * 16
    thread = np.indices((THREADS, count))[0]
    places = np.array([[PLACES[shape](t, k) for k in range(count)] for t in range(LANES)])
    lanes = thread // LANES * LANES + upper + np.tile(places[..., 0], (4, 1))
    columns = np.tile(places[..., 1], (4, 1))
    assert len({*zip(lanes.flat, columns.flat)}) == THREADS * count
    address = f"add.u32 %u, %mine, {upper << 16};"

    memory, got = rng.integers(0, 2**32, (THREADS, width), np.uint32), np.zeros((THREADS, count), np.uint32)
    body = [START, region("ld", width, "%g0"), address, access("ld", shape, repeat, "%u + 0")]
    result = run("\n".join([*body, words("st", count, "%g1", count), END]), memory, got)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(got, memory[lanes, columns])

    registers, out = rng.integers(0, 2**32, (THREADS, count), np.uint32), np.zeros_like(memory)
    body = [START, region("ld", width, "%g0"), words("ld", count, "%g1", count), address]
    body += [access("st", shape, repeat, "%u + 0"), region("st", width, "%g2"), END]
    result = run("\n".join(body), memory, registers, out)
    assert not result.findings, "\n".join(map(str, result.findings))
    memory[lanes, columns] = registers
    np.testing.assert_array_equal(out, memory)


# ---- order, bounds, what is undefined --------------------------------------------------------------------------------

LD, ST = access("ld", "32x32b", 1, "%mine + 4").split(";")[0], access("st", "32x32b", 1, "%mine + 4").split(";")[0]
WAIT_LD, WAIT_ST = "tcgen05.wait::ld.sync.aligned;", "tcgen05.wait::st.sync.aligned;"
SET = "mov.b32 %x0, %tid;"
SECOND = "setp.ge.u32 %p, %tid, 128;"  # of two warpgroups, whose warps 0 and 4, ... reach the same lanes
BY_FIRST, BY_SECOND = f"@!%p {ST}; @!%p {WAIT_ST}", f"@%p {LD}; @%p {WAIT_LD}"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (f"{SET} {ST}; {WAIT_ST} {LD}; {WAIT_LD}", set()),
        (f"{SET} {ST}; {LD}; {WAIT_LD} {WAIT_ST}", {"in flight"}),
        (f"{SET} {ST}; {ST}; {WAIT_ST}", {"in flight"}),
        (f"{SET} {ST}; {WAIT_ST} {LD}; {ST}; {WAIT_ST} {WAIT_LD}", {"in flight"}),
        (f"{SET} {ST}; {WAIT_ST} {LD}; {LD}; {WAIT_LD} {ST}; {WAIT_ST}", set()),
        (f"{SET} {ST}; bar.sync 0;", {"in flight"}),  # and given back
        (f"{SET} {SECOND} {BY_FIRST} bar.sync 0; {BY_SECOND}", set()),
        (f"{SET} {SECOND} {BY_FIRST} {BY_SECOND}", {"race: read after write", "race: write after read"}),
        (f"{SET} {SECOND} @!%p {ST}; bar.sync 0; @!%p {WAIT_ST} {BY_SECOND}", {"race: read after write", "in flight"}),
        (f"{SET} {SECOND} @%p {ST}; @%p {WAIT_ST} @!%p {ST}; @!%p {WAIT_ST}", {"race: write after write"}),
    ],
)
def test_order(body, wanted):
    for schedule in ("forward", "backward", "worst"):
        threads = 2 * THREADS if SECOND in body else THREADS
        found = kinds(run(f"{START}\n{body}\n{END}", threads=threads, schedule=schedule, seed=1))
        assert found <= wanted
        assert bool(found) == bool(wanted)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (LD.replace("%mine + 4", "%mine + 511"), set()),
        (LD.replace("%mine + 4", "%mine + 512"), {"out of bounds"}),
        (LD.replace("%mine", "%t"), {"tensor memory of other lanes"}),
        (f"add.u32 %mine, %mine, {8 << 16}; {LD}", {"tensor memory of other lanes"}),
        (f"add.u32 %mine, %mine, {16 << 16}; {LD}", {"tensor memory of other lanes"}),
        (f"add.u32 %mine, %mine, {16 << 16}; {LD.replace('32x32b', '16x64b')}", set()),
        (f"add.u32 %mine, %mine, {128 << 16}; {LD}", {"tensor memory of other lanes"}),
        (f"add.u32 %mine, %mine, %tid; {LD}", {"bad operand"}),
        (f"add.u32 %mine, %mine, %u; {LD}", {"undefined value"}),
        (f"setp.lt.u32 %p, %tid, 5; @%p {LD}", {"partial warp"}),
        (LD.replace("{%x0}", "{%x0, %x1}"), {"bad operand"}),
    ],
)
def test_places_out_of_reach(body, wanted):
    assert kinds(run(f"{START}\n{body}; {WAIT_LD}\n{END}")) == wanted


def test_what_nobody_wrote_stays_undefined():
    """Through tensor memory and back, lane by lane; to load it is no fault, to store it to global memory is one."""
    body = f"{START} setp.lt.u32 %p, %tid, 5; @%p mov.b32 %x0, 7; {ST}; {WAIT_ST} mov.b32 %x0, 0; {LD}; {WAIT_LD}"
    store = "mad.wide.u32 %to, %tid, 4, %g0; st.global.b32 [%to], %x0;"
    out = np.zeros(THREADS, np.uint32)
    result = run(f"{body} @%p {store.replace('; st', '; @%p st')} {END}", out)
    assert not result.findings
    assert list(out[:6]) == [7, 7, 7, 7, 7, 0]
    assert kinds(run(f"{body} {store} {END}", out)) == {"undefined value"}
    assert not run(f"{START} {LD}; {WAIT_LD} {END}").findings
    assert kinds(run(f"{START} {LD}; {WAIT_LD} {store} {END}", out)) == {"undefined value"}


# ---- allocation ------------------------------------------------------------------------------------------------------


def alloc(columns: int, slot: int = 0) -> str:
    return f"tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [smem + {slot}], {columns};"


def dealloc(columns: int, slot: int = 0) -> str:
    return f"ld.shared.b32 %t, [smem + {slot}]; tcgen05.dealloc.cta_group::1.sync.aligned.b32 %t, {columns};"


RELINQUISH = "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (alloc(32) + RELINQUISH + dealloc(32), set()),
        (alloc(256) + alloc(256, 4) + dealloc(256) + alloc(256) + dealloc(256, 4) + dealloc(256), set()),
        (alloc(48), {"bad allocation"}),
        (alloc(16), {"bad allocation"}),
        (alloc(1024), {"bad allocation"}),
        (alloc(32) + alloc(64, 4), {"bad allocation"}),  # they may not become more
        (RELINQUISH + alloc(32), {"bad allocation"}),
        (alloc(32), {"tensor memory kept"}),
        (alloc(64) + dealloc(32), {"bad allocation"}),
        (alloc(32) + dealloc(32) + dealloc(32), {"bad allocation"}),
        (alloc(512) + alloc(32, 4), {"deadlock"}),
    ],
)
def test_allocation(body, wanted):
    for seed in range(3):
        assert kinds(run(body, threads=LANES, seed=seed)) == wanted


def test_an_allocation_waits_until_there_are_so_many_columns():
    body = f"""
        setp.lt.u32 %first, %tid, 32;
        @%first bra FIRST;
        bar.sync 1, 64; {alloc(512, 4)} {dealloc(512, 4)} bra END;
        FIRST: {alloc(512)} bar.sync 1, 64; {dealloc(512)}
        END:"""
    for schedule in ("forward", "backward"):
        assert not run(body, threads=2 * LANES, schedule=schedule).findings


def test_allocations_lie_anywhere_but_apart():
    body = f"{alloc(128)} {alloc(64, 4)} {alloc(64, 8)}"
    body += "".join(f"ld.shared.b32 %x{k}, [smem + {4 * k}]; st.global.b32 [%g0 + {4 * k}], %x{k};" for k in range(3))
    body += dealloc(128) + dealloc(64, 4) + dealloc(64, 8)
    seen = set()
    for seed in range(20):
        out = np.zeros(3, np.uint32)
        assert not kinds(run(body, out, threads=LANES, seed=seed)) - {"conflicting stores"}
        taken = [column for start, columns in zip(out, (128, 64, 64)) for column in range(start, start + columns)]
        assert len(set(taken)) == 256
        assert all(start % columns == 0 for start, columns in zip(out, (128, 64, 64)))
        assert max(taken) < 512
        seen.add(int(out[0]))
    assert len(seen) == 4


def test_forms_that_are_not_known_stop_with_their_text():
    for unknown in (
        "tcgen05.ld.sync.aligned.32x32b.x1.pack::16b.b32 {%x0}, [%mine];",
        "tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [smem], 32;",
        "tcgen05.mma.cta_group::1.kind::i8 [%t], %to, %from, %u, %p;",
    ):
        with pytest.raises(Unsupported, match=unknown.split("{")[0].split(" ")[0].replace(".", r"\.")):
            run(f"{START} {unknown} {END}")
