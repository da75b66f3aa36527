"""Any attention that `flash_attention` accepts."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="property-based tests need hypothesis")
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.philox import keep_mask

from .harness import Tensors, compare, dtypes, fuzz, seeds

lengths = st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 80]))


@st.composite
def masks(draw):
    """(causal, window, padding, documents): which conditions narrow what a query sees."""
    window = draw(st.one_of(st.none(), st.integers(1, 70), st.tuples(st.integers(-1, 40), st.integers(-1, 40))))
    return draw(st.booleans()), window, draw(st.booleans()), draw(st.booleans())


@fuzz(10)
@given(
    seed=seeds,
    dtype=dtypes,
    B=st.integers(1, 2),
    H_kv=st.integers(1, 2),
    group=st.integers(1, 2),
    T_q=lengths,
    extra=st.integers(-3, 30),
    D=st.sampled_from([1, 8, 16, 20, 40, 64]),
    mask=masks(),
    dropout_p=st.sampled_from([0.0, 0.0, 0.25]),
    layout=st.sampled_from(["packed", "heads-last", "contiguous"]),
    softmax_scale=st.sampled_from([None, 0.3, 0.0, -0.2]),
    wanted=st.sets(st.sampled_from("qkv")),
)
def test_attention(device, seed, dtype, B, H_kv, group, T_q, extra, D, mask, dropout_p, layout, softmax_scale, wanted):
    from fastgpt.kernels import flash_attention, reference
    from fastgpt.kernels._random import new_seed

    causal, window, padding, documents = mask
    T_k, H = max(1, T_q + extra), H_kv * group
    if documents:
        T_k = max(T_k, T_q)
    tensors = Tensors(seed, device)
    if layout == "packed" and T_k == T_q and group == 1:
        qkv = tensors.normal((B, T_q, 3, H, D), dtype)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    elif layout == "heads-last":
        q, k, v = (tensors.normal((B, T, h, D), dtype).transpose(1, 2) for T, h in ((T_q, H), (T_k, H_kv), (T_k, H_kv)))
    else:
        q, k, v = (tensors.normal((B, h, T, D), dtype) for T, h in ((T_q, H), (T_k, H_kv), (T_k, H_kv)))
    options = {"causal": causal, "window": window, "softmax_scale": softmax_scale, "dropout_p": dropout_p}
    if padding:
        options["key_lengths"] = tensors.integers(0, T_k + 1, (B,))
        options["key_starts"] = tensors.integers(0, T_k // 2 + 1, (B,))
    if documents:
        options["document_ids"] = tensors.integers(0, 3, (B, T_k)).sort(dim=1).values

    # dq = Σ_j p (dp - delta) k. Where a row sees a single key the difference is 0, and what is left of it is rounding,
    # which no bound relative to another implementation's rounding can judge: most rows must see more.
    seen = {
        name: options[name]
        for name in ("causal", "window", "key_lengths", "key_starts", "document_ids")
        if name in options
    }
    assume((reference.attention_mask(T_q, T_k, **seen, device=device).sum(-1) > 1).float().mean() > 0.5)

    def ours(q, k, v):
        torch.manual_seed(seed)
        return flash_attention(q, k, v, **options, return_lse=True)

    dropped = None
    if dropout_p:
        torch.manual_seed(seed)
        dropped = keep_mask(new_seed(device), dropout_p, B * H, T_q, T_k).view(B, H, T_q, T_k).to(device)

    def truth(q, k, v):
        return reference.flash_attention(q, k, v, **options, dropout_mask=dropped, return_lse=True)

    compare(ours, truth, {"q": q, "k": k, "v": v}, sorted(wanted), ["out", "lse"], tensors)
