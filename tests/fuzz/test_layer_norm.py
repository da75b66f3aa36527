"""Any LayerNorm, alone and behind a residual addition."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("hypothesis", reason="property-based tests need hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from tests.support.philox import keep_mask

from .harness import Tensors, compare, dtypes, fuzz, seeds

leading = st.lists(st.integers(1, 7), max_size=2)
columns = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 256, 1000]))
ways = st.sampled_from(["table", "table", "held", "long"])


@contextlib.contextmanager
def by_way_of(way: str, in_stream: bool) -> Iterator[None]:
    """Take the kernels of long rows at short ones: held, or walked over twice; "table": whatever tiles.py says.

    The forward of the residual stream holds no row, but walks over it twice.
    """
    from fastgpt.kernels.layer_norm import tiles

    if way == "table":
        yield
        return
    held = tiles.Tile(1, 64, 4, programs=3, held=True)
    long = tiles.Tile(1, 64, 4, stages=2, long=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "forward_tile", lambda *args: long if in_stream or way == "long" else held)
        patch.setattr(tiles, "backward_tile", lambda *args: long if way == "long" else held)
        if way == "long":
            patch.setattr(tiles, "LONGEST_SUMMED", 0)
        yield


def optional_weights(tensors: Tensors, has: tuple[bool, bool], shape: tuple[int, ...], dtype: torch.dtype):
    return [tensors.normal(shape, dtype) + one if there else None for one, there in zip((1.0, 0.0), has)]


@fuzz(10)
@given(
    seed=seeds,
    dtype=dtypes,
    weight_dtype=dtypes,
    leading=leading,
    N=columns,
    two_dims=st.booleans(),
    has=st.tuples(st.booleans(), st.booleans()),
    layout=Tensors.layouts,
    offset=st.sampled_from([0.0, 0.0, 30.0]),
    wanted=st.sets(st.sampled_from(["x", "weight", "bias"])),
    way=ways,
)
def test_layer_norm(device, seed, dtype, weight_dtype, leading, N, two_dims, has, layout, offset, wanted, way):
    from fastgpt.kernels import layer_norm, reference

    tensors = Tensors(seed, device)
    shape = (2, N) if two_dims else (N,)
    x = (
        tensors.normal((*leading, *shape), dtype, layout) + offset
        if layout == "contiguous"
        else tensors.normal((*leading, *shape), dtype, layout)
    )
    weight, bias = optional_weights(tensors, has, shape, weight_dtype)
    inputs = {"x": x, "weight": weight, "bias": bias}
    with by_way_of(way, in_stream=False):
        compare(
            lambda x, w, b: [layer_norm(x, shape, w, b)],
            lambda x, w, b: [reference.layer_norm(x, shape, w, b)],
            inputs, [n for n in wanted if inputs[n] is not None], ["y"], tensors,
        )  # fmt: skip


@fuzz(10)
@given(
    seed=seeds,
    dtype=dtypes,
    residual_dtype=dtypes,
    leading=leading,
    N=columns,
    has=st.tuples(st.booleans(), st.booleans()),
    layouts=st.tuples(Tensors.layouts, Tensors.layouts),
    dropout_p=st.sampled_from([0.0, 0.3]),
    wanted=st.sets(st.sampled_from(["x", "residual", "weight", "bias"])),
    way=ways,
)
def test_add_layer_norm(device, seed, dtype, residual_dtype, leading, N, has, layouts, dropout_p, wanted, way):
    from fastgpt.kernels import add_layer_norm, reference
    from fastgpt.kernels._random import new_seed

    tensors = Tensors(seed, device)
    x, residual = (tensors.normal((*leading, N), d, how) for d, how in zip((dtype, residual_dtype), layouts))
    weight, bias = optional_weights(tensors, has, (N,), dtype)
    mask = None
    if dropout_p:
        torch.manual_seed(seed)
        mask = keep_mask(new_seed(device), dropout_p, 1, x.numel() // N, N).view(x.shape).to(device)

    def ours(x, residual, w, b):
        torch.manual_seed(seed)
        return add_layer_norm(x, residual, w, b, dropout_p=dropout_p)

    def truth(x, residual, w, b):
        return reference.add_layer_norm(x, residual, w, b, dropout_p=dropout_p, dropout_mask=mask)

    inputs = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    wanted = [n for n in wanted if inputs[n] is not None]
    with by_way_of(way, in_stream=True):
        compare(ours, truth, inputs, wanted, ["normed", "new_residual"], tensors)
