"""The one judge: may Triton kernels run on these tensors here and now, and why not.

Nothing here imports triton until it is asked to, so that `import fastgpt` works and stays quick where there is none.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch.autograd import forward_ad

from . import _runtime

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
MIN_CAPABILITY = (7, 5)  # Turing: the oldest GPU with the tensor-core instructions that Triton 3.6 still emits


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


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
    if tensor.device.type == "meta" and _runtime._pretended is not None:
        return None
    if tensor.device.type == "cpu" and _runtime.is_interpreting():
        return None
    return (
        f"tensors are on {tensor.device.type!r}, and Triton kernels run on CUDA GPUs; move them to a GPU, choose the "
        "torch implementation, or (slow, for tests and teaching) run the CPU interpreter: set TRITON_INTERPRET=1 or "
        "use `with fastgpt.kernels.interpret():`"
    )


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
