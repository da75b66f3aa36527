"""Wrong arguments raise before anything is launched, and say which, what, and how to mend it."""

import pytest
import torch

from fastgpt.kernels import add_layer_norm, layer_norm

from .cases import count_launches

pytest.importorskip("triton")

x, w = torch.zeros(3, 4, 8), torch.ones(8)

LAYER_NORM = {
    "shape mismatch": ((x, 7), ValueError, r"normalized_shape \(7,\) .* \(3, 4, 8\)"),
    "shape mismatch, two dimensions": ((x, (3, 8)), ValueError, r"normalized_shape \(3, 8\)"),
    "more dimensions than x": ((x, (1, 3, 4, 8)), ValueError, "normalized_shape"),
    "no dimension": ((x, ()), ValueError, "at least one"),
    "a size that is no integer": ((x, 8.0), TypeError, r"normalized_shape is 8\.0, expected an int or a sequence"),
    "sizes that are no integers": ((x, (4, 8.0)), TypeError, r"normalized_shape is \(4, 8\.0\), expected an int"),
    "sizes in a string": ((x, "8"), TypeError, "normalized_shape is '8', expected an int"),
    "sizes in a tensor": ((x, torch.tensor([8])), TypeError, r"normalized_shape is tensor\(\[8\]\), expected an int"),
    "scalar": ((torch.tensor(1.0),), ValueError, "normalized_shape"),
    "weight of another shape": ((x, 8, torch.ones(4)), ValueError, r"weight has shape \(4,\)"),
    "weight alone of another shape": ((x, None, torch.ones(4)), ValueError, r"weight's shape \(4,\) must be the last"),
    "weight of another rank": ((x, (4, 8), torch.ones(32)), ValueError, r"weight has shape \(32,\)"),
    "bias of another shape": ((x, 8, w, torch.ones(4)), ValueError, r"bias has shape \(4,\)"),
    "integers": ((x.int(), 8), TypeError, "x is torch.int32, .*; convert it by"),
    "float64": ((x.double(), 8), TypeError, "x is torch.float64.*reference.layer_norm"),
    "integer weight": ((x, 8, w.long()), TypeError, "weight is torch.int64"),
    "float64 bias": ((x, 8, w, w.double()), TypeError, "bias is torch.float64"),
    "negative eps": ((x, 8, w, w, -1e-5), ValueError, "eps must be >= 0, got -1e-05"),
    "eps not a number": ((x, 8, w, w, float("nan")), ValueError, "eps must be >= 0, got nan"),
    "device mix": ((x, 8, w.to("meta")), ValueError, "weight is on meta but x is on cpu"),
}
ADD_LAYER_NORM = {
    "residual of another shape": ((x, x[:1]), ValueError, r"residual has shape \(1, 4, 8\), x \(3, 4, 8\)"),
    "integer residual": ((x, x.int()), TypeError, "residual is torch.int32"),
    "integers": ((x.int(), x), TypeError, "x is torch.int32"),
    "weight of another shape": ((x, x, torch.ones(4)), ValueError, r"weight's shape \(4,\) must be the last"),
    "bias alone of another shape": ((x, x, None, torch.ones(4)), ValueError, r"bias's shape \(4,\) must be the last"),
    "bias of another shape": ((x, x, w, torch.ones(4)), ValueError, r"bias has shape \(4,\)"),
    "negative eps": ((x, x, w, w, -1.0), ValueError, "add_layer_norm: eps must be >= 0"),
    "dropout_p of 1": ((x, x, w, w, 1e-5, 1.0), ValueError, r"dropout_p must be in \[0, 1\), got 1.0"),
    "negative dropout_p": ((x, x, w, w, 1e-5, -0.1), ValueError, "dropout_p"),
    "device mix": ((x, x.to("meta")), ValueError, "residual is on meta but x is on cpu"),
}


@pytest.mark.parametrize(
    ("function", "case"),
    [(layer_norm, case) for case in LAYER_NORM.values()] + [(add_layer_norm, case) for case in ADD_LAYER_NORM.values()],
    ids=[*(f"layer_norm: {name}" for name in LAYER_NORM), *(f"add_layer_norm: {name}" for name in ADD_LAYER_NORM)],
)
def test_bad_input_raises_before_launch(monkeypatch, function, case):
    counted = count_launches(monkeypatch)
    arguments, error, message = case
    with pytest.raises(error, match=message) as caught:
        function(*arguments)
    assert str(caught.value).startswith(f"{function.__name__}: ")
    assert not counted.names


def test_unknown_out_dtype(device):
    with pytest.raises(TypeError, match=r"out_dtype is torch\.int8"):
        layer_norm(torch.zeros(2, 8, device=device), out_dtype=torch.int8)


@pytest.mark.parametrize("function", [lambda t: layer_norm(t), lambda t: add_layer_norm(t, t)])
def test_a_cpu_without_the_interpreter_raises_and_says_what_to_do(function, monkeypatch):
    from fastgpt.kernels import _runtime

    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        function(torch.zeros(2, 8))
