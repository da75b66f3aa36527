"""Compile kernels for a GPU that is not there, exactly as a launch would.

    with offline("sm_90") as compiled:
        layer_norm.launch.forward(torch.empty(4096, 768, dtype=torch.bfloat16, device="meta"), ...)
    compiled[0].kernel.asm["cubin"]

Inside the block the launch layer runs on meta tensors: it picks tiles for the named GPU, and each `kernel[grid](...)`
compiles through Triton's own binder (alignment, ==1, descriptors and all) instead of running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from fastgpt.kernels import _runtime


@dataclass(frozen=True)
class Compiled:
    """One launch: the compiled kernel, its grid, and the constexpr and launch options it was asked for."""

    name: str
    kernel: Any  # triton.compiler.CompiledKernel
    grid: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def offline(arch: str) -> Iterator[list[Compiled]]:
    """Compile every Triton launch inside the block for `arch` ("sm_90", "gfx942", ...); yields the growing list."""
    target = _runtime.KNOWN_TARGETS[arch]
    compiled: list[Compiled] = []

    def run(jit: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original_run(jit, *args, grid=grid, warmup=True, **kwargs)
        bound = dict(zip(jit.arg_names, args), **kwargs)
        shape = grid(bound) if callable(grid) else grid
        options = {k: v for k, v in kwargs.items() if isinstance(v, int | bool | str | float)}
        compiled.append(Compiled(jit.fn.__name__, kernel, tuple(int(g) for g in shape), options))
        return kernel

    active = triton.runtime.driver
    saved_driver, original_run = active._active, JITFunction.run
    active.set_active(_OfflineDriver(target))
    JITFunction.run = run
    try:
        with _runtime.pretend(target):
            yield compiled
    finally:
        JITFunction.run = original_run
        active._active = saved_driver


class _OfflineDriver(DriverBase):
    """Answers what Triton asks of a driver before a launch; it cannot launch."""

    def __init__(self, target: _runtime.Target) -> None:
        self.target = target
        self.utils = self

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        if self.target.backend == "hip":
            return GPUTarget("hip", self.target.arch, 64)
        return GPUTarget("cuda", self.target.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_current_device(self) -> str:
        return self.target.arch  # Triton keeps one cache of compiled kernels per device

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_device_properties(self, device: Any) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": self.target.num_sms, "warpSize": 32}

    def get_benchmarker(self) -> Any:
        raise RuntimeError("offline compilation cannot time kernels")
