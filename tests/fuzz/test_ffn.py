"""Any GELU-FFN, by Triton's products and by cuBLAS's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="property-based tests need hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from tests.support.philox import keep_mask

from .harness import Tensors, compare, dtypes, fuzz, seeds

sizes = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 130]))
paths = st.sampled_from(["auto", "triton", "cublas"])
approximations = st.sampled_from(["none", "tanh"])


@fuzz(8)
@given(
    seed=seeds,
    dtype=dtypes,
    leading=st.lists(st.integers(1, 9), max_size=2),
    d_in=sizes,
    d_out=sizes,
    has_bias=st.booleans(),
    approximate=approximations,
    path=paths,
    layout=Tensors.layouts,
    wanted=st.sets(st.sampled_from("xwb")),
)
def test_linear_gelu(device, seed, dtype, leading, d_in, d_out, has_bias, approximate, path, layout, wanted):
    from fastgpt.kernels import linear_gelu, reference

    tensors = Tensors(seed, device)
    inputs = {
        "x": tensors.normal((*leading, d_in), dtype, layout),
        "w": tensors.normal((d_out, d_in), dtype, scale=d_in**-0.5),
        "b": tensors.normal((d_out,), dtype) if has_bias else None,
    }
    compare(
        lambda x, w, b: [linear_gelu(x, w, b, approximate, path=path)],
        lambda x, w, b: [reference.linear_gelu(x, w, b, approximate)],
        inputs, [n for n in wanted if inputs[n] is not None], ["y"], tensors,
    )  # fmt: skip


@fuzz(8)
@given(
    seed=seeds,
    dtype=dtypes,
    M=sizes,
    d=st.integers(1, 40),
    d_hidden=sizes,
    has=st.tuples(st.booleans(), st.booleans()),
    approximate=approximations,
    path=paths,
    recompute=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.3]),
    residual_dtype=st.sampled_from([None, "x", "float32"]),
    layout=Tensors.layouts,
    wanted=st.sets(st.sampled_from(["x", "w1", "b1", "w2", "b2", "residual"])),
)
def test_gelu_ffn(
    device, seed, dtype, M, d, d_hidden, has, approximate, path, recompute, dropout_p, residual_dtype, layout, wanted
):
    from fastgpt.kernels import gelu_ffn, reference
    from fastgpt.kernels._random import new_seed

    tensors = Tensors(seed, device)
    residual = None
    if residual_dtype is not None:
        residual = tensors.normal((M, d), dtype if residual_dtype == "x" else torch.float32, layout)
    inputs = {
        "x": tensors.normal((M, d), dtype, layout),
        "w1": tensors.normal((d_hidden, d), dtype, scale=d**-0.5),
        "b1": tensors.normal((d_hidden,), dtype) if has[0] else None,
        "w2": tensors.normal((d, d_hidden), dtype, scale=d_hidden**-0.5),
        "b2": tensors.normal((d,), dtype) if has[1] else None,
        "residual": residual,
    }
    mask = None
    if dropout_p:
        torch.manual_seed(seed)
        mask = keep_mask(new_seed(device), dropout_p, 1, M, d).view(M, d).to(device)

    def ours(x, w1, b1, w2, b2, residual):
        torch.manual_seed(seed)
        options = {"recompute": recompute, "dropout_p": dropout_p, "residual": residual, "path": path}
        return [gelu_ffn(x, w1, b1, w2, b2, approximate, **options)]

    def truth(x, w1, b1, w2, b2, residual):
        return [
            reference.gelu_ffn(
                x, w1, b1, w2, b2, approximate, dropout_p=dropout_p, residual=residual, dropout_mask=mask
            )
        ]

    compare(ours, truth, inputs, [n for n in wanted if inputs[n] is not None], ["y"], tensors)
