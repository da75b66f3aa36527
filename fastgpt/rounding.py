"""What rounding does to a computation: run it again in float64, with every operation wrong by one rounding.

    moved = deviations(function, torch.bfloat16)        # how far roundings to bfloat16 move each result, draw by draw

A rounding to a dtype is wrong by at most its unit roundoff u, relatively: 2^-24 in float32, 2^-11 in float16, 2^-8 in
bfloat16. So every operation's result r becomes r (1 ± u), by the toss of a coin. An operation that adds up many numbers
(a sum, a product of matrices) also rounds on the way, in an order that nobody promises: its result moves by another ± u
of the same operation over absolute values, u being that of the accumulator, float32. What then comes out, less the
exact result, is what the arithmetic itself makes of rounding, cancellation, softmax and the whole backward included;
and no formula is needed for any operator. (Monte Carlo arithmetic: D. S. Parker, UCLA CSD-970002, 1997.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

DRAWS = 8

# Operations that add up many numbers.
SUMS = {
    aten.mm, aten.bmm, aten.mv, aten.dot, aten.addmm, aten.addmv, aten.baddbmm, aten.sum, aten.mean, aten.cumsum,
    aten.embedding_dense_backward, aten.index_add, aten.index_put, aten.scatter_add,
}  # fmt: skip

# Operations that only move, choose or make numbers, or flip a sign: they round nothing. So do views.
EXACT = {
    aten.clone, aten.copy_, aten._to_copy, aten.fill_, aten.zero_, aten.neg, aten.abs, aten.sign, aten.where,
    aten.masked_fill, aten.masked_fill_, aten.cat, aten.stack, aten.repeat, aten.flip, aten.constant_pad_nd,
    aten.index, aten.index_select, aten.gather, aten.scatter, aten.embedding, aten.tril, aten.triu,
    aten.slice_backward, aten.select_backward, aten.amax, aten.max, aten.maximum, aten.relu, aten.sort, aten.topk,
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.zeros,
    aten.zeros_like, aten.new_zeros, aten.ones, aten.ones_like, aten.new_ones, aten.full, aten.full_like,
    aten.new_full, aten.scalar_tensor, aten.arange,
}  # fmt: skip


def deviations(function: Callable[[], Sequence[Tensor | None]], dtype: torch.dtype) -> list[Tensor | None]:
    """(DRAWS, *shape) for each result of `function`: with roundings to `dtype`, less without, in float64.

    `function` computes in float64, gradients included, and can be called again and again. A None stays None.
    """
    exact, draws = function(), []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the others are one operation each
        for seed in range(DRAWS):
            with _Rounded(dtype, seed):
                draws.append(function())
    return [
        None if result is None else torch.stack([_difference(draw[i], result) for draw in draws])
        for i, result in enumerate(exact)
    ]


def _difference(result: Tensor, exact: Tensor) -> Tensor:
    """result - exact; 0 where both are the same infinity or NaN."""
    return torch.nan_to_num((result - exact).detach(), nan=0.0, posinf=0.0, neginf=0.0)


class _Rounded(TorchDispatchMode):
    """Inside the block every result of an operation in float64, backward included, is off by a rounding to `dtype`."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        info = torch.finfo(dtype)
        self.stored, self.smallest = info.eps / 2, info.smallest_normal
        self.accumulated = min(self.stored, torch.finfo(torch.float32).eps / 2)
        self.seed, self.generators = seed, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation = func.overloadpacket
        if operation in FORMULAS and args[0].dtype == torch.float64:
            with self:
                return FORMULAS[operation](*args, **kwargs)
        result = func(*args, **kwargs)
        if func.is_view or operation in EXACT:
            return result
        total = func(*_absolute(args), **kwargs) if operation in SUMS else None
        if isinstance(result, (tuple, list)):
            return type(result)(self.moved(r, None, False) for r in result)
        return self.moved(result, total, func._schema.is_mutable)

    def moved(self, result, total: Tensor | None, in_place: bool):
        """`result` with one rounding, and with those on the way to it if it is a sum."""
        if not isinstance(result, Tensor) or result.dtype != torch.float64 or result.numel() == 0:
            return result
        # Below the smallest normal number the distance between numbers stays the same; 0 itself is exact.
        size = result.abs().clamp(min=self.smallest) * (result != 0)
        moved = result + self.coins(result) * self.stored * size
        if total is not None:
            moved += self.coins(result) * self.accumulated * total
        moved = torch.where(moved.isfinite(), moved, result)
        return result.copy_(moved) if in_place else moved

    def coins(self, like: Tensor) -> Tensor:
        """-1 or 1 for each element; the same ones in every run."""
        if like.device not in self.generators:
            self.generators[like.device] = torch.Generator(like.device).manual_seed(self.seed)
        heads = torch.empty(like.shape, dtype=torch.float64, device=like.device)
        return heads.bernoulli_(generator=self.generators[like.device]) * 2 - 1


def _absolute(args: Sequence) -> list:
    return [a.abs() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


# ---- what torch computes in one go, as the arithmetic that it stands for: what cancels inside, shows -----------------


def _softmax(x, dim, half_to_float=False):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


def _safe_softmax(x, dim, dtype=None):
    hidden = (x == -math.inf).all(dim, keepdim=True)
    return _softmax(x.masked_fill(hidden, 0.0), dim).masked_fill(hidden, 0.0)


def _softmax_backward(grad, y, dim, dtype):
    product = grad * y
    return product - y * product.sum(dim, keepdim=True)


def _log_softmax(x, dim, half_to_float):
    x = x - x.amax(dim, keepdim=True)
    return x - torch.log(torch.exp(x).sum(dim, keepdim=True))


def _log_softmax_backward(grad, y, dim, dtype):
    return grad - torch.exp(y) * grad.sum(dim, keepdim=True)


def _logsumexp(x, dim, keepdim=False):
    largest = x.amax(dim, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    lse = largest + torch.log(torch.exp(x - largest).sum(dim, keepdim=True))
    return lse if keepdim else lse.squeeze(dim)


def _tanh_backward(grad, y):
    return grad * (1.0 - y * y)


def _gelu(x, approximate="none"):
    if approximate == "none":
        return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_backward(grad, x, approximate="none"):
    if approximate == "none":
        cdf = 0.5 * (1.0 + torch.erf(x * math.sqrt(0.5)))
        return grad * (cdf + x * (torch.exp(-0.5 * x * x) * math.sqrt(0.5 / math.pi)))
    t = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    slope = math.sqrt(2 / math.pi) * (1.0 + 3 * 0.044715 * x * x)
    return grad * (0.5 * (1.0 + t) + 0.5 * x * ((1.0 - t * t) * slope))


def _layer_norm(x, shape, weight, bias, eps):
    dims = tuple(range(x.dim() - len(shape), x.dim()))
    mean = x.mean(dims, keepdim=True)
    rstd = torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + eps)
    y = (x - mean) * rstd
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, rstd


def _layer_norm_backward(grad, x, shape, mean, rstd, weight, bias, wanted):
    rows = tuple(range(x.dim() - len(shape)))
    dims = tuple(range(x.dim() - len(shape), x.dim()))
    normed = (x - mean) * rstd
    g = grad if weight is None else grad * weight
    dx = rstd * (g - g.mean(dims, keepdim=True) - normed * (g * normed).mean(dims, keepdim=True))
    dweight, dbias = grad * normed, grad
    if rows:
        dweight, dbias = dweight.sum(rows), dbias.sum(rows)
    return tuple(g if asked else None for g, asked in zip((dx, dweight, dbias), wanted))


FORMULAS = {
    aten._softmax: _softmax,
    aten._safe_softmax: _safe_softmax,
    aten._softmax_backward_data: _softmax_backward,
    aten._log_softmax: _log_softmax,
    aten._log_softmax_backward_data: _log_softmax_backward,
    aten.logsumexp: _logsumexp,
    aten.tanh_backward: _tanh_backward,
    aten.gelu: _gelu,
    aten.gelu_backward: _gelu_backward,
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
}
