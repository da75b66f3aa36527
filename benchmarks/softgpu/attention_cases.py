"""Calls of attention: how one is made, and those that Hopper's kernels execute."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastgpt.kernels import reference
from fastgpt.tools.verify_cases import Case

from .trials import Trial

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def hopper_trials() -> Iterator[Trial]:
    """The kernels in Gluon: every mask and size that they take, one consumer and several, one item a CTA and many.

    How many consumers a CTA has follows from how many multiprocessors there are to fill.
    """

    def trial(
        dtype: str, label: str, *, sms: int = 4, sample: bool = False, case: Callable[..., Case] = attention_case,
        **call: Any,
    ) -> Trial:  # fmt: skip
        label = f"{dtype} {label}"
        make = functools.partial(case, label, **call)
        return Trial(
            "attention", f"hopper {label}", make, DTYPES[dtype], num_sms=sms, capabilities=(90,), path="gluon",
            sample=sample,
        )  # fmt: skip

    for dtype in DTYPES:
        yield trial(dtype, "d64 causal", T=131)
        yield trial(dtype, "d64 all keys", T=100, causal=False)
        yield trial(dtype, "d128 long", T=300, D=128)
    yield trial("bf16", "d64 long, lse", T=515, return_lse=True, sample=True)
    yield trial("bf16", "d64 long, one multiprocessor", T=391, sms=1)
    yield trial("bf16", "d64 long, many multiprocessors", T=391, sms=132)
    yield trial("bf16", "d128 long, many multiprocessors", T=270, D=128, sms=132)
    yield trial("bf16", "d128 all keys, one multiprocessor", T=300, D=128, sms=1, causal=False)
    for D in (16, 72, 80, 96, 112, 192, 256):
        yield trial("bf16", f"d{D} causal", T=140, D=D)
    for D in (96, 192, 256):
        yield trial("fp16", f"d{D} all keys, one head of 270", T=270, D=D, H=1, causal=False)
    for label, T, T_k in SHARP:
        yield trial("bf16", f"d64 sharp scores, {label}", T=T, T_k=T_k, H=1, sms=1, sharp=4.0)
    for group in (2, 3, 5):
        yield trial("bf16", f"d64 {group} query heads a key head", T=150, H=group * 2, H_kv=2)
    yield trial("bf16", "d64 3 query heads a key head, long", T=280, H=3, H_kv=1, sample=True)
    yield trial("bf16", "d128 3 query heads a key head, all keys", T=300, D=128, H=3, H_kv=1, causal=False)
    yield trial("fp16", "d64 3 query heads a key head, fewer than a tile", T=20, H=3, H_kv=1)
    yield trial("bf16", "d64 window 70", T=300, window=70)
    yield trial("bf16", "d64 window 40 left, 25 right", T=200, causal=False, window=(40, 25))
    yield trial("bf16", "d128 window 20, one multiprocessor", T=400, D=128, H=1, window=20, sms=1)
    yield trial("bf16", "d64 padded left and right", T=150, B=2, starts=[11, 0], lengths=[150, 37])
    yield trial("bf16", "d64 padded, all keys, long", T=300, B=2, H=1, causal=False, starts=[70, 0], lengths=[300, 129])
    yield trial("bf16", "d64 a sequence without a key", T=90, B=2, causal=False, starts=[0, 0], lengths=[0, 90])
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
    yield trial("bf16", "d128 more queries than keys, all of them", T=290, T_k=70, D=128, causal=False)
    yield trial("bf16", "d64 scale below 0", T=70, softmax_scale=-0.2)
    yield trial("bf16", "d64 hidden keys hold NaN", T=300, case=_hidden_case, value=math.nan, sample=True)
    yield trial("fp16", "d96 hidden keys hold inf", T=200, D=96, case=_hidden_case, value=math.inf)
    yield trial("bf16", "d64 later keys hold NaN", T=200, case=_later_case, value=math.nan)
    yield trial("bf16", f"d64 {LATER}", T=400, H=1, sms=1, case=_later_case, value=math.nan)
    yield trial("fp16", "d128 later keys hold inf", T=140, D=128, case=_later_case, value=math.inf)


# One is small, but goes round each loop more often than that has stages; the others have rows and columns to spare.
LATER = "later keys hold NaN, one head of 400"
SHARP = (("one head of 400", 400, 400), ("560 queries of 400 keys", 560, 400), ("384 queries of 560 keys", 384, 560))


def attention_case(
    label: str, *, T: int, T_k: int | None = None, B: int = 1, H: int = 2, H_kv: int | None = None, D: int = 64,
    starts: list[int] | None = None, lengths: list[int] | None = None, documents: int | None = None,
    ends: list[int] | None = None, dropout_p: float = 0.0, sharp: float = 1.0, overlap: int = 0, **options: Any,
) -> Case:  # fmt: skip
    """q, k and v as a model's projections leave them: (B, T, H, D) in memory.

    documents  tokens in each; their tokens lie up to `overlap` tokens away from where they would end to end
    sharp      a factor of q: rows then have log-sum-exps far apart, so that no two of them can be mistaken
    """
    tensors = qkv(B, H, H_kv or H, T, T_k or T, D)
    tensors["q"] *= sharp
    integers = {"key_starts": starts, "key_lengths": lengths, "cu_seqlens": ends}
    tensors |= {name: torch.tensor(x, dtype=torch.int32) for name, x in integers.items() if x is not None}
    if documents is not None:
        tensors["document_ids"] = document_ids(T_k or T, documents, overlap).expand(B, -1)
    dropped = (B, H, T, T_k or T) if dropout_p else None
    return Case("flash_attention", label, tensors, ("q", "k", "v"), options, dropped=dropped, dropout_p=dropout_p)


def document_ids(T: int, tokens: int, overlap: int) -> Tensor:
    return ((torch.arange(T) + torch.randint(overlap + 1, (T,))) // tokens).to(torch.int32)


def qkv(B: int, H: int, H_kv: int, T: int, T_k: int, D: int) -> dict[str, Tensor]:
    shapes = {"q": (B, T, H, D), "k": (B, T_k, H_kv, D), "v": (B, T_k, H_kv, D)}
    return {name: torch.randn(shape, dtype=torch.float64).transpose(1, 2) for name, shape in shapes.items()}


def _hidden_case(label: str, *, T: int, D: int = 64, value: float) -> Case:
    """Keys before the sequence's first and after its last are `value`, in k and v: nobody may learn of them."""
    start, end = T // 5, T - T // 4
    bounds = {"key_starts": start, "key_lengths": end}
    bounds = {name: torch.tensor([n], dtype=torch.int32) for name, n in bounds.items()}
    hidden = (torch.arange(T) < start) | (torch.arange(T) >= end)

    def call(functions: ModuleType, q: Tensor, k: Tensor, v: Tensor, **masks: Tensor) -> Tensor:
        return functions.flash_attention(q, *_spoilt(functions, hidden, value, k, v), causal=False, **masks)

    return Case("flash_attention", label, qkv(1, 2, 2, T, T, D) | bounds, ("q", "k", "v"), call=call)


def _later_case(label: str, *, T: int, H: int = 2, D: int = 64, value: float) -> Case:
    """A key and a value near the end are `value`: the rows before it, which do not see them, are as ever.

    The last of four warps is the one to find it, whose word the others must hear.
    """
    at = (T - 20) // 16 * 16 + 12

    def call(functions: ModuleType, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = _spoilt(functions, torch.arange(T) == at, value, k, v)
        return functions.flash_attention(q, k, v)[:, :, :at]

    return Case("flash_attention", label, qkv(1, H, H, T, T, D), (), call=call)


def _spoilt(functions: ModuleType, where: Tensor, value: float, *tensors: Tensor) -> list[Tensor]:
    """`value` in the rows `where`, for kernels; the reference gets what else could stand there, which are numbers."""
    return [x if functions is reference else x.masked_fill(where[:, None].to(x.device), value) for x in tensors]
