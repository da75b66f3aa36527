"""Any loss: fused with its product, and on logits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="property-based tests need hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from .harness import Tensors, compare, dtypes, fuzz, seeds

classes = st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 129, 1030]))


@st.composite
def settings(draw):
    return {
        "ignore_index": draw(st.sampled_from([-100, 0])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "z_loss": draw(st.sampled_from([0.0, 1e-2])),
        "softcap": draw(st.sampled_from([None, None, 5.0])),
        "return_lse": draw(st.booleans()),
    }


def targets(tensors: Tensors, N: int, V: int, ignore_index: int, ignored: bool) -> torch.Tensor:
    target = tensors.integers(0, V, (N,))
    return torch.where(tensors.integers(0, 3, (N,)) == 0, ignore_index, target) if ignored else target


def results(value) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


@fuzz(9)
@given(
    seed=seeds,
    dtype=dtypes,
    N=st.integers(1, 20),
    d=st.integers(1, 40),
    V=classes,
    options=settings(),
    ignored=st.booleans(),
    has_bias=st.booleans(),
    num_chunks=st.sampled_from([None, 1, 3]),
    layout=Tensors.layouts,
    wanted=st.sets(st.sampled_from(["x", "weight", "bias"])),
)
def test_linear_cross_entropy(device, seed, dtype, N, d, V, options, ignored, has_bias, num_chunks, layout, wanted):
    from fastgpt.kernels import linear_cross_entropy, reference

    tensors = Tensors(seed, device)
    inputs = {
        "x": tensors.normal((N, d), dtype, layout),
        "weight": tensors.normal((V, d), dtype, scale=d**-0.5),
        "bias": tensors.normal((V,), dtype) if has_bias else None,
    }
    target = targets(tensors, N, V, options["ignore_index"], ignored)
    compare(
        lambda x, w, b: results(linear_cross_entropy(x, w, target, b, **options, num_chunks=num_chunks)),
        lambda x, w, b: results(reference.linear_cross_entropy(x, w, target, b, **options)),
        inputs, [n for n in wanted if inputs[n] is not None], ["loss", "lse"][: 1 + options["return_lse"]],
        tensors,
    )  # fmt: skip


@fuzz(9)
@given(
    seed=seeds,
    dtype=dtypes,
    N=st.integers(1, 20),
    V=classes,
    options=settings(),
    ignored=st.booleans(),
    layout=Tensors.layouts,
    wants=st.booleans(),
)
def test_cross_entropy(device, seed, dtype, N, V, options, ignored, layout, wants):
    from fastgpt.kernels import cross_entropy, reference

    tensors = Tensors(seed, device)
    logits = tensors.normal((N, V), dtype, layout, scale=3.0)
    target = targets(tensors, N, V, options["ignore_index"], ignored)
    compare(
        lambda x: results(cross_entropy(x, target, **options)),
        lambda x: results(reference.cross_entropy(x, target, **options)),
        {"logits": logits}, ["logits"] if wants else [], ["loss", "lse"][: 1 + options["return_lse"]], tensors,
    )  # fmt: skip
