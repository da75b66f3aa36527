"""Arguments that are no tensors, or no class indices: one error of ours, by the function's and the argument's name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import fastgpt
from fastgpt import kernels
from fastgpt.kernels import reference
from fastgpt.tools import memory
from tests.kernels.calls import CALLS

NO_TENSORS = {
    "an array": (lambda x: x.numpy(), r"numpy.ndarray; pass torch.from_numpy\({name}\)"),
    "a number of numpy": (lambda x: np.float32(1), r"numpy.float32; pass torch.tensor\({name}\)"),
    "a list": (lambda x: x.tolist(), r"list; pass torch.tensor\({name}\)"),
    "a float": (lambda x: 1.0, r"float; pass torch.tensor\({name}\)"),
    "a string": (lambda x: "x", r"str; pass a tensor"),
}


def test_every_public_function_has_a_call():
    assert {call.split(",")[0] for call in CALLS} == {*kernels.__all__} - {"interpret", "reference"}


@pytest.mark.parametrize("module", [kernels, reference], ids=["kernels", "reference"])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_tensor_is_named(interpreter, module, call):
    inputs = CALLS[call].inputs(interpreter)
    function = call.split(",")[0]
    prefix = "" if module is kernels else "reference."
    for name in inputs:
        if module is reference and name == "lse":  # it is made again there
            continue
        for make, message in NO_TENSORS.values():
            expected = rf"^{prefix}{function}: {name} must be a torch.Tensor, got {message.format(name=name)}$"
            with pytest.raises(TypeError, match=expected):
                CALLS[call].run(module, inputs | {name: make(inputs[name])})


@pytest.mark.parametrize("call", [call for call in CALLS if not call.startswith("scaled_dot_product_attention")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_dtype_that_no_kernel_takes_is_named_alike(interpreter, call, dtype, autocast):
    inputs = CALLS[call].inputs(interpreter)
    wrong = {name: inputs[name].to(dtype) for name in CALLS[call].floats}
    function, first = call.split(",")[0], next(iter(wrong))
    expected = rf"^{function}: {first} is {dtype}, and the kernels take .*; convert it by .*reference\.{function}$"
    with pytest.raises(TypeError, match=expected), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        CALLS[call].run(kernels, inputs | wrong)
    assert callable(getattr(reference, function))


@pytest.mark.parametrize("module", [kernels, reference], ids=["kernels", "reference"])
@pytest.mark.parametrize("function", ["cross_entropy", "linear_cross_entropy"])
def test_targets_are_checked_alike(interpreter, module, function):
    settings = {"logits": torch.randn(3, 9)} if function == "cross_entropy" else {}
    settings = settings or {"x": torch.randn(3, 4), "weight": torch.randn(9, 4)}
    run = getattr(module, function)
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16):
        with pytest.raises(TypeError, match=rf"{function}: target is {dtype}, expected int64 or int32 .*target.long"):
            run(target=torch.zeros(3, dtype=dtype), **settings)
    with pytest.raises(ValueError, match=rf"{function}: target has shape \(2,\), expected \(3,\)"):
        run(target=torch.tensor([0, 1]), **settings)
    for dtype in (torch.int64, torch.int32):
        with pytest.raises(IndexError, match=r"target -1 is out of bounds for 9 classes.*pass ignore_index=-1$"):
            run(target=torch.tensor([0, -1, 2], dtype=dtype), **settings)
        with pytest.raises(IndexError, match=r"target 9 is out of bounds for 9 classes.*must not count$"):
            run(target=torch.tensor([0, 9, 2], dtype=dtype), **settings)
        assert torch.isfinite(run(target=torch.tensor([0, -1, 2], dtype=dtype), ignore_index=-1, **settings))


@pytest.mark.parametrize("impl", ["triton", "reference", "torch"])
def test_the_modules_loss_checks_its_targets_alike(interpreter, impl):
    criterion = fastgpt.nn.LinearCrossEntropyLoss(4, 9, impl=impl)
    with pytest.raises(TypeError, match=r"linear_cross_entropy: target is torch.float32, .*target.long"):
        criterion(torch.randn(3, 4), torch.zeros(3))
    with pytest.raises(IndexError, match=r"target -1 .*ignore_index=-1"):
        criterion(torch.randn(3, 4), torch.tensor([0, -1, 2]))


def test_modules_name_what_is_no_tensor(interpreter):
    x = np.zeros((2, 3, 8), dtype=np.float32)
    attention = fastgpt.nn.FlashMultiheadAttention(8, 2)
    for module, call in {
        "GELUFFN: x": lambda: fastgpt.nn.GELUFFN(8)(x),
        "LayerNorm: input": lambda: fastgpt.nn.LayerNorm(8)(x),
        "LinearCrossEntropyLoss: input": lambda: fastgpt.nn.LinearCrossEntropyLoss(8, 9)(x, torch.tensor([1])),
        "FlashMultiheadAttention: query": lambda: attention(x, x, x),
    }.items():
        with pytest.raises(TypeError, match=rf"{module} must be a torch.Tensor, got numpy.ndarray; pass torch.from_nu"):
            call()


# ---- torch's attention swapped for ours ------------------------------------------------------------------------------


@pytest.fixture
def torchs_own(monkeypatch):
    """torch's function, whose place ours has taken."""
    own = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernels.scaled_dot_product_attention)
    return own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"attn_mask": True}, {"dropout_p": 0.5}, {"is_causal": True}, {"enable_gqa": True}, {"scale": 0.1}]
)
def test_ours_in_torchs_place_falls_back_to_torchs(torchs_own, seed, monkeypatch, dtype, options):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    q, k = torch.randn(1, 4, 5, 8, dtype=dtype), torch.randn(1, 2 if "enable_gqa" in options else 4, 5, 8, dtype=dtype)
    options = {**options, **({"attn_mask": torch.rand(5, 5) < 0.8} if "attn_mask" in options else {})}
    results = []
    for function in (F.scaled_dot_product_attention, torchs_own):
        torch.manual_seed(0)
        results.append(function(q, k, k, **options))
    assert torch.equal(*results)


@pytest.mark.parametrize("T_k", [3, 5, 7])
@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
def test_torchs_causal_biases_and_nested_tensors_fall_back_too(torchs_own, seed, monkeypatch, make, T_k):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, T_k, 8)
    got = F.scaled_dot_product_attention(q, k, k, attn_mask=make(5, T_k))
    sees = torch.ones(5, T_k, dtype=torch.bool).tril(0 if make is causal_upper_left else T_k - 5)
    rows = sees.any(-1)  # where torch's versions differ on what a row that sees nothing gives
    torch.testing.assert_close(got[:, :, rows], torchs_own(q, k, k, attn_mask=sees)[:, :, rows])
    nested = torch.nested.nested_tensor([torch.randn(3, 2, 8), torch.randn(5, 2, 8)], layout=torch.jagged)
    nested = nested.transpose(1, 2)
    got, want = (f(nested, nested, nested) for f in (F.scaled_dot_product_attention, torchs_own))
    assert torch.equal(got.values(), want.values())


def test_whatever_else_calls_torchs_gets_it(torchs_own, seed):
    q = torch.randn(1, 2, 5, 8)
    (want, tangent), (out, d_out) = (
        torch.func.jvp(lambda q, f=f: f(q, q, q), (q,), (q,))
        for f in (reference.flash_attention, F.scaled_dot_product_attention)
    )
    assert out.shape == want.shape
    assert d_out.shape == tangent.shape
    x, mask = torch.randn(5, 1, 8), torch.rand(5, 5) < 0.2
    fastgpt.nn.FlashMultiheadAttention(8, 2)(x, x, x, attn_mask=mask, need_weights=False)
    nn.MultiheadAttention(8, 2)(x, x, x, attn_mask=mask, need_weights=False)
    tiny = fastgpt.GPTConfig(vocab_size=32, max_len=64, n_layers=1, n_heads=2, d_model=16, attn_impl="sdpa")
    model, idx = fastgpt.GPT(tiny), torch.randint(32, (1, 6))
    model(idx, idx).loss.backward()
    model.generate(idx, 2)
    counted = memory.training_step(tiny, 2, 64)
    F.scaled_dot_product_attention = torchs_own
    assert memory.training_step(tiny, 2, 64) == counted
