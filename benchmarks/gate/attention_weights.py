"""What must compile of the attention_weights family: head_dims, dtypes, masks, and a few rows of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fastgpt.kernels.attention_weights import launch

from .rows import Row, multiplying_in

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
EVERYTHING = frozenset({"tensor_core", "wide_loads", "no_spills"})
B, H, H_KV, T = 2, 16, 4, 4096


def rows() -> Iterator[Row]:
    for head_dim in (64, 80, 128, 256):
        for dtype in (torch.bfloat16, torch.float16) if head_dim == 128 else (torch.bfloat16,):
            name = f"{NAMES[dtype]}-d{head_dim}"
            yield Row("attention_weights", f"{name}-causal", _call(dtype, head_dim), EVERYTHING)
    yield Row("attention_weights", "bf16-d128-all-masks", _call(torch.bfloat16, 128, masks=True), EVERYTHING)
    yield Row("attention_weights", "bf16-d128-last-rows", _call(torch.bfloat16, 128, count=4), EVERYTHING)
    # ieee float32 products are not for tensor cores.
    yield Row("attention_weights", "fp32-d128-causal", _call(torch.float32, 128), EVERYTHING - {"tensor_core"})
    yield Row("attention_weights", "tf32-d128-causal", multiplying_in("tf32")(_call(torch.float32, 128)), EVERYTHING)
    yield Row("attention_weights", "bf16-d20-causal", _call(torch.bfloat16, 20), frozenset({"no_spills"}))


def _call(dtype: torch.dtype, head_dim: int, *, count: int = T, masks: bool = False) -> Callable[[], None]:
    def call() -> None:
        q = torch.empty(B, T, H, head_dim, dtype=dtype, device="meta").transpose(1, 2)
        k = torch.empty(B, T, H_KV, head_dim, dtype=dtype, device="meta").transpose(1, 2)
        lse = torch.empty(B, H, T, device="meta")
        per_sequence = torch.empty(B, dtype=torch.int32, device="meta") if masks else None
        documents = torch.empty(B, T, dtype=torch.int32, device="meta") if masks else None
        launch.forward(
            q, k, lse, list(range(H)), T - count, count, 1, per_sequence, per_sequence, documents,
            head_dim**-0.5, 1024 if masks else -1, 0,
        )  # fmt: skip

    return call
