"""Builds and loads the CUDA driver for machines without a GPU (libcuda.c), and says what it knows of devices.

Triton's launchers are linked against libcuda.so.1 by that name, and open it by that name: this one must be in the
process before a real one. Nothing here imports torch or triton: `scripts/gpu/fake_cuda.py` loads it before them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
VARIABLE = "TRITON_LIBCUDA_PATH"  # where Triton looks for the library when it links


class NoCompiler(RuntimeError):
    """There is no C or C++ compiler to build the driver, or the machine, with."""


class Shape(ctypes.Structure):
    """A launch, as libcuda.c hands it over."""

    _fields_ = [
        ("function", ctypes.c_longlong), ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3), ("shared", ctypes.c_uint), ("cooperative", ctypes.c_int),
    ]  # fmt: skip


LOAD = ctypes.CFUNCTYPE(ctypes.c_longlong, ctypes.c_char_p)
FIND = ctypes.CFUNCTYPE(ctypes.c_longlong, ctypes.c_longlong, ctypes.c_char_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Shape), ctypes.POINTER(ctypes.c_void_p))

# CUresult
SUCCESS, INVALID_VALUE, INVALID_IMAGE, NOT_FOUND, LAUNCH_FAILED = 0, 1, 200, 500, 719


def folder() -> Path:
    """Where the built library is; this user's, so that all processes share it."""
    return Path(tempfile.gettempdir()) / f"fastgpt-fake-cuda-{os.getuid()}"


@functools.cache
def load() -> ctypes.CDLL:
    """The library, built if need be, and visible to what is linked against libcuda.so.1."""
    library = folder() / "libcuda.so.1"
    sources = (HERE / "libcuda.c", HERE / "machine" / "tensor_map.h")
    if not library.exists() or library.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        _build(sources[0], library)
    driver = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    driver.softgpu_launches.restype = driver.softgpu_tensor_maps.restype = ctypes.c_long
    driver.softgpu_reason.argtypes = [ctypes.c_char_p]
    return driver


def _build(source: Path, library: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NoCompiler("the CUDA driver for machines without a GPU is a C file, and there is no gcc: apt install gcc")
    triton = importlib.util.find_spec("triton")
    if triton is None or not triton.submodule_search_locations:
        raise RuntimeError("the CUDA driver for machines without a GPU needs triton's cuda.h: pip install triton")
    headers = Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "include"
    library.parent.mkdir(exist_ok=True)
    fresh = library.with_name(f"build-{os.getpid()}")
    command = [
        compiler, "-shared", "-fPIC", "-O1", "-Wall", f"-I{headers}", "-Wl,-soname,libcuda.so.1", "-o", fresh, source,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    fresh.replace(library)


@contextlib.contextmanager
def found_by_triton() -> Iterator[None]:
    """Inside, Triton links against this library."""
    load()  # what is linked is loaded, too
    saved = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder())
    try:
        yield
    finally:
        if saved is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = saved


@functools.cache
def device(capability: int, num_sms: int) -> int:
    """The number of a device of this kind."""
    if (capability, num_sms) == (90, 132):
        return 0
    device.next = getattr(device, "next", 0) + 1
    if not load().softgpu_device(device.next, capability, num_sms):
        raise RuntimeError(f"softgpu: no more than {device.next - 1} kinds of GPU can be simulated in one process")
    return device.next
