"""How many bytes a computation needs, counted without allocating any.

Everything runs on meta tensors, whose storages have a size and no memory. Our operators run their real launch code
there, with the launches themselves left out, so that workspaces count too and not only what is returned. What a GPU
adds on top is not counted: the CUDA context, library workspaces, and the allocator's rounding.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .config import GPTConfig
from .kernels import _library, _runtime


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of every tensor storage made inside the block: `live` now, `peak` so far.

    with PeakMemory() as memory:
        ...
    memory.peak

    With launch_code, our operators' own allocations count too; without it (fake tensors), only what they return.
    """

    def __init__(self, *, launch_code: bool = True) -> None:
        super().__init__()
        self.launch_code = launch_code
        self.live = self.peak = 0
        self._alive: set[int] = set()

    def track(self, *trees: Any) -> None:
        """Count these tensors' storages from now until they are freed (inputs made before the block)."""
        for leaf in tree_leaves(trees):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._alive:
                continue
            self._alive.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "fastgpt" and self.launch_code:
            with self:  # the launch function's own allocations are what we are after
                out = _library.launches[func._opname](*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        # A view of something older than this block is not made here.
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.track([t for t in tree_leaves(out) if isinstance(t, Tensor) and t.untyped_storage()._cdata not in old])
        return out


@contextlib.contextmanager
def on_paper(arch: str = "sm_90") -> Iterator[PeakMemory]:
    """Inside: new tensors are meta tensors, `arch` is the GPU, kernels are not launched, and memory is counted."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_runtime.pretend(_runtime.KNOWN_TARGETS[arch]))
        if _runtime.has_triton():
            from triton.runtime.interpreter import InterpretedFunction
            from triton.runtime.jit import JITFunction

            for kind in (JITFunction, InterpretedFunction):  # the second in a process of TRITON_INTERPRET=1
                stack.callback(setattr, kind, "run", kind.run)
                kind.run = lambda *args, **kwargs: None
        stack.enter_context(torch.device("meta"))
        stack.enter_context(_FlashSdpa())
        yield stack.enter_context(PeakMemory())


def peak_bytes(function: Callable[..., Tensor], inputs: list[Tensor], *, backward: bool = True) -> int:
    """Bytes that `function(*inputs)`, and its backward, need at their peak beyond the inputs themselves.

    `inputs` are meta tensors (or any others: only their shapes, dtypes and strides matter); those that require
    gradients get them.
    """
    with on_paper() as memory:
        leaves = [_to_meta(t) for t in inputs]
        memory.track(leaves)
        before = memory.peak = memory.live
        out = function(*leaves)
        if backward:
            wanted = [t for t in leaves if t.requires_grad]
            grads = torch.autograd.grad(out, wanted, torch.empty_like(out))
            del grads
        return memory.peak - before


def saved_bytes(function: Callable[..., Any], inputs: list[Tensor]) -> dict[str, int]:
    """Bytes that autograd keeps between forward and backward: {"inputs": of the arguments, "extra": of all else}."""
    with on_paper():
        leaves = [_to_meta(t) for t in inputs]
        own = {t.untyped_storage()._cdata for t in leaves}
        saved: dict[int, Tensor] = {}  # one entry a storage; the tensors keep the keys alive

        def pack(t: Tensor) -> Tensor:
            saved[t.untyped_storage()._cdata] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = function(*leaves)
        sizes = {key: t.untyped_storage().nbytes() for key, t in saved.items()}
        del out
    return {
        "inputs": sum(size for key, size in sizes.items() if key in own),
        "extra": sum(size for key, size in sizes.items() if key not in own),
    }


def _to_meta(t: Tensor) -> Tensor:
    if t.is_meta:
        return t.detach().requires_grad_(t.requires_grad)
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta").requires_grad_(t.requires_grad)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step. The parts add up to what is held when the backward starts; `peak` is the maximum.

    parameters, gradients, optimizer   as long as training lasts
    activations                        kept from forward to backward (logits included, where they are kept)
    peak                               at any time in the step
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def training_step(
    config: GPTConfig, batch: int, seq_len: int, *, autocast: bool = True, arch: str = "sm_90"
) -> StepMemory:
    """Memory of one step of AdamW on `config` with (batch, seq_len) tokens; float32 weights, bf16 autocast by default.

    Raises:
        ValueError: seq_len beyond config.max_len.
    """
    from .model import GPT

    if seq_len > config.max_len:
        raise ValueError(f"training_step: seq_len {seq_len} is beyond max_len {config.max_len}; raise max_len")
    with on_paper(arch) as memory:
        model = GPT(config)
        parameters = memory.live
        idx = torch.empty(batch, seq_len, dtype=torch.int64)
        memory.peak = memory.live
        # The gradients and Adam's two moments, float32 as the weights, live through every step but the first.
        state = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        before = memory.live
        with _autocast_on_paper(torch.bfloat16 if autocast else None):
            loss = model(idx, idx, return_logits=False).loss
        activations = memory.live - before
        loss.backward()
        del loss
        optimizer = sum(t.nbytes for t in state)
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        peak = memory.peak
    return StepMemory(parameters, gradients, optimizer, activations, peak)


class _FlashSdpa(TorchFunctionMode):
    """torch's attention as a GPU computes it, in O(T) memory; on meta tensors torch itself takes the plain formula."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not _runtime.torch_attention:
            return func(*args, **(kwargs or {}))
        return self._attention(*args, **(kwargs or {}))

    @staticmethod
    def _attention(
        q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):  # torch's names
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v)) if enable_gqa else (k, v)
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]


class _Autocast(TorchFunctionMode):
    """torch.autocast for meta tensors, which torch itself has not: its two lists, as far as a GPT needs them."""

    low = (F.linear, _runtime.torch_attention, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__)
    wide = (F.layer_norm, F.cross_entropy, F.softmax, torch.softmax, Tensor.softmax, torch.logsumexp, Tensor.logsumexp)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        dtype = self.dtype if func in self.low else torch.float32 if func in self.wide else None
        kwargs = kwargs or {}
        if dtype is not None:
            args, kwargs = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs))
        return func(*args, **kwargs)


@contextlib.contextmanager
def _autocast_on_paper(dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    token = _runtime.paper_autocast.set(dtype)
    try:
        with _Autocast(dtype):
            yield
    finally:
        _runtime.paper_autocast.reset(token)


def largest_batch(config: GPTConfig, seq_len: int, gpu_bytes: int, *, autocast: bool = True) -> int:
    """The most sequences of seq_len that fit gpu_bytes, as peak memory grows by a + b · batch; 0 if not one does."""

    def peak(batch: int) -> int:
        return training_step(config, batch, seq_len, autocast=autocast).peak

    two, eight = peak(2), peak(8)
    per_sequence = (eight - two) / 6
    batch = max(0, int((gpu_bytes - two) / per_sequence) + 2)
    while batch > 0 and peak(batch) > gpu_bytes:  # the loss's chunks make it not quite a line
        batch -= max(1, batch // 100)
    return batch
