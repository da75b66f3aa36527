"""What the launch layer asks about the machine: which GPU is this, on which device to launch, in which precision."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

# torch's own. What has its name in torch.nn.functional may be ours by now, or anybody's: it is made to be swapped.
torch_attention = torch._C._nn.scaled_dot_product_attention


_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_when_traced(function: _Function) -> _Function:
    """Decorator: torch.compile calls `function` while it traces, and keeps the answer, instead of looking inside.

    It is torch.compiler.assume_constant_result without its import of torch._dynamo, which would cost every
    `import fastgpt` half a second and load triton.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is >= n, for n >= 1: sides of tiles are nothing else."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Target:
    """The GPU that a kernel is compiled for, as far as tile choice needs to know it.

    backend  "cuda" or "hip"
    arch     "sm_90", "gfx942", ...
    num_sms  streaming multiprocessors (compute units on AMD)
    """

    backend: str
    arch: str
    num_sms: int

    @functools.cached_property
    def capability(self) -> int:
        """80, 90, 100, ... on NVIDIA; 0 on AMD, so that `capability >= 90` reads as "has TMA"."""
        return int(self.arch.removeprefix("sm_")) if self.backend == "cuda" else 0

    @property
    def has_tma(self) -> bool:
        return self.capability >= 90


# num_sms of the largest common board of each arch (vendors' data sheets); only offline compilation reads them.
KNOWN_TARGETS = {
    t.arch: t
    for t in (
        Target("cuda", "sm_75", 72),
        Target("cuda", "sm_80", 108),
        Target("cuda", "sm_86", 84),
        Target("cuda", "sm_89", 142),
        Target("cuda", "sm_90", 132),
        Target("cuda", "sm_100", 148),
        Target("cuda", "sm_120", 188),
        Target("hip", "gfx942", 304),
        Target("hip", "gfx950", 256),
    )
}

# What the interpreter pretends to be: small enough that persistent kernels loop, old enough to take the pointer path.
INTERPRETED_TARGET = Target("cuda", "sm_80", 4)

_pretended: Target | None = None


@contextlib.contextmanager
def pretend(target: Target) -> Iterator[None]:
    """Make `target_of` answer `target`, for offline compilation and for the interpreter's tests of other paths."""
    global _pretended
    saved, _pretended = _pretended, target
    try:
        yield
    finally:
        _pretended = saved


@functools.cache
def _device_target(index: int) -> Target:
    props = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Target("hip", props.gcnArchName.split(":")[0], props.multi_processor_count)
    return Target("cuda", f"sm_{props.major}{props.minor}", props.multi_processor_count)


def target_of(tensor: torch.Tensor) -> Target:
    """The target that kernels on `tensor`'s device are compiled for."""
    if _pretended is not None:
        return _pretended
    if tensor.is_cuda:
        return _device_target(tensor.get_device())
    return INTERPRETED_TARGET


def is_interpreting() -> bool:
    """True inside `fastgpt.kernels.interpret()`, or in a process started with TRITON_INTERPRET=1."""
    return interpreting or INTERPRETED_PROCESS


interpreting = False  # what `interpret()` sets
simulating = False  # what `benchmarks.softgpu.driver.simulate()` sets beside it: CPU tensors, and compiled kernels
INTERPRETED_PROCESS = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    """The dtype that torch.autocast asks of matrix products on `tensor`'s device; None outside such a region."""
    device_type = tensor.device.type
    if device_type == "meta":  # torch knows no autocast there; memory planning says what it wants
        return paper_autocast.get()
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def dot_precision(tensor: torch.Tensor) -> str:
    """How kernels multiply `tensor` with another of its dtype: tl.dot's input_precision, "tf32" or "ieee".

    float32 follows torch's own switch, by the question that cuBLAS is configured by: it knows what was set by either
    API (allow_tf32, set_float32_matmul_precision; fp32_precision of CUDA's matmul or of everything), and never raises,
    as `allow_tf32` does once both were used. TF32 needs sm_80: torch ignores the switch on older GPUs, and so do we;
    on AMD it asks for an environment variable too, and we keep to float32.
    """
    if tensor.dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    return "tf32" if target_of(tensor).capability >= 80 else "ieee"


paper_autocast: contextvars.ContextVar[torch.dtype | None] = contextvars.ContextVar("paper_autocast", default=None)


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on the device of the inputs, not on the current one."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
