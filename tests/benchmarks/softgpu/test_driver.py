"""Kernels that reach the machine through Triton's own binder, cache and launchers."""

import gc
import os
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.softgpu import engine
from benchmarks.softgpu.driver import simulate
from fastgpt.kernels import _runtime

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU's driver is in this process")


def of(findings: list[engine.Finding]) -> list[str]:
    return [finding.kind for finding in findings]


# ---- arguments -------------------------------------------------------------------------------------------------------


@triton.jit
def every_type_kernel(
    Ints, Floats, a: tl.int8, b: tl.int16, c: tl.int32, d: tl.int64, e: tl.uint8, f: tl.uint16, g: tl.uint32,
    h: tl.uint64, x: tl.float16, y: tl.bfloat16, z: tl.float32, w: tl.float64, Missing, flag, small, large,
):  # fmt: skip
    if Missing is None:
        tl.store(Ints, a.to(tl.int64))
    tl.store(Ints + 1, b.to(tl.int64))
    tl.store(Ints + 2, c.to(tl.int64))
    tl.store(Ints + 3, d)
    tl.store(Ints + 4, e.to(tl.int64))
    tl.store(Ints + 5, f.to(tl.int64))
    tl.store(Ints + 6, g.to(tl.int64))
    tl.store(Ints + 7, h.to(tl.int64, bitcast=True))
    tl.store(Ints + 8, flag.to(tl.int64))
    tl.store(Ints + 9, small.to(tl.int64))
    tl.store(Ints + 10, large)
    tl.store(Floats, x.to(tl.float64))
    tl.store(Floats + 1, y.to(tl.float64))
    tl.store(Floats + 2, z.to(tl.float64))
    tl.store(Floats + 3, w)


@pytest.mark.parametrize("capability", [80, 90])
def test_arguments_of_every_type(capability):
    ints, floats = torch.zeros(11, dtype=torch.int64), torch.zeros(4, dtype=torch.float64)
    byte = 5 if triton.__version__.startswith("3.6.") else -5  # whose launcher refuses negative ones
    given = (byte, -300, -70000, -(1 << 40), 250, 65000, 4_000_000_000, (1 << 64) - 7)
    with simulate(capability) as gpu:
        every_type_kernel[(1,)](ints, floats, *given, 0.1, -0.5, 0.1, 0.1, None, True, 77, 1 << 50)
    assert ints.tolist() == [*given[:-1], -7, 1, 77, 1 << 50]
    assert floats[0] == torch.tensor(0.1, dtype=torch.float16).double()
    assert floats[1:].tolist() == [-0.5, torch.tensor(0.1).double().item(), 0.1]
    assert not gpu.findings
    assert [(launch.kernel, launch.grid) for launch in gpu.launches] == [("every_type_kernel", (1, 1, 1))]


@triton.jit
def double_kernel(Y, X, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + i, 2 * tl.load(X + i, mask=i < n), mask=i < n)


@pytest.mark.parametrize(
    ("offset", "n", "vectors"), [(0, 1024, True), (1, 1024, False), (0, 1023, False), (0, 1, False)]
)
def test_what_is_divisible_by_16_is_compiled_for_it_and_nothing_else_is(offset, n, vectors):
    """By Triton's own specialisation, of pointers and integers."""
    x, y = torch.arange(1025, dtype=torch.float32), torch.zeros(1025)
    with simulate() as gpu:
        double_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](y[offset:], x[offset:], n, BLOCK=1024)
    assert torch.equal(y[offset:][:n], 2 * x[offset:][:n])
    assert not y[offset + n :].any()
    assert not gpu.findings
    program = gpu.launches[0].program
    assert ("ld.global.v4" in program.text) == vectors
    assert len(program.kernel.params) == (4 if n == 1 else 5)  # 1 is a constant; two are of scratch


class Pair(NamedTuple):
    first: Any
    second: Any


class Whole(NamedTuple):
    out: Any
    pair: Any
    scale: Any
    absent: Any


@triton.jit
def tuple_kernel(whole, offsets):
    i = tl.arange(0, 32)
    x = tl.load(whole.pair.first + i) + tl.load(whole.pair.second + i) * whole.scale
    if whole.absent is None:
        tl.store(whole.out + i + offsets[0], x + offsets[1])


def test_tensors_in_tuples():
    a, b, out = torch.randn(32), torch.randn(32), torch.zeros(48)
    with simulate() as gpu:
        tuple_kernel[(1,)](Whole(out, Pair(a, b), 0.5, None), (16, 3))
    torch.testing.assert_close(out[16:], a + b * 0.5 + 3)
    assert not out[:16].any()
    assert not gpu.findings


@triton.jit
def tile_kernel(Y, X, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
    Y.store([row, column], X.load([row, column]) + 1.0)


@pytest.mark.parametrize("capability", [80, 90])
def test_tensor_descriptors(capability):
    """Pointers, sizes and strides on sm_80; on sm_90 a tensor map, which the driver's own call has encoded."""
    x, y = torch.randn(50, 40), torch.zeros(50, 40)
    with simulate(capability) as gpu:
        made = [TensorDescriptor(t, [50, 40], [40, 1], [16, 32]) for t in (y, x)]
        tile_kernel[4, 2](*made, ROWS=16, COLUMNS=32)
    assert torch.equal(y, x + 1)
    assert not gpu.findings
    assert ("cp.async.bulk.tensor" in gpu.launches[0].program.text) == (capability >= 90)


def test_a_tensor_map_that_the_driver_refuses_is_never_launched():
    x = torch.randn(50, 41)
    made = TensorDescriptor(x, [50, 40], [40, 1], [16, 32])
    made.strides = [41, 1]  # 164 bytes, no multiple of 16, behind the back of Triton's own check
    with simulate(90) as gpu, pytest.raises(RuntimeError, match="tensor map descriptor: invalid argument"):
        tile_kernel[1, 1](made, made, ROWS=16, COLUMNS=32)
    assert not gpu.launches


# ---- grids, devices --------------------------------------------------------------------------------------------------


@triton.jit
def ids_kernel(Out):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    nx, ny = tl.num_programs(0), tl.num_programs(1)
    tl.store(Out + (z * ny + y) * nx + x, 100 * x + 10 * y + z)


@pytest.mark.parametrize("grid", [(3,), (3, 2), (2, 3, 4), [2, 2], lambda meta: (5, 1)])
def test_grids(grid):
    shape = (*(grid if not callable(grid) else (5, 1)), 1, 1)[:3]
    out = torch.full((shape[0] * shape[1] * shape[2],), -1, dtype=torch.int32)
    with simulate() as gpu:
        ids_kernel[grid](out)
    wanted = [100 * x + 10 * y + z for z in range(shape[2]) for y in range(shape[1]) for x in range(shape[0])]
    assert out.tolist() == wanted
    assert gpu.launches[0].grid == shape
    assert gpu.launches[0].result.ctas == len(wanted)


def test_an_empty_grid_launches_nothing():
    with simulate() as gpu:
        ids_kernel[(0,)](torch.zeros(1, dtype=torch.int32))
    assert not gpu.launches


def test_another_gpu_may_be_pretended_inside():
    out = torch.zeros(1, dtype=torch.int32)
    with simulate(80) as gpu:
        for target in (_runtime.Target("cuda", "sm_90", 7), _runtime.Target("cuda", "sm_86", 7)):
            with _runtime.pretend(target):
                ids_kernel[(1,)](out)
                device = triton.runtime.driver.active.get_current_device()
                properties = triton.runtime.driver.active.utils.get_device_properties(device)
                assert properties["multiprocessor_count"] == 7
                assert properties["max_shared_mem"] == {"sm_90": 232448, "sm_86": 101376}[target.arch]
        ids_kernel[(1,)](out)
    assert [launch.program.kernel.target.rstrip("a") for launch in gpu.launches] == ["sm_90", "sm_86", "sm_80"]
    with simulate(80), _runtime.pretend(_runtime.KNOWN_TARGETS["gfx942"]), pytest.raises(RuntimeError, match="gfx942"):
        ids_kernel[(1,)](out)


@triton.jit
def much_shared_kernel(Out, X, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(X + i[:, None] * N + i[None, :])
    tl.store(Out + i[:, None] * N + i[None, :], tl.dot(x, tl.trans(x)))


def test_more_shared_memory_than_the_gpu_has_is_refused_as_there():
    x = torch.randn(256, 256)
    with simulate(86) as gpu, pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
        much_shared_kernel[(1,)](torch.zeros(256, 256), x, N=256)
    assert not gpu.launches


# ---- memory ----------------------------------------------------------------------------------------------------------


class Address:
    """What Triton takes for a pointer, and is no tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.data_ptr = tensor.dtype, tensor.data_ptr


def test_a_launch_may_touch_only_what_it_is_given():
    x, y = torch.randn(300), torch.zeros(300)
    with simulate() as gpu:
        double_kernel[(3,)](y, x, 300, BLOCK=128)
        assert not gpu.findings
        double_kernel[(3,)](y, x, 301, BLOCK=128)
    assert "out of bounds" in of(gpu.findings)
    assert {finding.kernel for finding in gpu.findings} == {"double_kernel"}
    assert any("Y" in finding.text for finding in gpu.findings), gpu.findings
    with simulate() as gpu:
        double_kernel[(1,)](Address(y), x, 16, BLOCK=128)
    assert "out of bounds" in of(gpu.findings)


def test_reading_what_nobody_wrote():
    y = torch.zeros(64)
    with simulate() as gpu:
        x = torch.empty(64)
        x[:32] = 1.0
        double_kernel[(1,)](y, x.clone(), 32, BLOCK=128)
        assert not gpu.findings
        fresh = torch.empty_like(x)
        assert fresh.isnan().all()
        double_kernel[(1,)](fresh, y, 32, BLOCK=128)
        double_kernel[(1,)](y, fresh, 32, BLOCK=128)  # what the kernel before has written
        assert not gpu.findings
        double_kernel[(1,)](y, fresh, 33, BLOCK=128)
    assert of(gpu.findings) == ["never written"]
    assert "X" in gpu.findings[0].text


@pytest.mark.parametrize("writer", ["fill_", "out", "numpy", "data", "inference"])
def test_what_torch_or_numpy_wrote_is_written(writer):
    y = torch.zeros(64, dtype=torch.int32)
    with simulate() as gpu, torch.inference_mode(writer == "inference"):
        x = torch.empty(64, dtype=torch.int32)
        if writer in ("fill_", "inference"):
            x.fill_(-1 if writer == "fill_" else 3)  # -1 is all 0xff, as fresh memory is
        elif writer == "out":
            torch.add(y, -1, out=x)
        elif writer == "numpy":
            x.numpy()[:] = 3
        else:
            x.data.fill_(3)
        double_kernel[(1,)](y, x, 64, BLOCK=128)
    assert not gpu.findings
    assert (y == 2 * x[0]).all()


def test_torch_may_write_where_a_kernel_has_written_a_part():
    y = torch.zeros(64, dtype=torch.int32)
    with simulate() as gpu:
        x = torch.empty(64, dtype=torch.int32)
        double_kernel[(1,)](x, y, 16, BLOCK=128)
        x.fill_(-1)  # as fresh memory is
        double_kernel[(1,)](y, x, 64, BLOCK=128)
    assert not gpu.findings
    assert (y == -2).all()


def test_a_number_of_torchs_may_have_bytes_of_fresh_memory():
    """As products have, which an operator's launch code leaves to torch: no version counter tells of them."""
    y = torch.zeros(64)
    with simulate() as gpu:
        x = torch.empty(64)
        x.numpy().view("int32")[:] = 0x3F80FFFF
        double_kernel[(1,)](y, x, 64, BLOCK=128)
        assert not gpu.findings
        x = torch.empty(64)
        double_kernel[(1,)](x, y, 33, BLOCK=128)
        double_kernel[(1,)](y, x, 34, BLOCK=128)  # beside what a kernel has written
    assert of(gpu.findings) == ["never written"]


def test_large_memory_is_not_touched():
    def resident() -> int:
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

    n = (1 << 31) + 64
    with simulate() as gpu:
        before = resident()
        x = torch.empty(n, dtype=torch.bfloat16)
        double_kernel[(1,)](x[n - 32 :], torch.ones(32, dtype=torch.bfloat16), 32, BLOCK=128)
        double_kernel[(1,)](y := torch.zeros(32, dtype=torch.bfloat16), x[n - 32 :], 32, BLOCK=128)
        assert (y == 4).all()
        assert not gpu.findings
        double_kernel[(1,)](y, x[n - 64 :], 32, BLOCK=128)
        assert of(gpu.findings) == ["never written"]
        assert resident() - before < 256 << 20


def test_memory_that_is_freed_is_forgotten():
    """Its address may be another tensor's next."""
    y = torch.zeros(64)
    with simulate() as gpu:
        for n in (1 << 10, 1 << 12, 1 << 10, 1 << 14) * 3:
            x = torch.empty(n)
            x.fill_(1.0)
            double_kernel[(1,)](y, x, 64, BLOCK=128)
            del x
            gc.collect()
    assert not gpu.findings


@triton.jit
def made_on_device_kernel(Y, X, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    x = tl.make_tensor_descriptor(X, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    y = tl.make_tensor_descriptor(Y, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    y.store([0, 0], x.load([0, 0]))


def test_scratch_of_tritons_allocator_may_be_touched():
    """Tensor maps made on the device lie there."""
    x, y = torch.randn(16, 32), torch.zeros(16, 32)
    asked = []

    def allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        asked.append(size)
        return torch.empty(size, dtype=torch.int8)

    triton.set_allocator(allocate)
    try:
        with simulate(90) as gpu:
            made_on_device_kernel[(1,)](y, x, 16, 32, ROWS=16, COLUMNS=32)
    finally:
        triton.set_allocator(triton.runtime._allocation.NullAllocator())
    assert asked
    assert torch.equal(x, y)
    assert not gpu.findings


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_instruction_that_nobody_knows_is_named_each_time():
    x, y = torch.randn(64), torch.zeros(64)
    with simulate() as gpu:
        for _ in range(2):
            gpu.on_ptx = lambda name, text: text.replace("ret;", "frobnicate.b32 %r1;\n ret;")
            with pytest.raises(engine.Unsupported, match=r"double_kernel.*frobnicate"):
                double_kernel[(1,)](y, x, 64, BLOCK=128)
            gpu.on_ptx = None
            double_kernel[(1,)](y, x, 64, BLOCK=128)
    assert len(gpu.launches) == 2
    assert torch.equal(y, 2 * x)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (".reqntid 128", ".reqntid 64", "double_kernel: compiled for 64 threads, launched with 128"),
        (
            ".reqnctapercluster 2",
            ".reqnctapercluster 1",
            r"double_kernel: compiled for clusters of \(1, 1, 1\)",
        ),
    ],
)
def test_ctas_of_another_size_than_was_compiled_for_are_refused(old, new, said):
    x, y = torch.randn(512), torch.zeros(512)
    with simulate(90) as gpu:
        double_kernel[(2,)](y, x, 512, BLOCK=256, num_ctas=2)
        assert torch.equal(y, 2 * x)
        assert gpu.launches[0].grid == (4, 1, 1)
        assert not gpu.findings
        assert old in gpu.launches[0].program.text
        gpu.on_ptx = lambda name, text: text.replace(old, new)
        with pytest.raises(ValueError, match=said):
            double_kernel[(2,)](y, x, 512, BLOCK=256, num_ctas=2)


def test_ptx_may_be_edited():
    x, y = torch.ones(64), torch.zeros(64)
    seen = []

    def edit(name: str, text: str) -> str:
        seen.append(name)
        return text.replace("add.f32", "sub.f32").replace("mul.f32", "add.f32")

    with simulate() as gpu:
        gpu.on_ptx = edit
        double_kernel[(1,)](y, 3 * x, 64, BLOCK=128)
    assert seen == ["double_kernel"]
    assert (y != 6).all()


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stopped])
def test_an_exception_passes_and_all_is_put_back(error):
    """Also what Triton would have turned into an error of its own."""
    driver, empty, new_empty = triton.runtime.driver._active, torch.empty, torch.Tensor.new_empty
    x = torch.randn(64)

    def fail(name: str, text: str) -> str:
        raise error("why")

    def run() -> None:
        with simulate() as gpu:
            gpu.on_ptx = fail
            double_kernel[(1,)](x.clone(), x, 64, BLOCK=128)

    with pytest.raises(error, match="why"):
        run()
    assert triton.runtime.driver._active is driver
    assert torch.empty is empty
    assert torch.Tensor.new_empty is new_empty
    assert not _runtime.interpreting
    assert _runtime._pretended is None
    with simulate(), pytest.raises(RuntimeError, match="no such thing"):
        raise RuntimeError("no such thing")
    with simulate():
        double_kernel[(1,)](y := torch.zeros(64), x, 64, BLOCK=128)
    assert torch.equal(y, 2 * x)


def test_blocks_may_be_nested():
    x, y = torch.randn(64), torch.zeros(64)
    with simulate(80) as outer:
        double_kernel[(1,)](y, x, 64, BLOCK=128)
        with simulate(90) as inner:
            double_kernel[(1,)](y, x, 64, BLOCK=128)
        double_kernel[(1,)](y, x, 64, BLOCK=128)
    assert (len(outer.launches), len(inner.launches)) == (2, 1)


def test_what_is_compiled_is_kept_in_tritons_cache(fresh_triton_cache):
    x, y = torch.randn(64), torch.zeros(64)
    with simulate() as gpu:
        double_kernel.device_caches.clear()
        double_kernel[(1,)](y, x, 64, BLOCK=128)
        kept = list(fresh_triton_cache.rglob("double_kernel.cubin"))
        assert [path.read_text() for path in kept] == [gpu.launches[0].program.text]
        double_kernel.device_caches.clear()
        before = kept[0].stat().st_mtime_ns
        double_kernel[(1,)](y, x, 64, BLOCK=128)
        assert [path.stat().st_mtime_ns for path in fresh_triton_cache.rglob("double_kernel.cubin")] == [before]


@pytest.fixture
def fresh_triton_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path
