"""One small call of every public function with every tensor that it takes, for tests of what torch does around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """run(kernels, tensors) -> the outputs, all differentiable; `kernels` may be the module of references.

    floats, integers   name -> shape; name -> the values of an integer tensor
    """

    floats: dict[str, tuple[int, ...]]
    integers: dict[str, Any]
    run: Callable[[Any, dict[str, Tensor]], tuple[Tensor, ...]]

    def inputs(self, device: torch.device, requires_grad: bool = False) -> dict[str, Tensor]:
        floats = {name: torch.randn(shape, device=device) for name, shape in self.floats.items()}
        integers = {name: torch.tensor(values, device=device) for name, values in self.integers.items()}
        return {**{name: x.requires_grad_(requires_grad) for name, x in floats.items()}, **integers}


_QKV = {"q": (2, 2, 5, 16), "k": (2, 1, 6, 16), "v": (2, 1, 6, 16)}
_FFN = {"x": (3, 8), "w1": (12, 8), "b1": (12,), "w2": (8, 12), "b2": (8,)}
_LOSS = {"x": (5, 8), "weight": (11, 8), "bias": (11,)}
_TARGET = {"target": [3, 10, -100, 0, 7]}


def _weights(kernels, t):
    return (kernels.attention_weights(t["q"], t["k"], t["lse"], heads=[1, 0], rows=slice(1, 4), window=4),)


def _loss(function, **settings):
    return lambda kernels, t: _tuple(getattr(kernels, function)(**t, **settings))


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


CALLS = {
    "flash_attention": Call(_QKV, {}, lambda kernels, t: kernels.flash_attention(**t, return_lse=True)),
    "flash_attention, masks": Call(
        _QKV,
        {"key_starts": [0, 1], "key_lengths": [6, 4], "document_ids": [[0, 0, 1, 1, 1, 1], [5, 5, 5, 5, 5, 5]]},
        lambda kernels, t: _tuple(kernels.flash_attention(**t, causal=False, window=(3, 2), softmax_scale=-0.3)),
    ),
    "flash_attention, packed": Call(
        {"q": (1, 2, 6, 16), "k": (1, 2, 6, 16), "v": (1, 2, 6, 16)},
        {"cu_seqlens": torch.tensor([0, 2, 6], dtype=torch.int32)},
        lambda kernels, t: _tuple(kernels.flash_attention(**t)),
    ),
    "scaled_dot_product_attention": Call(
        {"query": (2, 5, 16), "key": (2, 7, 16), "value": (2, 7, 8)},
        {},
        lambda kernels, t: (kernels.scaled_dot_product_attention(**t, is_causal=True),),
    ),
    "attention_weights": Call({"q": _QKV["q"], "k": _QKV["k"], "lse": (2, 2, 5)}, {}, _weights),
    "layer_norm": Call(
        {"x": (3, 2, 8), "weight": (2, 8), "bias": (2, 8)}, {}, lambda kernels, t: (kernels.layer_norm(**t),)
    ),
    "add_layer_norm": Call(
        {"x": (3, 17), "residual": (3, 17), "weight": (17,), "bias": (17,)},
        {},
        lambda kernels, t: kernels.add_layer_norm(**t),
    ),
    "linear_gelu": Call(
        {"x": (2, 3, 8), "w": (12, 8), "b": (12,)}, {}, lambda kernels, t: (kernels.linear_gelu(**t, path="triton"),)
    ),
    "gelu_ffn": Call(_FFN, {}, lambda kernels, t: (kernels.gelu_ffn(**t, path="triton"),)),
    "gelu_ffn, residual": Call(
        {**_FFN, "residual": (3, 8)},
        {},
        lambda kernels, t: (kernels.gelu_ffn(**t, approximate="tanh", recompute=True, path="cublas"),),
    ),
    "linear_cross_entropy": Call(_LOSS, _TARGET, _loss("linear_cross_entropy", num_chunks=2)),
    "linear_cross_entropy, none": Call(
        _LOSS, _TARGET,
        _loss("linear_cross_entropy", reduction="none", z_loss=0.1, softcap=5.0, label_smoothing=0.1, return_lse=True),
    ),
    "linear_cross_entropy, lse": Call(_LOSS, _TARGET, _loss("linear_cross_entropy", reduction="sum", return_lse=True)),
    "cross_entropy": Call({"logits": (5, 11)}, _TARGET, _loss("cross_entropy")),
    "cross_entropy, lse": Call({"logits": (5, 11)}, _TARGET, _loss("cross_entropy", reduction="none", return_lse=True)),
}  # fmt: skip
DROPOUT = {
    "flash_attention, dropout": Call(_QKV, {}, lambda kernels, t: _tuple(kernels.flash_attention(**t, dropout_p=0.5))),
    "add_layer_norm, dropout": CALLS["add_layer_norm"]._replace(
        run=lambda kernels, t: kernels.add_layer_norm(**t, dropout_p=0.5)
    ),
    "gelu_ffn, dropout": Call(_FFN, {}, lambda kernels, t: (kernels.gelu_ffn(**t, dropout_p=0.5, path="triton"),)),
}
