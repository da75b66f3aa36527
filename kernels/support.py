"""The one judge: may the kernels run here, on tensors of this kind, and why not.

An answer is a reason, "what stands in the way; the way out", or None where nothing does. It is asked by everything that
has another way to go: `scaled_dot_product_attention`, the modules, `fastgpt.implementations`. The public functions of
the kernels have none: `check_launchable` raises.

    why_not(tensors)                  of a call: all of this
    kinds_why_not(device, dtypes)     before there are tensors: forward mode, dtypes, the machine
    machine_why_not(device)           Triton, and a GPU that is young enough
    dtype_why_not, head_dim_why_not, dropout_why_not

What a kernel asks of shapes and masks is said where it is called; whether a module may read its children's weights, in
fastgpt/nn/_exact.py. Nothing here imports triton, so that `import fastgpt` works and stays quick where there is none.
"""

from __future__ import annotations

import functools
import importlib.util
import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _runtime

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
MIN_CAPABILITY = (7, 5)  # Turing: the oldest GPU with the tensor-core instructions that Triton 3.6 still emits

DIFFERENT_DTYPES = "the tensors have different dtypes; convert them"
DISTRIBUTED = "a DTensor lies on several devices, and a kernel runs on one; call it on .to_local() or .full_tensor()"
NO_FORWARD_MODE = "the kernels have no forward-mode derivative (jvp, jacfwd); the fallback has"


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _young_enough(index: int | None) -> bool:
    """Whether Triton takes this GPU (None: the current one). Without any, CUDA tensors hold no data: nothing runs."""
    if torch.version.hip or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(index) >= MIN_CAPABILITY


@_runtime.constant_when_traced
def machine_why_not(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`; None if they can."""
    if not has_triton():
        return "triton is not installed; `pip install triton` (Linux), or choose another implementation"
    match device.type:
        case "cuda":
            if _young_enough(device.index):
                return None
            name = torch.cuda.get_device_name(device)
            return (
                f"{name} is older than sm_75, the oldest GPU that these kernels support; use the torch implementation"
            )
        case "cpu" if _runtime.is_interpreting():
            return None
        case "meta" if _runtime._pretended is not None:
            return None
    return (
        f"tensors are on {device.type!r}, and Triton kernels run on CUDA GPUs; move them to a GPU, choose the torch "
        "implementation, or (slow, for tests and teaching) run the CPU interpreter: set TRITON_INTERPRET=1 or use "
        "`with fastgpt.kernels.interpret():`"
    )


def dtype_why_not(dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take tensors of this dtype; None if they can."""
    if dtype in KERNEL_DTYPES:
        return None
    return f"the kernels take float32, float16 and bfloat16, not {str(dtype).removeprefix('torch.')}; convert by .to()"


def kinds_why_not(device: torch.device, *dtypes: torch.dtype, alike: bool = True) -> str | None:
    """As `why_not`, before there are tensors: why the kernels could not take them on `device`, of these dtypes."""
    if forward_mode_is_on():
        return NO_FORWARD_MODE
    for dtype in dtypes:
        if dtype not in KERNEL_DTYPES:
            return dtype_why_not(dtype)
        if alike and dtype is not dtypes[0] and not (device.type != "meta" and torch.is_autocast_enabled(device.type)):
            return DIFFERENT_DTYPES
    return None if device.type == "meta" else machine_why_not(device)  # shapes only, as `why_not`


def why_not(first: Tensor, *others: Tensor | None, alike: bool = True) -> str | None:
    """Why the kernels cannot take these tensors; None if they can.

    alike: they must agree in device and, where autocast does not see to it, in dtype.
    """
    if forward_mode_is_on():
        return NO_FORWARD_MODE
    device, dtype = first.device, first.dtype
    for x in (first, *others):
        if x is None:
            continue
        if type(x) not in _UNDIVIDED and is_distributed(x):
            return DISTRIBUTED
        if x.is_nested:
            return "nested tensors are not supported; flash_attention takes packed documents by cu_seqlens"
        if x.layout is not torch.strided:
            return "only dense tensors are supported; call .to_dense()"
        if x.dtype not in KERNEL_DTYPES:
            return dtype_why_not(x.dtype)
        if alike and x is not first:
            if x.device != device:
                return "the tensors are on different devices; move them together"
            if x.dtype is not dtype and _runtime.autocast_dtype(first) is None:
                return DIFFERENT_DTYPES
    if not torch.compiler.is_compiling():
        if first.is_cuda and has_triton() and _young_enough(first.get_device()):
            return None  # the common case must not pay for the explanations
        if isinstance(first, torch._subclasses.FakeTensor):
            return None
    return None if first.is_meta else machine_why_not(device)  # shapes only: real tensors are checked by themselves


_UNDIVIDED = (Tensor, torch.nn.Parameter)  # the common case, which is told at once


def is_distributed(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor (torch.distributed.tensor), a part of which lies here."""
    distributed = sys.modules.get("torch.distributed.tensor")  # where nobody has imported it, there is none
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def head_dim_why_not(head_dim: int) -> str | None:
    """Why attention's kernels cannot take heads of this size; None if they can."""
    if 1 <= head_dim <= MAX_HEAD_DIM:
        return None
    return (
        f"head_dim {head_dim} is over the kernels' limit of {MAX_HEAD_DIM}; use more heads"
        if head_dim
        else "head_dim is 0"
    )


def dropout_why_not(dropout_p: float) -> str | None:
    """Why the kernels cannot drop with this probability; None if they can."""
    return None if 0.0 <= dropout_p < 1.0 else "dropout_p is not in [0, 1)"


def check_launchable(function: str, **tensors: Tensor | None) -> None:
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
    if torch.compiler.is_compiling():
        return  # shapes only: the launch itself, later, checks real tensors. Nor can dynamo look into what comes next
    if first.is_cuda and _young_enough(first.get_device()) and has_triton():
        return  # the common case must not pay for the explanations
    if isinstance(first, torch._subclasses.FakeTensor) or first.is_meta:
        return  # shapes only, again
    reason = machine_why_not(first.device)
    if reason is not None:
        raise RuntimeError(f"{function}: {reason}")


def can_be_read(tensor: Tensor) -> bool:
    """True if Python may look at `tensor`'s values now (on a GPU: by waiting).

    It must hold data, and neither torch.compile, export, make_fx (by which torch.func.linearize traces), a mode of fake
    tensors nor one of torch.func's transforms may stand between.
    """
    return (
        not torch.compiler.is_compiling()
        and all(torch._C._get_dispatch_mode(mode) is None for mode in _TRACING_MODES)
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


_TRACING_MODES = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL"))


def forward_mode_is_on() -> bool:
    """True inside of torch.func.jvp, jacfwd and `forward_ad.dual_level`: kernels would lose tangents."""
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
