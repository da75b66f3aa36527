"""Gluon's TMA descriptors, made of fields that were checked once, equal those that Triton makes and checks."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fastgpt.kernels.attention.hopper.descriptors import descriptors, row_descriptor


def same(descriptor, expected):
    mine, theirs = dict(vars(descriptor)), dict(vars(expected))
    assert mine.pop("base") is theirs.pop("base")
    assert repr(mine.pop("layout")) == repr(theirs.pop("layout"))  # what kernels are compiled for
    assert mine == theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "columns"), [(64, (64, 0)), (80, (64, 16)), (96, (64, 32)), (256, (256, 0))])
def test_they_are_those_that_triton_checks(dtype, head_dim, columns):
    for _ in range(2):  # the second of this layout comes of the first
        x = torch.empty(2, 300, 3, head_dim, dtype=dtype).transpose(1, 2)
        for descriptor, part in zip(descriptors(x, 128), columns):
            if part == 0:
                assert descriptor is None
                continue
            box = [1, 1, 128, part]
            layout = gl.NVMMASharedLayout.get_default_for(
                box, {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[dtype]
            )
            same(descriptor, TensorDescriptor(x, list(x.shape), list(x.stride()), box, layout))


def test_a_dimension_of_one_gets_a_stride_that_passes():
    x = torch.empty(128 * 64, dtype=torch.bfloat16).as_strided((1, 1, 128, 64), (7, 3, 64, 1))
    assert descriptors(x, 64)[0].strides == [16, 16, 64, 1]


def test_rows_of_statistics_are_padded_and_their_padding_is_out_of_bounds():
    x = torch.empty(2, 3, 304)
    descriptor = row_descriptor(x, 301, 64)
    assert (descriptor.shape, descriptor.strides, descriptor.block_shape) == ([6, 301], [304, 1], [1, 64])
    assert descriptor.base is x
