"""The forward and backward passes of `linear_gelu` and `gelu_ffn`, as sequences of launches.

    pre = x W1ᵀ + b1      act = gelu(pre)      y = residual + dropout(act W2ᵀ + b2)

    dy = mask ⊙ dout      dpre = (dy W2) ⊙ gelu'(pre)      dW2 = dyᵀ act      dW1 = dpreᵀ x      dx = dpre W1

These functions are what the operators run; they return new tensors, and an empty one for a gradient not asked for.
Outputs are allocated in their final shape: a view that is made inside of an autograd.Function may not be modified.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _runtime
from .._random import drop_threshold
from . import launch, tiles


def _drop(dropout_p: float) -> tuple[int, float]:
    return drop_threshold(dropout_p), 1.0 / (1.0 - dropout_p)


def linear_gelu_forward(
    x: Tensor, w: Tensor, b: Tensor | None, approximate: str, save_pre: bool, path: str
) -> tuple[Tensor, Tensor]:
    """(gelu(x wᵀ + b), pre-activation (M, d_out) or an empty tensor)."""
    with _runtime.on_device_of(x):
        flat, act = launch.rows_of(x), x.new_empty(*x.shape[:-1], w.shape[0])
        pre = x.new_empty(flat.shape[0], w.shape[0]) if save_pre else None
        launch.up(flat, w, b, approximate == "tanh", pre, path, launch.rows_of(act))
    return act, x.new_empty(0) if pre is None else pre


def linear_gelu_backward(
    dact: Tensor, x: Tensor, w: Tensor, b: Tensor | None, pre: Tensor | None, approximate: str,
    grads: Sequence[bool], path: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dw, db) of `linear_gelu`; `grads` says which are wanted, `pre` None recomputes the pre-activation."""
    with _runtime.on_device_of(x):
        want_x, want_w, want_b = grads
        flat = launch.rows_of(x)
        dact = launch.rows_of(dact)
        dact = dact if dact.stride(1) == 1 else dact.contiguous()
        pre = launch.linear(flat, w, b, x.new_empty(flat.shape[0], w.shape[0])) if pre is None else pre
        dpre = torch.empty_like(pre)
        _, parts = launch.dgelu_pass(dact, pre, dpre, False, want_b, approximate == "tanh")
        db = launch.sum_parts(parts, x.new_empty(w.shape[0])) if want_b else x.new_empty(0)
        dw = launch.weight_grad(dpre, flat) if want_w else x.new_empty(0)
        dx = launch.product_of(dpre, w).view(x.shape) if want_x else x.new_empty(0)
    return dx, dw, db


def gelu_ffn_forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, residual: Tensor | None,
    seed: Tensor | None, dropout_p: float, approximate: str, save_pre: bool, path: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y, pre-activation (M, d_hidden) or an empty tensor)."""
    with _runtime.on_device_of(x):
        flat, d_hidden, d_out = launch.rows_of(x), w1.shape[0], w2.shape[0]
        M = flat.shape[0]
        flat_residual = None if residual is None else launch.rows_of(residual)
        pre = x.new_empty(M, d_hidden) if save_pre else None
        y = x.new_empty(*x.shape[:-1], d_out, dtype=x.dtype if residual is None else residual.dtype)
        flat_y = launch.rows_of(y)
        for begin, end in tiles.token_chunks(M, d_hidden):
            pre_, y_, x_ = (None if t is None else t[begin:end] for t in (pre, flat_y, flat))
            residual_ = None if flat_residual is None else flat_residual[begin:end]
            act = launch.up(x_, w1, b1, approximate == "tanh", pre_, path)
            launch.down(act, w2, b2, residual_, seed, _drop(dropout_p), y_, begin)
            del act  # before the next chunk's is allocated
    return y, x.new_empty(0) if pre is None else pre


def gelu_ffn_backward(
    dout: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, pre: Tensor | None, seed: Tensor | None,
    dropout_p: float, approximate: str, grads: Sequence[bool], path: str, overwrite_pre: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dw1, db1, dw2, db2); `grads` says which are wanted, `pre` None recomputes the pre-activation.

    The hidden columns are handled in chunks, each with its own activation, which dies with dW2's columns. With
    `overwrite_pre`, dpre takes the place of the pre-activation: one hidden-sized matrix and one chunk is all there is.
    """
    with _runtime.on_device_of(x):
        want_x, want_w1, want_b1, want_w2, want_b2 = grads
        empty, dtype, tanh = x.new_empty(0), x.dtype, approximate == "tanh"
        flat, (d_hidden, M) = launch.rows_of(x), (w1.shape[0], x.shape[:-1].numel())
        dy, db2 = launch.prepare_grad(launch.rows_of(dout), seed, _drop(dropout_p), dtype, want_b2)
        db2 = db2 if want_b2 else empty
        want_dpre = want_x or want_w1 or want_b1
        if not (want_dpre or want_w2):
            return empty, empty.clone(), empty.clone(), empty.clone(), db2
        if pre is None:
            pre, overwrite_pre = launch.linear(flat, w1, b1, x.new_empty(M, d_hidden)), True
        dpre = pre if overwrite_pre else torch.empty_like(pre)
        dw2 = x.new_empty(w2.shape) if want_w2 else x.new_empty(0)
        db1 = x.new_empty(d_hidden) if want_b1 else x.new_empty(0)
        for begin, end in tiles.hidden_chunks(M, d_hidden):
            columns = slice(begin, end)
            act, parts = launch.dgelu(
                dy, w2[:, columns], pre[:, columns], dpre[:, columns], want_w2, want_b1, tanh, path
            )
            if want_w2:
                launch.weight_grad(dy, act, out=dw2[:, columns])
            if want_b1:
                launch.sum_parts(parts, db1[columns])
            del act  # before the next chunk's is allocated
        dx = launch.product_of(dpre, w1).view(x.shape) if want_x else x.new_empty(0)
        dw1 = launch.weight_grad(dpre, flat) if want_w1 else x.new_empty(0)
    return dx, dw1, db1, dw2, db2
