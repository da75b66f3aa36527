"""Tensor maps that a kernel makes itself: their fields, and the fences between their making and their use."""

import numpy as np
import pytest

from tests.benchmarks.softgpu.support import kernel, kinds
from tests.benchmarks.softgpu.test_tma import (
    BARRIER,
    DECLARATIONS,
    INIT,
    PUBLISH,
    SETUP,
    THREADS,
    WAIT,
    aligned,
    copied_out,
    expect,
    tensor_map,
)

NBYTES = 512
MAP = ".shared::cta.b1024"


def replaced(field: str, *values: object, space: str = MAP, kind: str = "b32") -> str:
    at = "%s + 1024" if space == MAP else "%m"
    return f"@%one tensormap.replace.tile.{field}{space}.{kind} [{at}], {', '.join(map(str, values))};"


# As Triton does: zeros, all fields one after the other, a copy to global memory (%g0) that releases it, an acquire.
BLANK = "setp.lt.u32 %p, %tid, 32; @%p st.shared.b32 [%at + 1024], 0; bar.warp.sync -1;"
ELEMENT_TYPE, BOX, SIZE = replaced("elemtype", 7), replaced("box_dim", 1, 8), replaced("global_dim", 1, 16)
FIELDS = "\n".join((
    replaced("global_address", "%g2", kind="b64"), replaced("rank", 1), replaced("box_dim", 0, 16), BOX,
    replaced("global_dim", 0, 32), SIZE, replaced("global_stride", 0, "%n", kind="b64"),
    replaced("element_stride", 0, 1), replaced("element_stride", 1, 1), ELEMENT_TYPE,
    replaced("interleave_layout", 0), replaced("swizzle_mode", 0), replaced("fill_mode", 0),
))  # fmt: skip
COPY = """bar.warp.sync -1; @%p tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned
[%g0], [%m], 128;"""
ACQUIRE = "@%p fence.proxy.tensormap::generic.acquire.gpu [%g0], 128;"
LOAD = """@%one cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%s], [%g0, {8, 4}], [%bar];"""
MADE = f"""
add.s32 %bar, %s, 1536; cvt.u64.u32 %m, %s; add.s64 %m, %m, 1024; mov.b64 %n, 128; mad.lo.u32 %at, %tid, 4, %s;
{INIT} {BLANK} {FIELDS} setp.lt.u32 %p, %tid, 32;
{COPY}
{ACQUIRE}
{PUBLISH} {BARRIER} {expect(NBYTES)} {LOAD} {WAIT} {copied_out(NBYTES)}
"""


def run(body: str, given: np.ndarray | None = None, **settings):
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    room = aligned(128) if given is None else given
    out = np.zeros(NBYTES, np.uint8)
    result = kernel(SETUP + body, room, out, x.view(np.uint8).reshape(-1), threads=THREADS, shared=2048,
                    declarations=DECLARATIONS + ".reg .b64 %m, %n;", **settings)  # fmt: skip
    return result, out.view(np.float32).reshape(8, 16), x


@pytest.mark.parametrize("schedule", ["forward", "backward", "random"])
def test_a_map_made_by_the_kernel(schedule):
    result, out, x = run(MADE, schedule=schedule)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out, x[4:12, 8:24])


def test_a_map_made_by_the_kernel_is_the_drivers():
    room = aligned(128)
    _, _, x = run(MADE, room)
    x_address = room[16:24].copy()
    want = tensor_map(x, (8, 16))
    want[16:24] = x_address  # the array's place changes from call to call
    np.testing.assert_array_equal(room, want)


# PTX numbers the types of elements otherwise than the driver, from 8 on.
@pytest.mark.parametrize(("ptx", "driver"), [*((k, k) for k in range(8)), (8, 10), (9, 8), (10, 9), (11, 11), (12, 12)])
def test_types_of_elements(ptx, driver):
    room = aligned(128)
    run(MADE.replace(ELEMENT_TYPE, replaced("elemtype", ptx)).replace(LOAD, "").replace(WAIT, ""), room)
    assert room[4] == driver


FAULTS = {
    "no acquire": (ACQUIRE, "", {"no tensormap fence"}),
    "an acquire of another map": ("gpu [%g0], 128;", "gpu [%g2], 128;", {"no tensormap fence"}),
    "an acquire before the copy": (f"{COPY}\n{ACQUIRE}", f"{ACQUIRE}\n{COPY}", {"no tensormap fence"}),
    "an acquire by another warp, unordered": (ACQUIRE, ACQUIRE.replace("@%p", "@!%p"), {"no tensormap fence",
                                                                                       "race: read after write"}),
    "no zeros": (BLANK, "", {"never written", "bad tensor map"}),
    "zeros not waited for": (BLANK, BLANK.replace("bar.warp.sync -1;", ""), {"race: read after write"}),
    "no element stride": (replaced("element_stride", 1, 1), "", {"bad tensor map"}),
    "no box": (BOX, "", {"bad tensor map"}),
    "a dimension too many": (SIZE, replaced("global_dim", 5, 16), {"bad tensor map"}),
    "an unknown type": (ELEMENT_TYPE, replaced("elemtype", 13), {"bad tensor map"}),
    "a box too large": (BOX, replaced("box_dim", 1, 257), {"bad tensor map"}),
    "a stride off 16 bytes": ("mov.b64 %n, 128;", "mov.b64 %n, 132;", {"bad tensor map"}),
    "of another rank": (replaced("rank", 1), replaced("rank", 2), {"bad tensor map"}),
    "used in shared memory": ("[%g0, {8, 4}]", "[%q, {8, 4}]", {"bad tensor map"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    old, new, wanted = FAULTS[fault]
    assert MADE.count(old) == 1
    body = MADE.replace(old, new)
    if "%q" in new:
        body = body.replace(LOAD, "").replace(BARRIER, f".reg .b64 %q; cvta.shared.u64 %q, %m; {BARRIER}")
    result, _, _ = run(body)
    assert kinds(result) & wanted, "\n".join(map(str, result.findings))


EDIT = replaced("global_dim", 1, 6, space=".global.b1024").replace("%m", "%g0")
RELEASE = "fence.proxy.tensormap::generic.release.gpu;"
EDITED = f"""
add.s32 %bar, %s, 1536; {INIT} {EDIT} {RELEASE} {PUBLISH} {BARRIER}
fence.proxy.tensormap::generic.acquire.gpu [%g0], 128; {expect(NBYTES)} {LOAD} {WAIT} {copied_out(NBYTES)}
"""


def edited(body: str):
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    out = np.zeros(NBYTES, np.uint8)
    result = kernel(SETUP + body, tensor_map(x, (8, 16)), out, x.view(np.uint8).reshape(-1), threads=THREADS,
                    shared=2048, declarations=DECLARATIONS)  # fmt: skip
    return result, out.view(np.float32).reshape(8, 16), x


def test_a_map_edited_in_global_memory():
    """The driver's map of 16 rows becomes one of 6: rows 4 and 5 are there, the others are zeros."""
    result, out, x = edited(EDITED)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out[:2], x[4:6, 8:24])
    assert not out[2:].any()


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (RELEASE, "", "no tensormap fence"), ("fence.proxy.tensormap::generic.acquire.gpu [%g0], 128;", "",
                                              "no tensormap fence"),
        (BARRIER, "", "race: read after write"),
    ],
)  # fmt: skip
def test_an_edited_map_needs_its_fences(old, new, wanted):
    assert EDITED.count(old) == 1
    found = kinds(edited(EDITED.replace(old, new))[0])
    assert wanted in found, found
