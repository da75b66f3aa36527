"""Triton's launches, executed on the machine instead of a GPU.

    with simulate(capability=90, num_sms=4, settings=Settings(schedule="random", seed=1)) as gpu:
        kernel[grid](cpu_tensor, ...)
    gpu.findings, gpu.launches

Everything between `kernel[grid](...)` and the GPU is Triton's own: binder, specialisation, cache, CudaDriver, launcher,
tensor maps. Below them lies a libcuda of ours (libcuda.c), which hands modules and launches back to this file. Only
ptxas is left out: what is loaded is the PTX, as a real driver would take it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch.multiprocessing.reductions import StorageWeakRef
from triton.backends.nvidia import driver as nvidia
from triton.runtime.jit import JITFunction

from fastgpt.kernels import _runtime

from . import engine
from .engine import Finding, Memory, Program, Result, Settings

SOURCE = Path(__file__).with_name("libcuda.c")
INVALID_IMAGE, NOT_FOUND, LAUNCH_FAILED = 200, 500, 719  # CUresult
POISONED = 64 << 20  # bytes: what is larger keeps its pages untouched, and counts as written


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel's name in the PTX, its grid, what came of it."""

    kernel: str
    grid: tuple[int, int, int]
    result: Result


@dataclass
class Simulation:
    """A GPU that is not there: what was launched on it and what was found.

    on_ptx(kernel, text) may edit what a launch runs (planted faults).
    """

    capability: int
    num_sms: int
    settings: Settings
    on_ptx: Callable[[str, str], str] | None = None
    launches: list[Launch] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    fresh: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)  # torch.empty's: address -> allocation
    allowed: list[int] = field(default_factory=list)  # of the launch under way
    error: BaseException | None = None  # what the launch under way raised, below Triton's C code

    @property
    def findings(self) -> list[Finding]:
        return [finding for launch in self.launches for finding in launch.result.findings]


_active: list[Simulation] = []
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def simulate(
    capability: int = 80,
    num_sms: int = 4,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> Iterator[Simulation]:
    """Inside the block Triton's kernels, launched on CPU tensors, run on a GPU of this compute capability.

    fastgpt's operators take CPU tensors there, and choose tiles for a GPU with `num_sms` multiprocessors. What
    torch.empty and its kin return is filled with 0xff bytes (NaN), and to read it unwritten is a finding.

    Raises:
        engine.Unsupported: (at a launch) a kernel has an instruction that is not known.
        engine.NoCompiler: there is no C++ compiler.
    """
    target = _runtime.Target("cuda", f"sm_{capability}", num_sms)
    gpu = Simulation(capability, num_sms, settings)
    active = triton.runtime.driver
    with _one_at_a_time, contextlib.ExitStack() as stack:
        _library()
        stack.enter_context(mock.patch.dict(os.environ, {"TRITON_LIBCUDA_PATH": str(_library_folder())}))
        # Its compiled kernels are PTX: nothing that a real GPU should find.
        stack.enter_context(triton.knobs.cache.scope())
        triton.knobs.cache.dir = str(engine.cache_folder() / "triton")
        saved = active._active
        stack.callback(lambda: setattr(active, "_active", saved))
        active.set_active(_Driver())
        for owner, name, value in _patches(gpu):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(mock.patch.object(_runtime, "interpreting", True))
        stack.enter_context(_runtime.pretend(target))
        _active.append(gpu)
        stack.callback(_active.pop)
        yield gpu


# ---- the driver that Triton sees -------------------------------------------------------------------------------------


class _Driver(nvidia.CudaDriver):
    """Triton's own, told which GPU it is on without asking torch.cuda."""

    def __init__(self) -> None:
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = nvidia.CudaLauncher

    def get_current_device(self) -> int:
        gpu, target = _active[-1], _runtime._pretended  # a test may pretend another GPU inside the block
        if target is not None and target.backend != "cuda":
            raise ValueError(f"softgpu: it has no {target.arch}, only NVIDIA's GPUs")
        return _ordinal(target.capability if target else gpu.capability, target.num_sms if target else gpu.num_sms)

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(_devices[self.get_current_device() if device is None else device][0], 10)

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def set_current_device(self, device: int) -> None: ...

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


_devices: list[tuple[int, int]] = [(0, 0)]  # ordinal -> capability, multiprocessors; the first one is libcuda.c's own


def _ordinal(capability: int, num_sms: int) -> int:
    """The device of this kind. Triton keeps compiled kernels by its number."""
    if (capability, num_sms) not in _devices:
        if not _library().softgpu_device(len(_devices), capability, num_sms):
            raise RuntimeError("softgpu: one process has simulated more than 63 kinds of GPU")
        _devices.append((capability, num_sms))
    return _devices.index((capability, num_sms))


def _patches(gpu: Simulation) -> Iterator[tuple[Any, str, Any]]:
    """(object, attribute, what it is inside the block)"""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import _allocation

    run = JITFunction.run

    def launched(jit: JITFunction, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("warmup"):
            return run(jit, *args, **kwargs)
        gpu.error, temporary = None, []
        gpu.allowed = []
        named = {**dict(zip(jit.arg_names, args)), **kwargs}
        try:
            for name, tensor in _tensors(named):
                _allow(gpu, name, tensor, temporary)
            return run(jit, *args, **kwargs)
        except Exception:
            if gpu.error is not None:
                raise gpu.error from None
            raise
        finally:
            for allocation in temporary:
                gpu.memory.forget(allocation)

    def scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        buffer = torch.zeros(size + alignment, dtype=torch.uint8)
        buffer = buffer[-buffer.data_ptr() % alignment :][:size]
        gpu.allowed.append(gpu.memory.register(buffer.data_ptr(), size, "scratch", False))
        kept.append(buffer)
        return buffer

    kept: list[torch.Tensor] = []
    yield JITFunction, "run", launched
    yield CUDABackend, "make_cubin", lambda self, source, *_, **__: source.encode()
    yield _allocation, "_allocator", _Always(scratch)
    for owner, name in (
        (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):  # fmt: skip
        yield owner, name, _poisoning(gpu, getattr(owner, name))


class _Always:
    """In the place of Triton's context variable of the allocator."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)


# ---- memory ----------------------------------------------------------------------------------------------------------


def _poisoning(gpu: Simulation, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        if type(tensor) is torch.Tensor and tensor.device.type == "cpu" and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if 0 < storage.nbytes() <= POISONED:
                ctypes.memset(storage.data_ptr(), 0xFF, storage.nbytes())
                _forget_expired(gpu)
                allocation = gpu.memory.register(storage.data_ptr(), storage.nbytes(), "fresh memory", "poison")
                gpu.fresh[storage.data_ptr()] = StorageWeakRef(storage), allocation
        return tensor

    return made


def _forget_expired(gpu: Simulation) -> None:
    for address, (reference, allocation) in list(gpu.fresh.items()):
        if reference.expired():
            gpu.memory.forget(allocation)
            del gpu.fresh[address]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors among a launch's arguments: also in tuples, NamedTuples and tensor descriptors."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, key)
    elif isinstance(value, (tuple, list)):
        for key, item in zip(getattr(value, "_fields", map(str, range(len(value)))), value):
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(base := getattr(value, "base", None), torch.Tensor):
        yield name, base


def _allow(gpu: Simulation, name: str, tensor: torch.Tensor, temporary: list[int]) -> None:
    """Let the launch under way touch the tensor's storage."""
    storage = tensor.untyped_storage()
    _forget_expired(gpu)
    if storage.data_ptr() in gpu.fresh:
        gpu.allowed.append(gpu.fresh[storage.data_ptr()][1])
    elif storage.nbytes() and storage.data_ptr():
        allocation = gpu.memory.register(storage.data_ptr(), storage.nbytes(), name, False)
        temporary.append(allocation)
        gpu.allowed.append(allocation)


# ---- libcuda ---------------------------------------------------------------------------------------------------------


class _Shape(ctypes.Structure):
    """libcuda.c: Shape."""

    _fields_ = [
        ("function", ctypes.c_longlong),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("cooperative", ctypes.c_int),
    ]


@functools.cache
def _library_folder() -> Path:
    """Where libcuda.so.1 of the present sources is; built if need be."""
    header = Path(nvidia.include_dirs[0])
    text = SOURCE.read_bytes() + (SOURCE.parent / "machine" / "tensor_map.h").read_bytes()
    folder = engine.cache_folder() / f"libcuda-{hashlib.sha256(text).hexdigest()[:24]}"
    if not (folder / "libcuda.so.1").exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"part-{os.getpid()}"
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            "-O1",
            "-w",
            f"-I{header}",
            "-Wl,-soname,libcuda.so.1",
            "-o",
            part,
            SOURCE,
        ]
        try:
            subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise engine.NoCompiler("softgpu: there is no gcc to build its libcuda with: apt install gcc") from None
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"softgpu: its libcuda does not compile:\n{error.stderr[-4000:]}") from None
        part.replace(folder / "libcuda.so.1")
    return folder


@functools.cache
def _library() -> ctypes.CDLL:
    """Our libcuda, loaded for all, its modules and launches handed to this file."""
    library = ctypes.CDLL(str(_library_folder() / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    load = ctypes.CFUNCTYPE(ctypes.c_longlong, ctypes.c_char_p)(_load)
    find = ctypes.CFUNCTYPE(ctypes.c_longlong, ctypes.c_longlong, ctypes.c_char_p)(_find)
    run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Shape), ctypes.POINTER(ctypes.c_void_p))(_run)
    library.callbacks = load, find, run  # kept as long as the library
    library.softgpu_attach(load, find, run)
    return library


_modules: list[str] = [""]  # handle -> PTX
_functions: list[tuple[str, str]] = [("", "")]  # handle -> PTX, entry


def _refused(code: int, reason: str) -> int:
    _library().softgpu_reason(reason.encode())
    return -code


def _load(image: bytes) -> int:
    if not image.lstrip().startswith((b"//", b".version")):
        return _refused(INVALID_IMAGE, "the image is no PTX text")
    _modules.append(image.decode())
    return len(_modules) - 1


def _find(module: int, name: bytes) -> int:
    text, entry = _modules[module], name.decode()
    if f".entry {entry}(" not in text:
        return _refused(NOT_FOUND, f"the module has no kernel {entry}")
    _functions.append((text, entry))
    return len(_functions) - 1


def _run(shape: Any, params: Any) -> int:
    """A launch; below Triton's C code no exception can pass, so that it is left to `launched`."""
    gpu = _active[-1]
    try:
        text, entry = _functions[shape.contents.function]
        if gpu.on_ptx is not None:
            text = gpu.on_ptx(entry, text)
        program = engine.load(text, entry)
        grid = tuple(shape.contents.grid)
        result = engine.launch(
            program, grid, _packed(program, params), shape.contents.shared, gpu.memory, gpu.allowed, gpu.settings
        )
        gpu.launches.append(Launch(entry, grid, result))
    except BaseException as error:
        gpu.error = error
        _library().softgpu_reason(f"{type(error).__name__}: {error}".encode())
        return LAUNCH_FAILED
    return 0


def _packed(program: Program, params: Any) -> bytes:
    """The parameter block: each value at its place, by the kernel's own declaration."""
    block = (ctypes.c_char * program.kernel.param_bytes)()
    for k, param in enumerate(program.kernel.params):
        ctypes.memmove(ctypes.addressof(block) + param.offset, params[k], param.size)
    return bytes(block)
