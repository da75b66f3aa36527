"""How many bytes a computation needs, counted without allocating any.

Everything runs on meta tensors, whose storages have a size and no memory. Our operators run their real launch code
there, with the launches themselves left out, so that workspaces count too and not only what is returned. What a GPU
adds on top is not counted: the CUDA context, library workspaces, and the allocator's rounding.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..base import machine
from ..base.settings import check_choice, check_integer
from ..kernels import _library, _runtime, support
from ..model.config import GPTConfig
from ..model.size import check_fits, count_parameters

if TYPE_CHECKING:
    from ..model.gpt import GPT

MOST_LAYERS = 1000  # each is laid out on paper, in some 5 ms: the largest batch of so many takes minutes to find


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of every tensor storage made inside the block: `live` now, `peak` so far.

    with PeakMemory() as memory:
        ...
    memory.peak

    With launch_code, our operators' own allocations count too; without it (fake tensors), only what they return.
    at_peak: {number of a storage, in the order in which they were made: bytes} of what there was at the peak.
    """

    def __init__(self, *, launch_code: bool = True) -> None:
        super().__init__()
        self.launch_code = launch_code
        self.live = self.peak = self.made = 0
        self.at_peak: dict[int, int] = {}
        self._alive: dict[int, tuple[int, int]] = {}  # by address, which another may have later: its number, its bytes

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's storage."""
        return self._alive[tensor.untyped_storage()._cdata][0]

    def numbers(self) -> set[int]:
        """The numbers of all storages that there are."""
        return {number for number, _ in self._alive.values()}

    def forget_peak(self) -> None:
        """The peak is what there is now, until there is more."""
        self.peak, self.at_peak = self.live, dict(self._alive.values())

    def track(self, *trees: Any) -> None:
        """Count these tensors' storages from now until they are freed (inputs made before the block)."""
        for leaf in tree_leaves(trees):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._alive:
                continue
            self._alive[key] = self.made, size
            self.made += 1
            self.live += size
            if self.live > self.peak:
                self.forget_peak()
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
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
        if support.has_triton():
            from triton.runtime.interpreter import InterpretedFunction
            from triton.runtime.jit import JITFunction

            for kind in (JITFunction, InterpretedFunction):  # the second in a process of TRITON_INTERPRET=1
                stack.callback(setattr, kind, "run", kind.run)
                kind.run = lambda *args, **kwargs: None
        stack.enter_context(torch.device("meta"))
        # Where a backward writes over what only it will ever see, it must do so here.
        stack.enter_context(_library.plain_too(torch.empty(0), torch.empty(0, requires_grad=True)))
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
        memory.forget_peak()
        before = memory.peak
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
    """Bytes of one training step at the moment when most are held: the parts add up to `peak`.

    parameters, optimizer  the weights and AdamW's two moments, as long as training lasts
    gradients              those that there are at that moment (all of them, as large as the weights, when the
                           backward is done)
    activations            the batch, and what is still kept of what the forward keeps for the backward
    transient              what an operation in the middle of the step needs while it runs: logits, workspaces, results
                           that the next operation takes over
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    transient: int

    @property
    def peak(self) -> int:
        return self.parameters + self.optimizer + self.gradients + self.activations + self.transient


def training_step(
    config: GPTConfig, batch: int, seq_len: int, *, autocast: bool = True, arch: str = "sm_90", remat: str = "none"
) -> StepMemory:
    """Memory of one step of AdamW on `config` with (batch, seq_len) tokens; float32 weights, bf16 autocast by default.

    remat: what blocks keep for the backward, see `fastgpt.model.remat`.

    Raises:
        SettingError, SettingTypeError: batch or seq_len below 1, seq_len beyond config.max_len, an unknown arch or
            remat, more than MOST_LAYERS layers.
    """
    _check_countable("training_step", config, batch, seq_len, arch)
    with on_paper(arch) as memory:
        model = model_on_paper(config, autocast, remat)
        parameters = {memory.number(p) for p in model.parameters()}
        # AdamW's two moments, float32 as the weights, live through every step but the first.
        state = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        optimizer = {memory.number(t) for t in state}
        idx = torch.empty(batch, seq_len, dtype=torch.int64)
        memory.forget_peak()
        with autocast_on_paper(torch.bfloat16 if autocast else None):
            loss = model(idx, idx, return_logits=False).loss
        kept = memory.numbers()
        loss.backward()
        del loss
        gradients = {memory.number(p.grad) for p in model.parameters() if p.grad is not None}

        def part_of(number: int) -> str:
            for name, numbers in (("parameters", parameters), ("optimizer", optimizer), ("gradients", gradients)):
                if number in numbers:
                    return name
            return "activations" if number in kept else "transient"

        parts = dict.fromkeys((f.name for f in fields(StepMemory)), 0)
        for number, size in memory.at_peak.items():
            parts[part_of(number)] += size
    return StepMemory(**parts)


def _check_countable(owner: str, config: GPTConfig, batch: int, seq_len: int, arch: str) -> None:
    check_integer(owner, "batch", batch, least=1)
    check_integer(owner, "seq_len", seq_len, least=1, most=config.max_len, hint=", the model's max_len")
    check_choice(owner, "arch", arch, _runtime.KNOWN_TARGETS)
    hint = " to be counted here: each layer is laid out on paper"
    check_integer("GPTConfig", "n_layers", config.n_layers, least=1, most=MOST_LAYERS, hint=hint)
    countable = machine.Room(2**63 - 1, "torch counts up to")
    check_fits(config, countable, lambda sizes: 4 * count_parameters(sizes), "their weights")


def model_on_paper(config: GPTConfig, autocast: bool, remat: str) -> GPT:
    """The model, made inside `on_paper`. What blocks compute again they compute as before: within a backward torch puts
    its function modes aside, of which torch.utils.checkpoint restores the device alone."""
    from ..model.gpt import GPT
    from ..model.remat import apply, blocks_of

    model = apply(GPT(config), remat)
    if remat != "none":
        dtype = torch.bfloat16 if autocast else None
        for block in blocks_of(model):
            block.compute = functools.partial(_on_paper_again, block.compute, dtype)
    return model


def _on_paper_again(function: Callable[..., Any], dtype: torch.dtype | None, *args: Any) -> Any:
    with _FlashSdpa(), autocast_on_paper(dtype):
        return function(*args)


def kept_activations(
    config: GPTConfig, batch: int, seq_len: int, *, autocast: bool = False, arch: str = "sm_90", remat: str = "none"
) -> int:
    """Bytes that the blocks of `config` keep from forward to backward of (batch, seq_len) tokens; float32 by default.

    Without weights, gradients and optimizer, and without head and loss: what grows with layers, tokens and width.

    Raises:
        SettingError, SettingTypeError: as `training_step`.
    """
    _check_countable("kept_activations", config, batch, seq_len, arch)
    with on_paper(arch) as memory:
        model = model_on_paper(config, autocast, remat)
        weights = memory.live
        idx = torch.empty(batch, seq_len, dtype=torch.int64)
        with autocast_on_paper(torch.bfloat16 if autocast else None):
            hidden = model.hidden_states(idx)
        kept = memory.live - weights
        del hidden
    return kept


class _FlashSdpa(TorchFunctionMode):
    """torch's attention as a GPU computes it, in O(T) memory; on meta tensors torch itself takes the plain formula."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not _runtime.torch_attention:
            return func(*args, **(kwargs or {}))
        return self._attention(*args, **(kwargs or {}))

    @staticmethod
    def _attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: None = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # torch's names  # fmt: skip
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
def autocast_on_paper(dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast to `dtype`, for tensors on paper; None: nothing."""
    if dtype is None:
        yield
        return
    token = _runtime.paper_autocast.set(dtype)
    try:
        with _Autocast(dtype):
            yield
    finally:
        _runtime.paper_autocast.reset(token)


def largest_batch(
    config: GPTConfig, seq_len: int, most_bytes: int, *, autocast: bool = True, arch: str = "sm_90",
    remat: str = "none",
) -> int:  # fmt: skip
    """The most sequences of seq_len whose step takes at most `most_bytes`, and one more takes more; 0 if none fits."""

    @functools.cache
    def peak(batch: int) -> float:
        try:
            return training_step(config, batch, seq_len, autocast=autocast, arch=arch, remat=remat).peak
        except (ValueError, RuntimeError):
            if batch == 1:
                raise
            return math.inf  # more than a launch, or an address, can count

    return largest_batch_of(peak, seq_len, most_bytes)


def largest_batch_of(peak: Callable[[int], float], seq_len: int, most_bytes: int) -> int:
    """The most sequences of seq_len tokens whose `peak`, bytes that grow almost as a line, is at most `most_bytes`."""
    if peak(1) > most_bytes:
        return 0
    # Peak memory is almost a line, a + b · batch, once a batch has some tokens; the loss's chunks make it not quite so.
    few = max(2, 4096 // seq_len)
    slope = (peak(4 * few) - peak(few)) / (3 * few)
    guess = few + (most_bytes - peak(few)) / slope if 0 < slope < math.inf else few
    low, high, step = 1, min(max(2, int(guess) + 1), 2**31 // seq_len), 1
    while peak(high) <= most_bytes:
        low, high, step = high, high + step, 2 * step
    while high - step > low and peak(high - step) > most_bytes:
        high, step = high - step, 2 * step
    low = max(low, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= most_bytes else (low, middle)
    return low
