"""What the machine executes: every kernel of every family, forward and backward, through the public operators.

Shapes are as small as they can be and still enter every loop: a few tiles and a rest in each dimension, on a GPU of few
multiprocessors, so that persistent programs have several tiles each. From 256 rows on sm_90 loads by TMA.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastgpt.kernels import reference
from fastgpt.kernels.attention.host import document_ranges
from fastgpt.kernels.attention.ladder import attention_of
from fastgpt.kernels.linear_cross_entropy.launch import check_targets
from fastgpt.tools.verify_cases import Case

from .attention_cases import SHARP, attention_case, document_ids, hopper_trials, qkv
from .trials import Trial

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}


def trials() -> list[Trial]:
    """All of them, in the order of the families."""
    families = _attention(), hopper_trials(), _attention_weights(), _layer_norm(), _ffn(), _linear_cross_entropy()
    found = list(itertools.chain(*families))
    assert len({trial.name for trial in found}) == len(found), "two trials of one name"
    return found


def _trial(family: str, function: str, dtype: str, label: str, make: Callable[..., Case], **options: Any) -> Trial:
    name = f"{function} {dtype} {label}"
    return Trial(family, name, make, DTYPES[dtype], tf32=dtype == "tf32", **options)


# ---- attention -------------------------------------------------------------------------------------------------------


def _attention(family: str = "attention") -> Iterator[Trial]:
    def trial(dtype: str, label: str, *, sms: int = 4, sample: bool = False, **call: Any) -> Trial:
        make = functools.partial(attention_case, label, **call)
        return _trial(family, "attention", dtype, label, make, num_sms=sms, sample=sample)

    for dtype in DTYPES:
        yield trial(dtype, "d64 causal", T=131)
    for dtype in ("bf16", "fp16"):
        yield trial(dtype, "d64 all keys", T=100, causal=False)
        yield trial(dtype, "d64 long, lse", T=515, return_lse=True, sample=dtype == "bf16")
        yield trial(dtype, "d128 long", T=300, D=128)
    for dtype, D in (
        ("bf16", 128), ("fp32", 128), ("bf16", 112), ("bf16", 80), ("bf16", 72), ("bf16", 16), ("tf32", 80),
    ):  # fmt: skip
        yield trial(dtype, f"d{D} causal", T=140, D=D)
    yield trial("bf16", "d256 causal", T=70, D=256)
    yield trial("bf16", "d256 long", T=300, D=256, H=1)
    yield trial("bf16", "d80 long, in two parts", T=300, D=80)
    for label, T, T_k in SHARP:
        yield trial("bf16", f"d64 sharp scores, {label}", T=T, T_k=T_k, H=1, sms=1, sharp=4.0)
    yield trial("bf16", "d64 long, small tiles", T=300, sms=132)
    yield trial("bf16", "d128 long, small tiles", T=270, D=128, sms=132)
    for group in (2, 3, 5):
        yield trial("bf16", f"d64 {group} query heads a key head", T=150, H=group * 2, H_kv=2)
        yield trial("bf16", f"d64 {group} query heads a key head, long", T=280, H=group, H_kv=1, sample=group == 3)
    yield trial("fp16", "d64 3 query heads a key head, fewer than a tile", T=20, H=3, H_kv=1)
    yield trial("bf16", "d128 3 query heads a key head, all keys", T=300, D=128, H=3, H_kv=1, causal=False)
    yield trial("bf16", "d64 window 70", T=300, window=70)
    yield trial("bf16", "d64 window 40 left, 25 right", T=200, causal=False, window=(40, 25))
    yield trial("bf16", "d64 padded left and right", T=150, B=2, starts=[11, 0], lengths=[150, 37])
    yield trial("bf16", "d64 padded, all keys, long", T=300, B=2, H=1, causal=False, starts=[70, 0], lengths=[300, 129])
    yield trial("bf16", "d64 documents by id", T=200, documents=67)
    yield trial(
        "fp16", "d128 documents end to end, window", T=140, D=128, ends=[0, 31, 32, 140], window=50, sample=True
    )
    yield trial("bf16", "d64 documents by id, long", T=300, documents=90)
    yield trial("bf16", "d64 documents that overlap, long", T=300, documents=30, overlap=60)
    yield trial("bf16", "d64 one query", T=1, T_k=200, H=4, H_kv=2)
    yield trial("bf16", "d64 one query and one key", T=1)
    yield trial("fp16", "d64 few queries, many keys", T=9, T_k=300)
    yield trial("bf16", "d64 more queries than keys", T=150, T_k=80)
    yield trial("bf16", "d64 scale below 0", T=70, softmax_scale=-0.2)
    for dtype in ("bf16", "fp32"):
        yield trial(dtype, "d64 dropout", T=140, dropout_p=0.2)
    yield trial("bf16", "d64 dropout, 2 query heads a key head, long", T=300, H_kv=1, dropout_p=0.2)
    yield trial("bf16", "d128 dropout", T=100, D=128, dropout_p=0.2)
    yield _trial(family, "document_ranges", "fp32", "of queries", _ranges_case)
    for rung in ("triton_forward", "tile_skipping"):
        ladder = functools.partial(_ladder_case, rung)
        yield _trial(family, "ladder", "bf16", rung, ladder, sample=True)


def _ranges_case(block: int = 128) -> Case:
    """What each tile is told of documents, by itself: attention is right with ranges that are too wide, too."""

    def call(functions: ModuleType, document_ids: Tensor, one: Tensor) -> Tensor:
        T = document_ids.shape[1]
        if functions is not reference:
            return document_ranges(document_ids, T, T, block, of_keys=False) * one
        ranges = [torch.stack([_range_of(tile, ids) for tile in ids.split(block)]) for ids in document_ids]
        return torch.stack(ranges) * one

    T = 3 * block - 1  # odd, so that neighbouring columns go to neighbouring threads
    sequences = [document_ids(T, 30, 60)]
    for place in range(0, block - 1, 3):  # a row has a document of its own, which a column of another tile belongs to
        for own in (3, 9):
            ids = torch.full((T,), 7)
            ids[: block - 1], ids[place], ids[block + 2 * place] = 5, own, own
            sequences += [ids, ids.flip(0)]
    for tokens in range(block, block + 32):
        sequences.append((torch.arange(T) >= tokens).int())
    ids = torch.stack([ids.to(torch.int32) for ids in sequences])
    return Case("document_ranges", "", {"document_ids": ids} | _ONE, (), call=call)


_ONE = {"one": torch.ones((), dtype=torch.float64)}  # the budget asks what real numbers the results are made of


def _range_of(tile: Tensor, ids: Tensor) -> Tensor:
    """(first column, one past the last, whether all is one document) of those between the tile's least and greatest."""
    inside = ((ids >= tile.min()) & (ids <= tile.max())).nonzero()
    first, end = int(inside.min()), int(inside.max()) + 1
    return torch.tensor([first, end, tile.min() == tile.max() and len(inside) == end - first])


def _ladder_case(rung: str) -> Case:
    def call(functions: ModuleType, **tensors: Tensor) -> Tensor:
        return reference.flash_attention(**tensors) if functions is reference else attention_of(rung)(**tensors)

    return Case("flash_attention", rung, qkv(1, 1, 1, 270, 270, 64), (), call=call)


def _attention_weights(family: str = "attention_weights") -> Iterator[Trial]:
    def trial(dtype: str, label: str, *, sample: bool = False, **call: Any) -> Trial:
        return _trial(family, family, dtype, label, functools.partial(_weights_case, label, **call), sample=sample)

    for dtype in ("bf16", "fp16", "fp32", "tf32"):
        yield trial(dtype, "d64 causal", T=90, sample=dtype == "fp16")
    yield trial(
        "bf16", "d128 heads and rows, window", T=150, H=4, D=128, heads=[3, 1], rows=slice(2, None, 3), window=40
    )
    yield trial("bf16", "d80 the last row", T=150, D=80, rows=slice(-1, None))


def _weights_case(
    label: str, *, T: int, H: int = 2, D: int = 64, heads: list[int] | None = None, rows: slice | None = None,
    **masks: Any,
) -> Case:  # fmt: skip
    """With an lse that carries its own graph: the gradient of a softmax."""

    def call(functions: ModuleType, q: Tensor, k: Tensor) -> Tensor:
        _, lse = functions.flash_attention(q, k, k, return_lse=True, **masks)
        return functions.attention_weights(q, k, lse, heads=heads, rows=rows, **masks)

    q_and_k = {name: x for name, x in qkv(1, H, 2, T, T, D).items() if name != "v"}
    return Case("attention_weights", label, q_and_k, ("q", "k"), call=call)


# ---- layer norm ------------------------------------------------------------------------------------------------------


def _layer_norm(family: str = "layer_norm") -> Iterator[Trial]:
    def plain(dtype: str, label: str, M: int, N: int, *, sample: bool = False, **call: Any) -> Trial:
        label = f"{M} x {N}{label and ', ' + label}"
        make = functools.partial(_layer_norm_case, label, M, N, **call)
        return _trial(family, "layer_norm", dtype, label, make, sample=sample)

    def added(dtype: str, label: str, M: int, N: int, *, sample: bool = False, **call: Any) -> Trial:
        label = f"{M} x {N}{label and ', ' + label}"
        make = functools.partial(_add_layer_norm_case, label, M, N, **call)
        return _trial(family, "add_layer_norm", dtype, label, make, sample=sample)

    for dtype in ("bf16", "fp16", "fp32"):
        yield plain(dtype, "", 37, 768, sample=dtype == "bf16")
    yield plain("fp16", "", 21, 1024)
    yield plain("bf16", "an odd width", 37, 1001)
    for dtype in ("bf16", "fp32"):
        yield plain(dtype, "narrow", 37, 17)
    yield plain("fp32", "narrow", 400, 31)
    yield plain("bf16", "one number", 5, 1)
    yield plain("bf16", "one row", 1, 512)
    yield plain("bf16", "float32 weight", 13, 4096, wide=("weight", "bias"))
    yield plain("bf16", "no weight, no bias", 11, 300, affine=())
    yield plain("fp16", "no bias, eps 0.1", 11, 300, affine=("weight",), eps=0.1)
    yield plain("bf16", "many rows", 1000, 256)
    yield plain("fp32", "three tiles of rows a program", 19000, 24)
    yield plain("bf16", "backward holds its rows", 3, 9000)
    yield plain("fp32", "backward holds its rows", 2, 10001)
    yield plain("fp32", "weight's sums apart", 70, 13000)
    yield plain("bf16", "forward holds its rows", 2, 33001, sample=True)
    yield plain("fp16", "forward holds its rows", 2, 40960)
    yield plain("fp32", "forward holds its rows", 2, 33001)
    yield plain("bf16", "long rows", 3, 65544)
    yield plain("bf16", "float32 result", 7, 768, wide_result=True)

    for dtype in ("bf16", "fp16", "fp32"):
        yield added(dtype, "", 37, 768)
    yield added("bf16", "float32 residual", 23, 1600, wide=("residual",))
    yield added("bf16", "float32 residual, an odd width", 23, 517, wide=("residual",))
    yield added("bf16", "dropout", 37, 768, dropout_p=0.3)
    yield added("fp32", "dropout, narrow", 9, 25, dropout_p=0.3, sample=True)
    yield added("bf16", "backward holds its rows", 3, 5000, sample=True)
    yield added("fp32", "backward holds its rows, three a program", 200, 4500)
    yield added("bf16", "dropout, backward holds its rows", 3, 9001, dropout_p=0.3)
    yield added("bf16", "dropout, long rows", 2, 16500, dropout_p=0.3, sample=True)
    yield added("fp32", "dropout, long rows", 2, 16500, dropout_p=0.3)
    yield added("bf16", "float32 residual, long rows", 2, 33000, wide=("residual",))


def _layer_norm_case(
    label: str, M: int, N: int, affine: tuple[str, ...] = ("weight", "bias"), wide: tuple[str, ...] = (),
    wide_result: bool = False, **options: Any,
) -> Case:  # fmt: skip
    def call(functions: ModuleType, x: Tensor, **weight_and_bias: Tensor) -> Tensor:
        out_dtype = torch.promote_types(x.dtype, torch.float32) if wide_result else None
        return functions.layer_norm(x, N, **weight_and_bias, out_dtype=out_dtype, **options)

    tensors = {"x": torch.randn(M, N, dtype=torch.float64) * 2 + 0.5}
    tensors |= {name: torch.randn(N, dtype=torch.float64) for name in affine}
    return Case("layer_norm", label, tensors, tuple(tensors), call=call, wide=wide)


def _add_layer_norm_case(label: str, M: int, N: int, wide: tuple[str, ...] = (), dropout_p: float = 0.0) -> Case:
    tensors = {name: torch.randn(M, N, dtype=torch.float64) for name in ("x", "residual")}
    tensors |= {name: torch.randn(N, dtype=torch.float64) for name in ("weight", "bias")}
    dropped = (M, N) if dropout_p else None
    return Case("add_layer_norm", label, tensors, tuple(tensors), wide=wide, dropped=dropped, dropout_p=dropout_p)


# ---- FFN -------------------------------------------------------------------------------------------------------------


def _ffn(family: str = "ffn") -> Iterator[Trial]:
    def trial(dtype: str, label: str, *, sample: bool = False, sms: int = 4, **call: Any) -> Trial:
        make = functools.partial(_ffn_case, label, **call)
        return _trial(family, "ffn", dtype, label, make, num_sms=sms, sample=sample)

    def up(dtype: str, label: str, **call: Any) -> Trial:
        return _trial(family, "linear_gelu", dtype, label, functools.partial(_linear_gelu_case, label, **call))

    for dtype in ("bf16", "fp16"):
        yield trial(dtype, "d128", M=150, d=128)
    yield trial("bf16", "d128 tanh", M=150, d=128, approximate="tanh")
    yield trial(
        "bf16",
        "d64 tanh, residual, dropout",
        M=150,
        d=64,
        approximate="tanh",
        residual=True,
        dropout_p=0.3,
        sample=True,
    )
    yield trial("bf16", "d64 float32 residual", M=70, d=64, residual=True, wide=("residual",))
    yield trial("bf16", "d64 recompute", M=150, d=64, recompute=True)
    yield trial("bf16", "d67 odd sizes", M=77, d=67, hidden=131)
    yield trial("bf16", "d72 aligned, no whole tile", M=77, d=72, hidden=136)
    yield trial("bf16", "d64 no biases", M=70, d=64, biases=False)
    yield trial("bf16", "d64 many tokens, 2 multiprocessors", M=600, d=64, sms=2)
    yield trial("bf16", "d320, several tiles a program", M=150, d=320, hidden=256, sms=1)
    yield trial("bf16", "d64 many multiprocessors", M=300, d=64, sms=132)
    for dtype in ("fp32", "tf32"):
        yield trial(dtype, "d64", M=70, d=64)
    yield trial("tf32", "d67 odd sizes, residual, dropout", M=77, d=67, hidden=131, residual=True, dropout_p=0.3)
    yield trial("bf16", "d128 by cuBLAS", M=150, d=128, path="cublas")
    yield trial("fp32", "d64 by cuBLAS, dropout", M=77, d=64, path="cublas", dropout_p=0.3, sample=True)
    yield trial("bf16", "d64 one token", M=1, d=64)
    yield up("bf16", "65 x 64 x 136", rows=65, d_in=64, d_out=136)
    yield up("fp32", "65 x 33 x 47, tanh, by cuBLAS", rows=65, d_in=33, d_out=47, approximate="tanh", path="cublas")


def _ffn_case(
    label: str, *, M: int, d: int, hidden: int | None = None, biases: bool = True, residual: bool = False,
    wide: tuple[str, ...] = (), dropout_p: float = 0.0, path: str = "triton", **options: Any,
) -> Case:  # fmt: skip
    h = hidden or 4 * d
    tensors = {"x": _normal(M, d), "w1": _normal(h, d) / d**0.5, "w2": _normal(d, h) / h**0.5}
    tensors |= {"b1": _normal(h), "b2": _normal(d)} if biases else {}
    tensors |= {"residual": _normal(M, d)} if residual else {}
    options |= {"path": path} | ({} if biases else {"b1": None, "b2": None})
    dropped = (M, d) if dropout_p else None
    return Case("gelu_ffn", label, tensors, tuple(tensors), options, wide=wide, dropped=dropped, dropout_p=dropout_p)


def _linear_gelu_case(label: str, *, rows: int, d_in: int, d_out: int, path: str = "triton", **options: Any) -> Case:
    tensors = {"x": _normal(rows, d_in), "w": _normal(d_out, d_in) / d_in**0.5, "b": _normal(d_out)}
    return Case("linear_gelu", label, tensors, tuple(tensors), {"path": path, **options})


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# ---- loss ------------------------------------------------------------------------------------------------------------


def _linear_cross_entropy(family: str = "linear_cross_entropy") -> Iterator[Trial]:
    def linear(dtype: str, label: str, *, sample: bool = False, **call: Any) -> Trial:
        make = functools.partial(_linear_loss_case, label, **call)
        return _trial(family, family, dtype, label, make, sample=sample)

    def logits(dtype: str, label: str, *, sample: bool = False, **call: Any) -> Trial:
        make = functools.partial(_loss_case, label, **call)
        return _trial(family, "cross_entropy", dtype, label, make, sample=sample)

    for dtype in ("bf16", "fp16", "fp32"):
        yield linear(dtype, "mean", sample=dtype == "bf16")
    yield linear("bf16", "each row, its lse: logits made again", reduction="none", return_lse=True)
    yield linear("fp16", "bias, smoothing, z-loss, chunks", bias=True, label_smoothing=0.1, z_loss=1e-3, num_chunks=2)
    yield linear("fp32", "softcap, sum, ignored", softcap=5.0, reduction="sum", ignore_index=7)
    yield linear("bf16", "odd vocabulary", V=503)
    yield linear("bf16", "GPT-2's vocabulary", V=50257, N=5)
    yield linear("fp32", "GPT-2's vocabulary", V=50257, N=3)
    yield linear("bf16", "GPT-2's vocabulary, each row", V=50257, N=5, reduction="none")
    yield linear("bf16", "one great logit a row", peaks=(0, 0, 499, 255, 256, 248, 31, 128, 480))
    yield linear(
        "bf16", "GPT-2's vocabulary, each row, one great logit", V=50257, N=5, reduction="none",
        peaks=(0, 0, 8191, 4224, 50256),
    )  # fmt: skip
    yield linear("bf16", "a row in registers, 8192 classes", V=8100, N=5)
    for dtype in ("bf16", "fp32"):
        yield logits(dtype, "512 classes", V=512, sample=dtype == "fp32")
    for V in (500, 512):
        yield logits("bf16", f"{V} classes in place", V=V, inplace=True)
    yield logits(
        "fp16", "1003 classes, smoothing, z-loss, softcap", V=1003, label_smoothing=0.1, z_loss=1e-3, softcap=2.0
    )
    yield logits(
        "bf16",
        "GPT-2's vocabulary in place, each row, its lse",
        V=50257,
        N=5,
        inplace=True,
        reduction="none",
        return_lse=True,
    )
    yield logits("bf16", "one class", V=1, N=3)
    yield logits("fp32", "1200 rows of 3 classes", V=3, N=1200)
    yield _trial(family, "check_targets", "fp32", "in range or not", _check_targets_case)


def _linear_loss_case(
    label: str, *, N: int = 9, d: int = 64, V: int = 500, bias: bool = False, peaks: tuple[int, ...] = (),
    **options: Any,
) -> Case:  # fmt: skip
    """peaks: of each row, the class whose logit is 200: without it a maximum is too small, and exp overflows."""
    floats = {"x": _normal(N, d), "weight": _normal(V, d) / d**0.5} | ({"bias": _normal(V)} if bias else {})
    for row, peak in zip(floats["x"], peaks, strict=False):
        floats["weight"][peak] = row * (200 / row.square().sum())
    ignored = options.get("ignore_index", -100)
    return Case("linear_cross_entropy", label, floats | _targets(N, V, ignored), tuple(floats), options)


def _loss_case(label: str, *, N: int = 9, V: int, inplace: bool = False, **options: Any) -> Case:
    """Logits that favour the target: what a race loses is its gradient. In place of a copy, which is none of a leaf."""
    target = _targets(N, V, -100)
    logits = _normal(N, V)
    logits[torch.arange(N), target["target"].clamp(min=0)] += 8.0

    def call(functions: ModuleType, logits: Tensor, target: Tensor) -> Any:
        return functions.cross_entropy(logits * 1.0 if inplace else logits, target, inplace=inplace, **options)

    return Case("cross_entropy", label, {"logits": logits} | target, ("logits",), call=call)


def _check_targets_case(N: int = 1200, V: int = 3) -> Case:
    """How many targets count, and whether all are in range: they are, or one, now here, now there, is not."""
    places = [*range(1, N, 62), 511, 512, 513, 1024]

    def call(functions: ModuleType, target: Tensor, one: Tensor) -> Tensor:
        if functions is reference:
            return torch.tensor([((target != -100).sum(), 1), *((-1, 0) for place in places)]) * one
        spoilt = [target.index_fill(0, torch.tensor(place), V) for place in places]
        return torch.tensor([_counts(target, V) for target in [target, *spoilt]]) * one

    return Case("check_targets", "", _targets(N, V, -100) | _ONE, (), call=call)


def _counts(target: Tensor, V: int) -> list[int]:
    try:
        return check_targets(target, V, -100).tolist()
    except IndexError:
        return [-1, 0]


def _targets(rows: int, vocab: int, ignored: int) -> dict[str, Tensor]:
    target = torch.randint(0, vocab, (rows,))
    target[1] = ignored  # a row that does not count
    return {"target": target}
