"""What rounding does to a computation: run it again, with every operation wrong by one rounding.

    moved = deviations(function, inputs, exact)         # how far roundings move each result, draw by draw

A rounding to a dtype is wrong by at most its unit roundoff u, relatively: 2^-24 in float32, 2^-11 in float16, 2^-8 in
bfloat16. So `function` is given tensors that have the dtypes of the inputs but compute in float64 (`Rounded`), where
every operation's result r becomes r (1 ± u), by the toss of a coin, u being that of the dtype of r. An operation that
adds up many numbers (a sum, a product of matrices) also rounds on the way, in an order that nobody promises: its result
moves by another ± u of the same operation over absolute values, u being that of the accumulator, float32, or by what
rounding its partial sums one after the other makes, where that is more (`_on_the_way`). What comes out, less the exact
result, is what the arithmetic itself makes of rounding: cancellation, softmax and the whole backward included, in any
mixture of dtypes, and without a formula for any operator. (Monte Carlo arithmetic: D. S. Parker, UCLA CSD-970002,
1997.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

DRAWS, DRAWS_OF_FEW = 8, 32  # a result of fewer than FEW numbers needs more draws to say as much
FEW = 32

# Operations that add up many numbers: products of matrices, what reduces dimensions, and what adds up here and there.
PRODUCTS = {aten.mm, aten.bmm, aten.mv, aten.dot, aten.addmm, aten.addmv, aten.baddbmm}
REDUCTIONS = {aten.sum, aten.mean}
SUMS = PRODUCTS | REDUCTIONS | {
    aten.cumsum, aten.embedding_dense_backward, aten.index_add, aten.index_put, aten.scatter_add,
}  # fmt: skip
LANES = 32  # a reduction adds up so many numbers at a time or more, anywhere: a warp's lanes, a CPU's vectors

# Functions whose libraries promise a unit in the last place, which is two roundings.
FUNCTIONS = {
    aten.exp, aten.exp2, aten.expm1, aten.log, aten.log2, aten.log1p, aten.erf, aten.tanh, aten.sigmoid, aten.rsqrt,
    aten.pow, aten.sin, aten.cos,
}  # fmt: skip

# Operations that only move, choose or make numbers, or flip a sign: they round nothing. So do views.
EXACT = {
    aten.clone, aten.copy_, aten.fill_, aten.zero_, aten.neg, aten.abs, aten.sign, aten.where, aten.masked_fill,
    aten.masked_fill_, aten.cat, aten.stack, aten.repeat, aten.flip, aten.constant_pad_nd, aten.index,
    aten.index_select, aten.gather, aten.scatter, aten.embedding, aten.tril, aten.triu, aten.slice_backward,
    aten.select_backward, aten.amax, aten.max, aten.maximum, aten.relu, aten.sort, aten.topk, aten.empty_like,
    aten.new_empty, aten.new_empty_strided, aten.zeros_like, aten.new_zeros, aten.ones_like, aten.new_ones,
    aten.full_like, aten.new_full,
}  # fmt: skip


def deviations(function: Callable, inputs: Sequence, exact: Sequence[Tensor | None]) -> list[Tensor | None]:
    """(draws, *shape) for each of `exact`, the results of function(*inputs) in float64: with roundings, less without.

    Tensors in `inputs` (in lists and dictionaries too) keep their dtypes: those say what is rounded to what.
    """
    few = any(0 < x.numel() < FEW for x in exact if x is not None)
    draws = []
    # Of attention, "math" alone consists of operations. Modes that watch every operation see tensors without memory.
    with _disable_current_modes(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for seed in range(DRAWS_OF_FEW if few else DRAWS):
            coins = Coins(seed)
            results = function(*tree_map(lambda x, coins=coins: _leaf(x, coins), list(inputs)))
            results = [results] if isinstance(results, Tensor) else list(results)
            draws.append([_difference(a, b) for a, b in zip(results, exact, strict=True)])
    return [None if of_one[0] is None else torch.stack(of_one) for of_one in zip(*draws)]


def _leaf(x, coins: Coins):
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return Rounded(x.detach().double(), x.dtype, coins).requires_grad_(x.requires_grad)


def _difference(result: Tensor | None, exact: Tensor | None) -> Tensor | None:
    """result - exact; 0 where that is no number: infinities and NaN are judged by themselves."""
    if result is None or exact is None:
        return None
    if not isinstance(result, Rounded):
        raise TypeError(
            f"deviations: a result is a {type(result).__name__} that owes nothing to the inputs; hand the function all "
            f"of its tensors as inputs, upstream gradients too"
        )
    return torch.nan_to_num(result.value.detach() - exact, nan=0.0, posinf=0.0, neginf=0.0)


class Coins:
    """Tosses of one run; the same ones every time."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def like(self, x: Tensor) -> Tensor:
        """-1 or 1 for each element of x."""
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        heads = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        return heads.bernoulli_(generator=self.generators[x.device]) * 2 - 1


class Rounded(Tensor):
    """A tensor of dtype `dtype` whose numbers are kept in float64: `value`. Operations on it round by the coins."""

    value: Tensor
    coins: Coins
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch documents it

    @staticmethod
    def __new__(cls, value: Tensor, dtype: torch.dtype, coins: Coins):
        return Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=dtype,
            device=value.device,
        )  # fmt: skip

    def __init__(self, value: Tensor, dtype: torch.dtype, coins: Coins) -> None:
        self.value, self.coins = value, coins

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes an argument that only its own printing gives
        return f"Rounded({self.value}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]  # torch's is in C
        kwargs = kwargs or {}
        operation = func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        coins = next(x.coins for x in tensors if isinstance(x, Rounded))
        in_place = func._schema.is_mutable
        if in_place and not isinstance(args[0], Rounded):
            raise TypeError(f"deviations: {func} writes into a tensor that is not made of the inputs")
        dtype = args[0].dtype if in_place else kwargs.get("dtype") or _promoted(tensors)
        if operation in FORMULAS:  # computed in float32 or better, and stored once
            found = FORMULAS[operation](*tree_map(_widened, args), **kwargs)
            return _stored(operation, found, args, dtype)

        plain_args, plain_kwargs = tree_map(_plain, (list(args), kwargs))
        if dtype.is_floating_point and kwargs.get("dtype"):
            plain_kwargs["dtype"] = torch.float64
        result = func(*plain_args, **plain_kwargs)
        exact = func.is_view or operation in EXACT
        if operation in (aten._to_copy, aten.copy_):
            exact = torch.promote_types(dtype, args[operation is aten.copy_].dtype) == dtype
        if not exact:
            total = None
            if operation in SUMS:
                total = func(*tree_map(_absolute, plain_args), **plain_kwargs)
                total = _on_the_way(operation, func, plain_args, plain_kwargs, result, total)
            elif operation is aten.exp:  # 2^(x log2 e): the product in the exponent rounds as well
                total = plain_args[0].abs() * result
            roundings = 2 if operation in FUNCTIONS else 1
            move = functools.partial(_moved, dtype=dtype, coins=coins, roundings=roundings, total=total)
            result = result.copy_(move(result)) if in_place else tree_map(move, result)
        if in_place:
            return args[0]
        return tree_map(lambda x: _wrapped(x, dtype, coins), result)


def _wide(x) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def _plain(x):
    if isinstance(x, Rounded):
        return x.value
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _wrapped(x, dtype: torch.dtype, coins: Coins):
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    assert x.dtype == torch.float64, "every operation on Rounded tensors must have been computed in float64"
    return Rounded(x, dtype, coins)


def _absolute(x):
    return x.abs() if isinstance(x, Tensor) and x.is_floating_point() else x


def _promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """What torch computes an operation of these in: a number (no dimensions) does not widen a tensor."""
    ranked = [x.dtype for x in tensors if x.dim()] or [x.dtype for x in tensors]
    return functools.reduce(torch.promote_types, ranked)


def _widened(x):
    return Rounded(x.value, torch.float32, x.coins) if isinstance(x, Rounded) and x.dtype.itemsize < 4 else x


def _stored(operation, result, args, dtype: torch.dtype):
    """`result` of a formula in the dtype in which torch returns it."""
    if operation is aten.native_layer_norm:  # mean and rstd stay in float32
        return (_rounded_to(result[0], args[0].dtype), *result[1:])
    if operation in (aten._softmax, aten._log_softmax) and args[2]:
        dtype = torch.float32
    return tree_map(lambda x: _rounded_to(x, dtype), result)


def _rounded_to(x, dtype: torch.dtype):
    return aten._to_copy(x, dtype=dtype) if isinstance(x, Rounded) and x.dtype != dtype else x


def _moved(result, dtype: torch.dtype, coins: Coins, roundings: int, total: Tensor | None):
    """`result` with its roundings to `dtype`, and those on the way to it, of numbers as large as `total`."""
    if not _wide(result) or result.numel() == 0:
        return result
    info = torch.finfo(dtype)
    # Below the smallest normal number the distance between numbers stays the same; 0 itself is exact.
    size = result.abs().clamp(min=info.smallest_normal) * (result != 0)
    moved = result + coins.like(result) * (roundings * info.eps / 2) * size
    if total is not None:
        moved += coins.like(result) * (min(info.eps, torch.finfo(torch.float32).eps) / 2) * total
    return torch.where(moved.isfinite(), moved, result)


def _on_the_way(operation, func, args: list, kwargs: dict, result: Tensor, total: Tensor) -> Tensor:
    """The size of a sum's rounding errors in units of u; `total` is the same sum over absolute values.

    An accumulator rounds each partial sum. Where terms cancel, or are few, one u * total is more than all of that. But
    n partial sums that stay as large as p (all terms have one sign, or one term is larger than all others together)
    make 0.42 u p sqrt(n): u / sqrt(3) is the root mean square of a rounding, and numbers are longer than powers of 2.
    """
    if operation in PRODUCTS and args[-2].shape[-1] > LANES:
        a, b = args[-2:]
        steps = (a != 0).double() @ (b != 0).double()  # what adds 0 rounds nothing
        partial = _largest_partial_sum(a, b)
    elif operation in REDUCTIONS and args[0].numel() > LANES * result.numel():
        steps = func((args[0] != 0).double(), *args[1:], **kwargs) / LANES
        steps = steps * args[0].numel() / result.numel() if operation is aten.mean else steps
        partial = result
    else:
        return total
    return (total.square() + 0.18 * steps * partial.square()).sqrt()


def _largest_partial_sum(a: Tensor, b: Tensor) -> Tensor:
    """Of a @ b, over its inner dimension in eight parts."""
    partial = largest = torch.zeros((), dtype=a.dtype, device=a.device)
    for left, right in zip(a.tensor_split(8, -1), b.tensor_split(8, -2 if b.dim() > 1 else -1)):
        partial = partial + left @ right
        largest = torch.maximum(largest, partial.abs())
    return largest


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


FORMULAS: dict[Any, Callable[..., Any]] = {
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
