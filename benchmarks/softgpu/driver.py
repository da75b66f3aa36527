"""Kernels launched through Triton's own binder, cache and launchers, and executed by the machine.

    with simulate(capability=90, settings=Settings(schedule="random")) as gpu:
        kernel[grid](cpu_tensors, ...)             # and the package's operators, on CPU tensors
    gpu.launches, gpu.findings

Only three things are not a real GPU's: the driver library (libcuda.c), the last stage of compilation, which returns the
PTX that ptxas would be given, as a driver takes PTX too, and which device torch says that it has.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils
from triton.runtime import _allocation

from fastgpt.kernels import _runtime

from . import engine, libcuda
from .accepted import why_accepted
from .engine import Finding, Program, Result, Settings
from .storages import Storages, poisoned_memory, tensors

DEFAULTS = Settings()


@dataclass(frozen=True)
class Launch:
    """A launch that was executed."""

    kernel: str
    grid: tuple[int, int, int]
    shared: int  # bytes of dynamic shared memory
    result: Result

    @property
    def program(self) -> Program:
        return self.result.program


class Simulator:
    """A simulated GPU.

    launches   what it executed, in order
    on_ptx     may edit the PTX text of a launch: on_ptx(kernel's name, text) -> text
    on_launch  is called with each launch that was executed
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.launches: list[Launch] = []
        self.on_ptx: Callable[[str, str], str] | None = None
        self.on_launch: Callable[[Launch], None] | None = None
        self.storages = Storages()
        self.allowed: list[int] = []
        self.error: BaseException | None = None

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with the launches."""
        return [finding for launch in self.launches for finding in self.wrong_with(launch)]

    @property
    def accepted(self) -> list[Finding]:
        """What was found besides, and is excused: see accepted.py."""
        found = (finding for launch in self.launches for finding in launch.result.findings)
        return [finding for finding in found if why_accepted(finding, self.settings)]

    def wrong_with(self, launch: Launch) -> list[Finding]:
        """What was found in one launch and is not excused."""
        return [finding for finding in launch.result.findings if not why_accepted(finding, self.settings)]

    def execute(self, kernel: Kernel, shape: libcuda.Shape, params: Any) -> None:
        """Run the launch that the driver was asked for.

        Raises:
            engine.Unsupported, ptx.Unreadable: the kernel cannot be run.
            ValueError: its CTAs have another size than it was compiled for.
        """
        text = kernel.text if self.on_ptx is None else self.on_ptx(kernel.name, kernel.text)
        program = engine.load(text, kernel.name)
        threads, cluster = shape.block[0] * shape.block[1] * shape.block[2], tuple(shape.cluster)
        if threads != program.num_threads:
            raise ValueError(f"{kernel.name}: compiled for {program.num_threads} threads, launched with {threads}")
        if cluster != (1, 1, 1) and cluster != tuple(program.kernel.cluster):
            compiled = program.kernel.cluster
            raise ValueError(f"{kernel.name}: compiled for clusters of {compiled}, launched with {cluster}")
        block = packed(program, params)
        grid = tuple(shape.grid)
        result = engine.launch(program, grid, block, shape.shared, self.storages.memory, self.allowed, self.settings)
        self.launches.append(Launch(kernel.name, grid, shape.shared, result))
        if self.on_launch is not None:
            self.on_launch(self.launches[-1])


def packed(program: Program, params: Any) -> bytes:
    """The parameter block: `params` points to each parameter's value."""
    block = bytearray(program.kernel.param_bytes)
    for number, param in enumerate(program.kernel.params):
        block[param.offset : param.offset + param.size] = ctypes.string_at(params[number], param.size)
    return bytes(block)


# ---- the driver library's other half ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A function of a module that the driver has loaded."""

    name: str
    text: str


_simulators: list[Simulator] = []  # of blocks that are open; the innermost one runs what is launched
_handles = itertools.count(1)
_modules: dict[int, str] = {}
_kernels: dict[int, Kernel] = {}


def _load(image: bytes) -> int:
    text = image.decode(errors="replace")
    if ".entry" not in text:
        libcuda.load().softgpu_reason(b"device kernel image is invalid: it is no PTX")
        return -libcuda.INVALID_IMAGE
    handle = next(_handles)
    _modules[handle] = text
    return handle


def _find(module: int, name: bytes) -> int:
    if f".entry {name.decode()}(" not in _modules[module]:
        libcuda.load().softgpu_reason(b"named symbol not found: " + name)
        return -libcuda.NOT_FOUND
    handle = next(_handles)
    _kernels[handle] = Kernel(name.decode(), _modules[module])
    return handle


def _launch(shape: Any, params: Any) -> int:
    simulator = _simulators[-1]
    try:
        simulator.execute(_kernels[shape[0].function], shape[0], params)
    except BaseException as error:  # Triton raises one of its own, in place of which `Launcher` raises this
        simulator.error = error
        libcuda.load().softgpu_reason(f"{type(error).__name__}: {error}".encode())
        return libcuda.LAUNCH_FAILED
    return libcuda.SUCCESS


_callbacks = libcuda.LOAD(_load), libcuda.FIND(_find), libcuda.LAUNCH(_launch)


class Launcher(CudaLauncher):
    """Triton's launcher, which also says which memory the launch may touch."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        self.names = list(src.signature)

    def __call__(self, grid_x: int, grid_y: int, grid_z: int, stream: int, function: int, *args: Any) -> None:
        simulator = _simulators[-1]
        arguments = args[len(args) - len(self.names) :]
        given = [pair for name, value in zip(self.names, arguments) for pair in tensors(str(name), value)]
        scratch: list[tuple[str, torch.Tensor]] = []
        libcuda.load().softgpu_use(triton.runtime.driver.active.get_current_device())
        with _noted_scratch(scratch, lambda: self._allow(simulator, given, scratch)):
            self._allow(simulator, given, scratch)
            try:
                super().__call__(grid_x, grid_y, grid_z, stream, function, *args)
            except RuntimeError:
                error, simulator.error = simulator.error, None
                if error is None:
                    raise
                raise error from None

    @staticmethod
    def _allow(simulator: Simulator, given: Sequence[Any], scratch: Sequence[Any]) -> None:
        simulator.allowed = simulator.storages.allow([*given, *scratch])


@contextlib.contextmanager
def _noted_scratch(noted: list[tuple[str, torch.Tensor]], changed: Callable[[], None]) -> Iterator[None]:
    """Inside, what the kernels' scratch allocators return is noted."""

    def noting(allocate: Any) -> Any:
        def allocated(size: int, alignment: int, stream: int | None) -> Any:
            buffer = allocate(size + alignment, alignment, stream)
            if isinstance(buffer, torch.Tensor):
                noted.append(("scratch", buffer))
                changed()
                buffer = buffer[-buffer.data_ptr() % alignment :]  # a GPU's are aligned to 512 bytes, a CPU's to 64
            return buffer

        return allocated

    allocators = _allocation._allocator, _allocation._profile_allocator
    saved = [allocator.get() for allocator in allocators]
    for allocator, original in zip(allocators, saved):
        allocator.set(noting(original))
    try:
        yield
    finally:
        for allocator, original in zip(allocators, saved):
            allocator.set(original)


@functools.cache
def _utilities() -> CudaUtils:
    """Triton's extension module. Once: launchers and tensor maps must be of the same."""
    with libcuda.found_by_triton():
        return CudaUtils()


class Driver(CudaDriver):
    """Triton's CUDA driver, with answers of its own about the current device.

    target  says which GPU that is
    """

    def __init__(self, target: Callable[[], _runtime.Target]) -> None:
        self.utils = _utilities()
        self.launcher_cls = Launcher
        self.target = target
        self.get_current_stream = lambda device=None: 0
        self.set_current_device = lambda device: None

    def get_current_device(self) -> int:
        target = self.target()
        return libcuda.device(target.capability, target.num_sms)

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.target().capability, 10)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.target().capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("softgpu: the simulated GPU keeps no time")


# ---- entering --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def attached(simulator: Simulator, driver: Driver) -> Iterator[None]:
    """Inside, Triton compiles for `driver`'s device and launches on `simulator`."""
    active = triton.runtime.driver
    with contextlib.ExitStack() as undo:

        def patch(owner: Any, name: str, value: Any) -> None:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        patch(CUDABackend, "make_cubin", lambda backend, text, *_: text.encode())
        patch(CUDABackend, "hash", lambda backend: f"softgpu-{backend.target.arch}")  # of Triton's key in its cache
        patch(active, "_active", driver)
        if not _simulators:
            libcuda.load().softgpu_attach(*_callbacks)
            undo.callback(libcuda.load().softgpu_attach, None, None, None)
        _simulators.append(simulator)
        undo.callback(_simulators.remove, simulator)
        yield


@contextlib.contextmanager
def simulate(
    capability: int = 80, num_sms: int = 4, settings: Settings = DEFAULTS, poison: bool = True
) -> Iterator[Simulator]:
    """Inside the block, kernels on CPU tensors are compiled for sm_<capability> and executed by the machine.

    Args:
        capability: 80, 90, ...; a test that pretends another GPU inside (`_runtime.pretend`) gets that one.
        num_sms: multiprocessors, of which persistent kernels make their grids. `settings.num_sms` follows it.
        poison: fill fresh memory with NaN and report reads of it.

    Raises:
        RuntimeError: this process has a real GPU, whose driver could not be told from the simulated one.
    """
    if torch.cuda.is_available():
        raise RuntimeError("simulate: this process has a CUDA GPU; set CUDA_VISIBLE_DEVICES= (nothing) to simulate one")
    target = _runtime.Target("cuda", f"sm_{capability}", num_sms)
    simulator = Simulator(replace(settings, num_sms=num_sms))
    with contextlib.ExitStack() as undo:
        undo.enter_context(_runtime.pretend(target))
        undo.callback(setattr, _runtime, "interpreting", _runtime.interpreting)
        undo.callback(setattr, _runtime, "simulating", _runtime.simulating)
        _runtime.interpreting = _runtime.simulating = True  # CPU tensors are let through
        undo.enter_context(attached(simulator, Driver(lambda: _pretended(target))))
        if poison:
            undo.enter_context(poisoned_memory())
        yield simulator


def _pretended(target: _runtime.Target) -> _runtime.Target:
    pretended = _runtime._pretended or target
    if pretended.backend != "cuda":
        raise RuntimeError(f"softgpu: {pretended.arch} is not an NVIDIA GPU")
    return pretended
