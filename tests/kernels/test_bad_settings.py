"""Numbers, switches and tensors of the wrong type are refused by name in every public function."""

import math

import pytest
import torch

from fastgpt import kernels

from .calls import CALLS

pytest.importorskip("triton")

NUMBERS = {
    "flash_attention": ("softmax_scale", "dropout_p"),
    "attention_weights": ("softmax_scale",),
    "layer_norm": ("eps",),
    "add_layer_norm": ("eps", "dropout_p"),
    "gelu_ffn": ("dropout_p",),
    "linear_cross_entropy": ("label_smoothing", "z_loss", "softcap"),
    "cross_entropy": ("label_smoothing", "z_loss", "softcap"),
}
MAY_BE_NONE = ("softmax_scale", "softcap")
MAY_BE_MISSING = {
    "layer_norm": ("weight", "bias"),
    "add_layer_norm": ("weight", "bias"),
    "linear_gelu": ("b",),
    "gelu_ffn": ("b1", "b2"),
    "linear_cross_entropy": ("bias",),
}


def tensors(name, device):
    return CALLS[name].inputs(device)


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, numbers in NUMBERS.items() for n in numbers])
@pytest.mark.parametrize("value", ["0.5", [0.5], torch.tensor([0.5]), torch.tensor(0.5), None, 1j])
def test_what_is_no_number(device, seed, name, number, value):
    """A tensor, too: its gradient would be lost silently."""
    if value is None and number in MAY_BE_NONE:
        pytest.skip("None means something there")
    with pytest.raises(TypeError, match=f"^{name}: {number} is .*, expected a number"):
        getattr(kernels, name)(**tensors(name, device), **{number: value})


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, numbers in NUMBERS.items() for n in numbers])
def test_numpys_numbers_are_numbers(device, seed, name, number):
    numpy = pytest.importorskip("numpy")
    arguments = tensors(name, device)
    for value in (numpy.float32(0.25), numpy.float64(0.25)):
        getattr(kernels, name)(**arguments, **{number: value})


@pytest.mark.parametrize("name", ["flash_attention", "attention_weights"])
@pytest.mark.parametrize("value", [None, "no", torch.tensor(True), torch.ones(5, 6, dtype=torch.bool), 0.0])
def test_a_mask_is_no_switch(device, seed, name, value):
    with pytest.raises(TypeError, match=f"^{name}: causal must be True or False"):
        getattr(kernels, name)(**tensors(name, device), causal=value)


@pytest.mark.parametrize("name", [name for name in CALLS if "," not in name and not name.startswith("scaled_dot")])
def test_a_missing_tensor_is_named(device, seed, name):
    call = CALLS[name]
    for missing in [*call.floats, *call.integers]:
        arguments = {**tensors(name, device), missing: None}
        if missing in MAY_BE_MISSING.get(name, ()):
            getattr(kernels, name)(**arguments)
            continue
        with pytest.raises(TypeError, match=f"^{name}: {missing} must be a torch.Tensor, got NoneType"):
            getattr(kernels, name)(**arguments)


@pytest.mark.parametrize("value", [1.5, "2", True, torch.tensor(2)])
def test_chunks_are_counted_by_an_int(device, seed, value):
    with pytest.raises(TypeError, match=r"^linear_cross_entropy: num_chunks is .*, use an int"):
        kernels.linear_cross_entropy(**tensors("linear_cross_entropy", device), num_chunks=value)


@pytest.mark.parametrize(
    "options",
    [{"heads": [0.5]}, {"heads": 0}, {"heads": "01"}, {"rows": slice(0.5, 2)}, {"rows": slice(None, None, 1.0)}],
)
def test_heads_and_rows_are_ints(device, seed, options):
    (name,) = options
    with pytest.raises(TypeError, match=f"^attention_weights: {name} must be a .* of ints"):
        kernels.attention_weights(**tensors("attention_weights", device), **options)


def test_not_a_number_is_out_of_every_range(device, seed):
    for name, numbers in NUMBERS.items():
        for number in numbers:
            if number != "softmax_scale":
                with pytest.raises(ValueError, match=f"^{name}: {number}"):
                    getattr(kernels, name)(**tensors(name, device), **{number: math.nan})
