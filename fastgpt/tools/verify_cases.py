"""What `fastgpt verify` tries: small calls of every kernel, each of which a fault of some kind would spoil."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from ..kernels import _random, reference

SEED = 2022  # of torch's generator, before each call, so that the mask that dropout will draw is known


@dataclass(frozen=True)
class Case:
    """One call of a kernel.

    label    what is special about it
    tensors  in float64 (or integers); rounded to the dtype under test
    wanted   names of those that get a gradient
    options  other arguments of the kernel
    call     call(functions, **tensors) makes the call, where functions are `fastgpt.kernels` or its reference, which
             gets `dropout_mask` too. None: the kernel with all tensors and options
    wide     names of tensors that stay float32
    dropped  shape of what dropout is applied to
    dropout_p  with what probability
    """

    kernel: str
    label: str
    tensors: dict[str, Tensor]
    wanted: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
    wide: tuple[str, ...] = ()
    dropped: tuple[int, ...] | None = None
    dropout_p: float = 0.0

    def inputs(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors in `dtype` on `device`, and the mask that dropout will draw there."""
        inputs = {}
        for name, tensor in self.tensors.items():
            kind = None if not tensor.is_floating_point() else torch.float32 if name in self.wide else dtype
            inputs[name] = tensor.to(device, kind).requires_grad_(name in self.wanted)
        if self.dropped is not None:
            torch.manual_seed(SEED)
            seed = _random.new_seed(torch.device(device))
            planes, (rows, columns) = math.prod(self.dropped[:-2]), self.dropped[-2:]
            mask = _random.materialised_mask(seed, self.dropout_p, planes, rows, columns)
            inputs["dropout_mask"] = mask.view(self.dropped)
        return inputs

    def outputs(self, functions: ModuleType, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The results of one call that are not integers."""
        if functions is not reference:
            inputs = {name: tensor for name, tensor in inputs.items() if name != "dropout_mask"}
            torch.manual_seed(SEED)
        options = self.options | ({"dropout_p": self.dropout_p} if self.dropped is not None else {})
        if self.call is None:
            out = getattr(functions, self.kernel)(**inputs, **options)
        else:
            out = self.call(functions, **inputs, **options)
        return [t for t in (out if isinstance(out, tuple) else (out,)) if t.is_floating_point()]

    def upstream(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """A fixed gradient for each output."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            outs = self.outputs(reference, inputs)
        return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype) for t in outs]

    def run(self, functions: ModuleType, inputs: dict[str, Tensor], upstream: list[Tensor]) -> list[Tensor]:
        """Outputs, then the gradients of the wanted inputs.

        Raises:
            ValueError: a gradient is missing.
        """
        outs = self.outputs(functions, inputs)
        if not self.wanted:
            return [t.detach() for t in outs]
        if not all(t.requires_grad for t in outs):
            raise ValueError("a result has no gradient")
        upstream = [g.to(t.dtype) for g, t in zip(upstream, outs, strict=True)]
        grads = torch.autograd.grad(outs, [inputs[name] for name in self.wanted], upstream, allow_unused=True)
        missing = [name for name, grad in zip(self.wanted, grads) if grad is None]
        if missing:
            raise ValueError(f"no gradient of {', '.join(missing)}")
        return [t.detach() for t in (*outs, *grads)]


# ---- shapes are tiny; `scale` enlarges them where a GPU runs them natively -------------------------------------------


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _qkv(B: int, H: int, H_kv: int, T_q: int, T_k: int, D: int) -> dict[str, Tensor]:
    return {"q": _normal(B, H, T_q, D), "k": _normal(B, H_kv, T_k, D), "v": _normal(B, H_kv, T_k, D)}


def _documents(B: int, T: int) -> Tensor:
    """(B, T) ids of documents end to end, of different lengths in each sequence."""
    return torch.stack([torch.arange(T) // (5 + b) for b in range(B)])


def _attention(scale: int) -> Iterator[Case]:
    def case(label: str, tensors: dict[str, Tensor], **options: Any) -> Case:
        return Case("flash_attention", label, tensors, ("q", "k", "v"), options)

    T, short = 40 * scale, 17 * scale
    yield case(f"causal, T {T}, D 32", _qkv(1, 1, 1, T, T, 32), return_lse=True)
    yield case("GQA 4/2, window 16", _qkv(1, 4, 2, short, short + 7, 16), window=16)
    yield case("all keys, D 24, scale", _qkv(1, 2, 2, short, short - 4, 24), causal=False, softmax_scale=0.3)
    for D in (64, 128):  # the head sizes that most models have, in tiles of their own
        yield case(f"causal, D {D}", _qkv(1, 1, 1, short, short, D), return_lse=True)
    yield case("T 1", _qkv(1, 2, 1, 1, 1, 16), return_lse=True)
    yield case("one query, GQA 2/1", _qkv(1, 2, 1, 1, short, 16), return_lse=True)
    large = {k: t * (10 if k != "v" else 1) for k, t in _qkv(1, 1, 1, short, short, 16).items()}
    yield Case("flash_attention", "scores of 100 and more", large, (), {"return_lse": True})
    padded = {"key_starts": torch.tensor([0, 3]), "key_lengths": torch.tensor([short - 5, short])}
    yield case("padded left and right", _qkv(2, 1, 1, short, short, 16) | padded, return_lse=True)
    yield case("documents by id", _qkv(2, 1, 1, short, short, 16) | {"document_ids": _documents(2, short)})
    ends = torch.tensor([0, 6, 7, short], dtype=torch.int32)
    yield case("documents end to end", _qkv(1, 1, 1, short, short, 16) | {"cu_seqlens": ends}, window=(4, 0))
    yield Case(
        "flash_attention", "dropout 0.3, GQA 4/2", _qkv(1, 4, 2, short, short, 16), ("q", "k", "v"),
        dropped=(1, 4, short, short), dropout_p=0.3,
    )  # fmt: skip


def _sdpa(scale: int) -> Iterator[Case]:
    T, short = 33 * scale, 17 * scale
    names = ("query", "key", "value")

    def tensors(H: int, H_kv: int, T_q: int, T_k: int) -> dict[str, Tensor]:
        return dict(zip(names, _qkv(1, H, H_kv, T_q, T_k, 16).values()))

    def case(label: str, given: dict[str, Tensor], **options: Any) -> Case:
        return Case("scaled_dot_product_attention", label, given, names, options)

    yield case(f"causal, T {T}, D 16", tensors(1, 1, T, T), is_causal=True)
    yield case("causal, more keys", tensors(1, 1, short, T), is_causal=True)
    yield case("causal, more queries", tensors(1, 1, T, short), is_causal=True)
    yield case("GQA 4/2, scale", tensors(4, 2, short, short), enable_gqa=True, scale=0.2)

    def masked(functions: ModuleType, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The one mask that the kernels take as such: causal, aligned bottom-right."""
        return functions.scaled_dot_product_attention(query, key, value, causal_lower_right(short, T))

    yield Case("scaled_dot_product_attention", "causal_lower_right", tensors(1, 1, short, T), names, call=masked)

    def dropped(
        functions: ModuleType, query: Tensor, key: Tensor, value: Tensor, dropout_p: float, **mask: Any
    ) -> Tensor:
        if functions is reference:  # torch's own draws another mask
            return reference.flash_attention(query, key, value, dropout_p=dropout_p, **mask)
        return functions.scaled_dot_product_attention(query, key, value, None, dropout_p, True)

    yield Case(
        "scaled_dot_product_attention", "causal, dropout 0.3", tensors(1, 1, short, short), names, call=dropped,
        dropped=(1, 1, short, short), dropout_p=0.3,
    )  # fmt: skip


def _attention_weights(scale: int) -> Iterator[Case]:
    def weights(functions: ModuleType, q: Tensor, k: Tensor, chosen: dict[str, Any], **masks: Any) -> Tensor:
        """With an lse that carries its own graph: the gradient of a softmax."""
        _, lse = functions.flash_attention(q, k, k, return_lse=True, **masks)
        return functions.attention_weights(q, k, lse, **chosen, **masks)

    def case(label: str, tensors: dict[str, Tensor], chosen: dict[str, Any] | None = None, **masks: Any) -> Case:
        tensors = {name: tensor for name, tensor in tensors.items() if name != "v"}
        options = {"chosen": chosen or {}, **masks}
        return Case("attention_weights", label, tensors, ("q", "k"), options, weights)

    T, short = 33 * scale, 17 * scale
    yield case(f"causal, T {T}, D 16", _qkv(1, 1, 1, T, T, 16))
    chosen = {"heads": [3, 1], "rows": slice(2, None, 3)}
    yield case("GQA 4/2, window, rows", _qkv(1, 4, 2, short, short, 16), chosen, window=5, softmax_scale=0.3)
    padded = {"key_starts": torch.tensor([0, 3])}
    yield case("all keys, padded left", _qkv(2, 2, 2, short, short + 4, 16) | padded, causal=False)
    ends = torch.tensor([0, 6, 7, short], dtype=torch.int32)
    yield case("documents end to end", _qkv(1, 1, 1, short, short, 16) | {"cu_seqlens": ends})
    masks = {"document_ids": _documents(2, short), "key_lengths": torch.tensor([short, short - 5])}
    yield case("documents, padded", _qkv(2, 1, 1, short, short, 16) | masks)


def _layer_norm(scale: int) -> Iterator[Case]:
    def tensors(*shape: int) -> dict[str, Tensor]:
        return {"x": _normal(*shape) + 3.0, "weight": _normal(shape[-1]), "bias": _normal(shape[-1])}

    wanted = ("x", "weight", "bias")
    for rows, width in ((5 * scale, 96), (1, 40), (3, 1030)):
        yield Case("layer_norm", f"{rows} x {width}, offset 3", tensors(rows, width), wanted)
    yield Case("layer_norm", f"{3 * scale} x 101, eps 0.1", tensors(3 * scale, 101), wanted, {"eps": 0.1})
    # Rows that do not fit into registers: held in their own dtype, or walked over twice. Long in the interpreter too.
    for width in (9001, 40001, 66001) if scale > 1 else ():
        yield Case("layer_norm", f"2 x {width}", tensors(2, width), wanted)
    large = {"x": _normal(3 * scale, 48) * 300.0}
    yield Case("layer_norm", "x of 300, no weight", large, ("x",), {"normalized_shape": (48,)})

    def widened(functions: ModuleType, x: Tensor, weight: Tensor) -> Tensor:
        return functions.layer_norm(x, weight=weight, out_dtype=torch.promote_types(x.dtype, torch.float32))

    narrow = {"x": _normal(3 * scale, 48), "weight": _normal(48)}
    yield Case("layer_norm", "no bias, float32 out", narrow, ("x", "weight"), call=widened)


def _add_layer_norm(scale: int) -> Iterator[Case]:
    wanted = ("x", "residual", "weight", "bias")

    def tensors(rows: int, width: int) -> dict[str, Tensor]:
        return {
            "x": _normal(rows, width), "residual": _normal(rows, width), "weight": _normal(width),
            "bias": _normal(width),
        }  # fmt: skip

    rows = 5 * scale
    yield Case("add_layer_norm", f"{rows} x 96", tensors(rows, 96), wanted)
    yield Case(
        "add_layer_norm", f"{rows} x 96, dropout 0.3", tensors(rows, 96), wanted, dropped=(rows, 96), dropout_p=0.3
    )

    yield Case("add_layer_norm", "1 x 101, float32 sum", tensors(1, 101), wanted, wide=("residual",))
    if scale > 1:
        yield Case(
            "add_layer_norm", "2 x 66001, dropout 0.3", tensors(2, 66001), wanted, dropped=(2, 66001), dropout_p=0.3
        )  # fmt: skip


def _linear_gelu(scale: int) -> Iterator[Case]:
    rows, d_in, d_out = 17 * scale, 32 * scale, 48 * scale
    tensors = {"x": _normal(rows, d_in), "w": _normal(d_out, d_in) / d_in**0.5, "b": _normal(d_out)}
    shape = f"{rows} x {d_in} x {d_out}"
    yield Case("linear_gelu", f"{shape}, erf", tensors, tuple(tensors), {"path": "triton"})
    yield Case("linear_gelu", "tanh, by cuBLAS", tensors, tuple(tensors), {"approximate": "tanh", "path": "cublas"})
    tensors = {"x": _normal(1, 13), "w": _normal(7, 13) / 3.0}
    yield Case("linear_gelu", "1 x 13 x 7, no bias", tensors, tuple(tensors), {"approximate": "tanh"})


def _gelu_ffn(scale: int) -> Iterator[Case]:
    def tensors(rows: int, d: int, hidden: int) -> dict[str, Tensor]:
        return {
            "x": _normal(rows, d), "w1": _normal(hidden, d) / d**0.5, "b1": _normal(hidden),
            "w2": _normal(d, hidden) / hidden**0.5, "b2": _normal(d),
        }  # fmt: skip

    rows, d, hidden = 17 * scale, 32 * scale, 64 * scale
    given = tensors(rows, d, hidden)
    wanted = tuple(given)
    yield Case("gelu_ffn", f"{rows} x {d} x {hidden}, erf", given, wanted)
    yield Case("gelu_ffn", "tanh, in Triton", given, wanted, {"approximate": "tanh", "path": "triton"})
    yield Case("gelu_ffn", "tanh, by cuBLAS", given, wanted, {"approximate": "tanh", "path": "cublas"})
    yield Case("gelu_ffn", "recomputed", given, wanted, {"recompute": True})
    small = {name: tensor for name, tensor in tensors(1, 13, 29).items() if name not in ("b1", "b2")}
    yield Case("gelu_ffn", "1 x 13 x 29, no bias", small, ("x", "w1", "w2"), {"b1": None, "b2": None})
    added = given | {"residual": _normal(rows, d)}
    yield Case(
        "gelu_ffn", "dropout 0.3, residual", added, (*wanted, "residual"), {"recompute": True}, wide=("residual",),
        dropped=(rows, d), dropout_p=0.3,
    )  # fmt: skip


def _targets(rows: int, vocab: int, ignored: int = -100) -> Tensor:
    target = torch.randint(0, vocab, (rows,))
    target[1] = ignored  # a row that does not count
    return target


def _linear_cross_entropy(scale: int) -> Iterator[Case]:
    rows, d, vocab = 12 * scale, 32 * scale, 100 * scale + 1

    def case(label: str, ignored: int = -100, **options: Any) -> Case:
        tensors = {
            "x": _normal(rows, d), "weight": _normal(vocab, d) / d**0.5, "bias": _normal(vocab),
            "target": _targets(rows, vocab, ignored),
        }  # fmt: skip
        return Case("linear_cross_entropy", label, tensors, ("x", "weight", "bias"), options)

    tensors = {"x": _normal(rows, d), "weight": _normal(vocab, d) / d**0.5, "target": _targets(rows, vocab)}
    yield Case("linear_cross_entropy", f"{rows} x {d} x {vocab}", tensors, ("x", "weight"))
    yield case("bias, smoothing, z", label_smoothing=0.1, z_loss=1e-3)
    yield case("softcap 2, sum, ignored", 7, softcap=2.0, reduction="sum", ignore_index=7)
    yield case("each row, its lse", reduction="none", return_lse=True, num_chunks=3)


def _cross_entropy(scale: int) -> Iterator[Case]:
    rows, vocab = 12 * scale, 100 * scale + 1

    def case(label: str, size: float = 1.0, ignored: int = -100, **options: Any) -> Case:
        tensors = {"logits": _normal(rows, vocab) * size, "target": _targets(rows, vocab, ignored)}
        return Case("cross_entropy", label, tensors, ("logits",), options)

    def in_place(functions: ModuleType, logits: Tensor, target: Tensor) -> Tensor:
        return functions.cross_entropy(logits * 1.0, target, inplace=True)

    yield case(f"{rows} x {vocab}")
    yield case("logits of 100, sum", 40.0, reduction="sum")
    yield case("smoothing, z, softcap 2", label_smoothing=0.1, z_loss=1e-3, softcap=2.0)
    yield case("each row, its lse", 3.0, 7, reduction="none", return_lse=True, ignore_index=7)
    tensors = {"logits": _normal(rows, vocab), "target": _targets(rows, vocab)}
    yield Case("cross_entropy", "in place", tensors, ("logits",), call=in_place)


CASES: dict[str, Callable[[int], Iterator[Case]]] = {
    "flash_attention": _attention,
    "scaled_dot_product_attention": _sdpa,
    "attention_weights": _attention_weights,
    "layer_norm": _layer_norm,
    "add_layer_norm": _add_layer_norm,
    "linear_gelu": _linear_gelu,
    "gelu_ffn": _gelu_ffn,
    "linear_cross_entropy": _linear_cross_entropy,
    "cross_entropy": _cross_entropy,
}
