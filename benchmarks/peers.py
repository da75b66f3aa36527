"""Everything that a benchmark compares: our kernels, torch's own ways, and other projects'.

A peer is a function with our signature, behind a loader that imports what it needs. One that cannot run here says why,
and the benchmark shows that reason; no peer is required.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

OURS = "fastgpt"
PORTABLE = "fastgpt-portable"  # attention by the kernels that serve everywhere, where ours are Hopper's


class Unavailable(RuntimeError):
    """`who` cannot be measured here. Reads "reason: who": the table of what was left out counts equal reasons."""

    def __init__(self, reason: str, who: str) -> None:
        super().__init__(f"{reason}: {who}")


NEEDS_GPU = "needs a CUDA GPU"
INTERPRETED = "a CPU runs Triton kernels in an interpreter, whose speed means nothing"


@dataclass(frozen=True)
class Peer:
    """One implementation of one operation.

    name          as shown, and as `--impl` takes it
    distribution  whose version is quoted
    load          imports what is needed and returns the function; raises ImportError or Unavailable; called anew for
                  each benchmark, so that what is compiled is compiled for that one
    cuda_only     cannot run on a CPU at all
    during        what it runs within, backward and all
    """

    name: str
    distribution: str
    load: Callable[[], Callable[..., Any]]
    cuda_only: bool = False
    during: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def version(self) -> str | None:
        try:
            return f"{self.distribution} {metadata.version(self.distribution)}"
        except metadata.PackageNotFoundError:
            return None

    def get(self) -> Callable[..., Any]:
        """The function; raises Unavailable when it cannot run here."""
        if self.version is None and self.name not in (OURS, PORTABLE):
            raise Unavailable("not installed", self.name)
        if self.cuda_only and not torch.cuda.is_available():
            raise Unavailable(NEEDS_GPU, self.name)
        try:
            return self.load()
        except ImportError as error:
            raise Unavailable(f"cannot be imported ({error})", self.name) from error


OPERATIONS = ("attention", "layer_norm", "add_layer_norm", "ffn", "linear_cross_entropy")
PEERS: dict[str, dict[str, Peer]] = {operation: {} for operation in OPERATIONS}


def names(op: str) -> list[str]:
    return list(PEERS[op])


def _peer(op: str, name: str, distribution: str = "torch", cuda_only: bool = False, **options: Any):
    def register(load: Callable[[], Callable[..., Any]]):
        PEERS[op][name] = Peer(name, distribution, load, cuda_only, **options)
        return load

    return register


def compiled(function: Callable[..., Any]) -> Any:
    """`function` (or a module) under torch.compile, for one benchmark, with that benchmark's sizes as constants.

    Dynamo counts the compilations of one piece of code over the whole process. After `recompile_limit` of them (8) it
    runs the code uncompiled, with no more than a warning, and sizes that change become symbols, whose kernels are
    slower. So each benchmark begins with an empty count; and what is not compiled as one graph raises, for its time
    would be eager's under another name.
    """
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


# --- attention: f(q, k, v), causal, (B, H, T, head_dim) views of (B, T, H, head_dim) memory ---------------------------


def _portable() -> AbstractContextManager[None]:
    from benchmarks.gate.rows import attending_by

    return attending_by("triton")


@_peer("attention", PORTABLE, "fastgpt-triton", cuda_only=True, during=_portable)
@_peer("attention", OURS, "fastgpt-triton")
def _():
    from fastgpt.kernels import flash_attention

    return lambda q, k, v: flash_attention(q, k, v, causal=True)


def _sdpa(backend: SDPBackend | None):
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if backend is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attention


_peer("attention", "sdpa-default")(lambda: _sdpa(None))
_peer("attention", "sdpa-flash", cuda_only=True)(lambda: _sdpa(SDPBackend.FLASH_ATTENTION))
_peer("attention", "sdpa-cudnn", cuda_only=True)(lambda: _sdpa(SDPBackend.CUDNN_ATTENTION))
_peer("attention", "sdpa-efficient", cuda_only=True)(lambda: _sdpa(SDPBackend.EFFICIENT_ATTENTION))
_peer("attention", "sdpa-math")(lambda: _sdpa(SDPBackend.MATH))


@_peer("attention", "flex-compiled", cuda_only=True)
def _():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attention = compiled(flex_attention)
    block_mask = functools.cache(
        lambda T, device: create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=device)
    )
    return lambda q, k, v: attention(q, k, v, block_mask=block_mask(q.shape[2], q.device))


@_peer("attention", "flash-attn", "flash-attn", cuda_only=True)
def _():
    from flash_attn import flash_attn_func

    return lambda q, k, v: flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v)), causal=True).transpose(1, 2)


@_peer("attention", "flash-attn-4", "flash-attn-4", cuda_only=True)
def _():
    from flash_attn.cute import flash_attn_func

    return lambda q, k, v: flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v)), causal=True)[0].transpose(1, 2)


@_peer("attention", "fla", "fla-core", cuda_only=True)
def _():
    from fla.ops.attn.parallel import parallel_attn

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return parallel_attn(q, k, v, scale=q.shape[-1] ** -0.5).transpose(1, 2)

    return attention


# --- layer_norm: f(x, weight, bias) -----------------------------------------------------------------------------------


@_peer("layer_norm", OURS, "fastgpt-triton")
def _():
    from fastgpt.kernels import layer_norm

    return lambda x, w, b: layer_norm(x, w.shape, w, b)


def _eager_layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, w.shape, w, b)


_peer("layer_norm", "eager")(lambda: _eager_layer_norm)
_peer("layer_norm", "compile", cuda_only=True)(lambda: compiled(_eager_layer_norm))


@_peer("layer_norm", "liger", "liger-kernel", cuda_only=True)
def _():
    from liger_kernel.transformers.functional import liger_layer_norm

    return lambda x, w, b: liger_layer_norm(x, w, b, 1e-5)


# --- add_layer_norm: f(x, residual, weight, bias, dropout_p) -> (normed, new residual) --------------------------------


@_peer("add_layer_norm", OURS, "fastgpt-triton")
def _():
    from fastgpt.kernels import add_layer_norm

    return lambda x, residual, w, b, dropout_p: add_layer_norm(x, residual, w, b, dropout_p=dropout_p)


def _eager_add_layer_norm(
    x: Tensor, residual: Tensor, w: Tensor, b: Tensor, dropout_p: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    new_residual = residual + F.dropout(x, dropout_p)
    return F.layer_norm(new_residual, w.shape, w, b), new_residual


_peer("add_layer_norm", "eager")(lambda: _eager_add_layer_norm)
_peer("add_layer_norm", "compile", cuda_only=True)(lambda: compiled(_eager_add_layer_norm))


# --- ffn: f(x, w1, b1, w2, b2), exact GELU ----------------------------------------------------------------------------


@_peer("ffn", OURS, "fastgpt-triton")
def _():
    from fastgpt.kernels import gelu_ffn

    return gelu_ffn


def _eager_ffn(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


_peer("ffn", "eager")(lambda: _eager_ffn)
_peer("ffn", "compile", cuda_only=True)(lambda: compiled(_eager_ffn))


# --- linear_cross_entropy: f(x, weight, target) -> mean loss ----------------------------------------------------------


@_peer("linear_cross_entropy", OURS, "fastgpt-triton")
def _():
    from fastgpt.kernels import linear_cross_entropy

    return linear_cross_entropy


def _eager_linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), target)


_peer("linear_cross_entropy", "eager")(lambda: _eager_linear_cross_entropy)
_peer("linear_cross_entropy", "compile", cuda_only=True)(lambda: compiled(_eager_linear_cross_entropy))


@_peer("linear_cross_entropy", "torch-chunked")
def _():
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy (2.13 has)", "torch-chunked")
    return F.linear_cross_entropy


@_peer("linear_cross_entropy", "liger", "liger-kernel", cuda_only=True)
def _():
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy


@_peer("linear_cross_entropy", "cce", "cut-cross-entropy", cuda_only=True)
def _():
    from cut_cross_entropy import linear_cross_entropy

    # filter_eps=None: exact gradients, as all others here compute
    return lambda x, w, t: linear_cross_entropy(x, w, t, filter_eps=None)
