"""What the launch layer asks about the machine: is there a Triton, which GPU is this, may this tensor be launched on.

Nothing here imports triton until it is asked to, so that `import fastgpt` works and stays quick where there is none.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch.autograd import forward_ad

# torch's own. What has its name in torch.nn.functional may be ours by now, or anybody's: it is made to be swapped.
torch_attention = torch._C._nn.scaled_dot_product_attention

MIN_CAPABILITY = (7, 5)  # Turing: the oldest GPU with the tensor-core instructions that Triton 3.6 still emits


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

    @property
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


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def is_interpreting() -> bool:
    """True inside `fastgpt.kernels.interpret()`, or in a process started with TRITON_INTERPRET=1."""
    return interpreting or INTERPRETED_PROCESS


interpreting = False  # what `interpret()` sets
INTERPRETED_PROCESS = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def why_not(tensor: torch.Tensor) -> str | None:
    """Why Triton kernels cannot run on `tensor`'s device, with the way out; None if they can."""
    if not has_triton():
        return "triton is not installed; `pip install triton` (Linux), or choose another implementation"
    if tensor.is_cuda:
        if not torch.version.hip and not _capability_ok(tensor.get_device()):
            name = torch.cuda.get_device_name(tensor.device)
            return (
                f"{name} is older than sm_75, the oldest GPU that these kernels support; use the torch implementation"
            )
        return None
    if tensor.device.type == "meta" and _pretended is not None:
        return None
    if tensor.device.type == "cpu" and is_interpreting():
        return None
    return (
        f"tensors are on {tensor.device.type!r}, and Triton kernels run on CUDA GPUs; move them to a GPU, choose the "
        "torch implementation, or (slow, for tests and teaching) run the CPU interpreter: set TRITON_INTERPRET=1 or "
        "use `with fastgpt.kernels.interpret():`"
    )


def check_dense(function: str, required: int, **tensors: torch.Tensor | None) -> None:
    """Raise TypeError unless every argument is a tensor whose elements lie in memory one by one.

    The first `required` of them must be there; the others may be None.
    """
    for number, (name, tensor) in enumerate(tensors.items()):
        if tensor is None and number >= required:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise no_tensor(function, name, tensor)
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").removeprefix("_")
            way_out = "pad or pack" if tensor.is_nested else "call .to_dense() on"
            raise TypeError(f"{function}: {name} is a {kind} tensor, and the kernels take dense ones; {way_out} it")


def check_tensors(function: str, required: int, **tensors: torch.Tensor | None) -> None:
    """Raise TypeError unless every argument is a tensor, of whatever kind; all but the first `required` may be None."""
    for number, (name, tensor) in enumerate(tensors.items()):
        if not isinstance(tensor, torch.Tensor) and (tensor is not None or number < required):
            raise no_tensor(function, name, tensor)


def no_tensor(function: str, name: str, value: object) -> TypeError:
    """The error for an argument that should be a tensor."""
    kind, module = type(value).__name__, type(value).__module__.split(".")[0]
    if module == "numpy":
        kind, way_out = f"numpy.{kind}", f"torch.from_numpy({name})" if kind == "ndarray" else f"torch.tensor({name})"
    elif isinstance(value, list | tuple | int | float | complex):
        way_out = f"torch.tensor({name})"
    else:
        way_out = "a tensor"
    return TypeError(f"{function}: {name} must be a torch.Tensor, got {kind}; pass {way_out}")


def check_numbers(function: str, **numbers: float | None) -> None:
    """Raise TypeError unless every argument is a real number, or None: a setting, of which no gradient is taken."""
    for name, number in numbers.items():
        if type(number) is float or type(number) is int or number is None:  # what would take longer to ask below
            continue
        if not isinstance(number, Real | torch.SymInt | torch.SymFloat):
            raise TypeError(f"{function}: {name} is {number!r}, expected a number; take a tensor's by .item()")


def check_sizes(function: str, name: str, sizes: int | Iterable[int]) -> tuple[int, ...]:
    """`sizes`, one or several, as a tuple. Raise TypeError unless they are integers (while tracing: symbolic ones)."""
    if isinstance(sizes, _SIZES):
        return (sizes,)
    several = tuple(sizes) if isinstance(sizes, Iterable) and not isinstance(sizes, torch.Tensor) else (None,)
    if not all(isinstance(size, _SIZES) for size in several):
        raise TypeError(f"{function}: {name} is {sizes!r}, expected an int or a sequence of ints; convert it")
    return several


_SIZES = (int, torch.SymInt, Integral)  # numpy's are of the last kind


def can_be_read(tensor: torch.Tensor) -> bool:
    """True if Python may look at `tensor`'s values now (on a GPU: by waiting).

    It must hold data, and neither torch.compile, export, make_fx (by which torch.func.linearize traces), a mode of fake
    tensors nor one of torch.func's transforms may stand between.
    """
    return (
        not torch.compiler.is_compiling()
        and all(torch._C._get_dispatch_mode(mode) is None for mode in _TRACING_MODES)
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


_TRACING_MODES = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL"))


def forward_mode_is_on() -> bool:
    """True inside of torch.func.jvp, jacfwd and `forward_ad.dual_level`: kernels would lose tangents."""
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()


def check_launchable(function: str, **tensors: torch.Tensor | None) -> None:
    """Raise unless all `tensors` live on one device on which Triton kernels run.

    Raises:
        ValueError: tensors on different devices; the message names both arguments.
        RuntimeError: no Triton, a CPU without the interpreter, or a GPU older than sm_75.
    """
    first_name, first = None, None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first_name, first = name, tensor
        elif tensor.device != first.device:
            raise ValueError(
                f"{function}: {name} is on {tensor.device} but {first_name} is on {first.device}; move them together"
            )
    assert first is not None
    # The common case, a CUDA tensor, must not pay for the explanations below.
    if first.is_cuda and not torch.version.hip and _capability_ok(first.get_device()) and has_triton():
        return
    if torch.compiler.is_compiling() or isinstance(first, torch._subclasses.FakeTensor) or first.is_meta:
        return  # shapes only: the launch itself, later, checks real tensors
    reason = why_not(first)
    if reason is not None:
        raise RuntimeError(f"{function}: {reason}")


@functools.cache
def _capability_ok(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= MIN_CAPABILITY


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


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Launch on the device of the inputs, not on the current one."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
