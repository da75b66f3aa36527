"""Matrix products by cuBLAS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def linear(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
    """x wᵀ + b, into `out`: (M, K), (N, K) and (N,) -> (M, N)."""
    return product(x, w.t(), out) if b is None else torch.addmm(b, x, w.t(), out=out)


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b, into `out` if given: (M, K) and (K, N) -> (M, N).

    Autocast leaves alone what writes to `out`. It would cast the operands of any other product, and a backward pass may
    run inside of it though its forward did not.
    """
    return torch.mm(a, b, out=a.new_empty(a.shape[0], b.shape[1]) if out is None else out)


def weight_grad(dy: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """dyᵀ x, summed over tokens in float32, into `out` if given: (M, N) and (M, K) -> (N, K)."""
    with float32_reductions():
        return product(dy.t(), x, out)


@contextlib.contextmanager
def float32_reductions() -> Iterator[None]:
    """cuBLAS may add the parts of a split sum in half precision if torch lets it; a weight's gradient may not."""
    flags = torch.backends.cuda.matmul
    names = "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"
    saved = {name: (getattr(flags, name), getattr(flags, f"{name}_split_k", True)) for name in names}
    for name, (_, split_k) in saved.items():
        _set_reduction(name, False, split_k)
    try:
        yield
    finally:
        for name, setting in saved.items():
            _set_reduction(name, *setting)


def _set_reduction(name: str, allowed: bool, split_k: bool) -> None:
    """A bare bool would allow split sums again where the user has forbidden them."""
    setattr(torch.backends.cuda.matmul, name, allowed if split_k else (allowed, split_k))
