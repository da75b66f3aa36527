"""scaled_dot_product_attention is torch's: signature, alignment, masks, shapes; and says when it is torch's indeed."""

import functools
import inspect
import logging

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from fastgpt.kernels import _notice, reference, scaled_dot_product_attention
from fastgpt.kernels.attention import sdpa
from tests.support.budget import GRADIENT, assert_all_within_budget, assert_within_budget, exactly


def qkv(device, q_shape, k_shape=None, v_dim=None, dtype=torch.float32):
    k_shape = q_shape if k_shape is None else k_shape
    v_shape = k_shape if v_dim is None else (*k_shape[:-1], v_dim)
    return [torch.randn(shape, device=device).to(dtype) for shape in (q_shape, k_shape, v_shape)]


@pytest.fixture
def kernel_calls(monkeypatch):
    """The calls that reach flash_attention: how often the fast path was taken."""
    calls = []
    original = sdpa.attend
    monkeypatch.setattr(sdpa, "attend", lambda *a, **k: calls.append(k) or original(*a, **k))
    return calls


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(_notice, "_said", set())
    caplog.set_level(logging.WARNING, logger="fastgpt")
    return caplog


def assert_as_torch(tensors, **options):
    """Output and gradients within the budget of torch's own function in the same dtype."""

    def run(function, inputs, d_out):
        out = function(*inputs, **options)
        return [out, *torch.autograd.grad(out, inputs, d_out.expand_as(out))]

    inputs = [x.detach().requires_grad_() for x in tensors]
    d_out = torch.arange(tensors[2].shape[-1], device=tensors[0].device).add(1).cos().to(tensors[0].dtype)
    ours = run(scaled_dot_product_attention, inputs, d_out)
    torchs = run(reference.scaled_dot_product_attention, inputs, d_out)
    exact = exactly(functools.partial(run, reference.scaled_dot_product_attention), inputs, d_out)
    assert_within_budget("out", ours[0], torchs[0], exact[0])
    assert_all_within_budget(("dq", "dk", "dv"), ours[1:], torchs[1:], exact[1:], factor=GRADIENT)


def test_signature_is_the_reference_s():
    ours = inspect.signature(scaled_dot_product_attention)
    assert str(ours) == str(inspect.signature(reference.scaled_dot_product_attention))
    schema = torch.ops.aten.scaled_dot_product_attention.default._schema
    assert list(ours.parameters) == [argument.name for argument in schema.arguments]
    for argument in schema.arguments[3:]:
        assert ours.parameters[argument.name].default == argument.default_value, argument.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T_q", "T_k"), [(20, 20), (9, 70), (70, 9), (1, 20), (20, 2)])
def test_causal_is_aligned_top_left(device, seed, kernel_calls, T_q, T_k, dtype):
    assert_as_torch(qkv(device, (1, 2, T_q, 16), (1, 2, T_k, 16), dtype=dtype), is_causal=True)
    assert len(kernel_calls) == 1


@pytest.mark.parametrize(
    ("q_shape", "k_shape", "options"),
    [
        ((2, 2, 9, 16), (2, 2, 12, 16), {}),
        ((2, 2, 9, 16), (2, 2, 12, 16), {"scale": 0.1}),
        ((9, 16), (12, 16), {}),
        ((3, 9, 16), (3, 12, 16), {}),
        ((2, 3, 2, 5, 16), (2, 3, 2, 6, 16), {"is_causal": True}),
        ((2, 2, 1, 2, 5, 16), (2, 2, 1, 2, 6, 16), {}),
        ((2, 2, 9, 16), (1, 2, 12, 16), {}),  # broadcast batch
        ((1, 2, 9, 16), (3, 2, 12, 16), {}),
        ((2, 1, 2, 5, 16), (1, 3, 2, 6, 16), {}),
        ((2, 4, 9, 16), (2, 1, 12, 16), {}),  # one key head for all, without enable_gqa
        ((2, 1, 9, 16), (2, 4, 12, 16), {}),
        ((2, 4, 9, 16), (2, 2, 12, 16), {"enable_gqa": True}),
        ((2, 4, 9, 16), (1, 1, 12, 16), {"enable_gqa": True, "is_causal": True}),
        ((4, 9, 16), (2, 12, 16), {"enable_gqa": True}),
        ((2, 3, 4, 5, 16), (2, 3, 2, 6, 16), {"enable_gqa": True}),
    ],
)
def test_shapes(device, seed, kernel_calls, q_shape, k_shape, options):
    assert_as_torch(qkv(device, q_shape, k_shape), **options)
    assert len(kernel_calls) == 1


@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 8), (8, 24), (20, 1)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_another_head_dim_for_values(device, seed, kernel_calls, head_dim, value_dim, is_causal):
    assert_as_torch(qkv(device, (1, 2, 9, head_dim), (1, 2, 5, head_dim), value_dim), is_causal=is_causal)
    assert len(kernel_calls) == 1


@pytest.mark.parametrize(("T_q", "T_k"), [(9, 9), (5, 9), (9, 5)])
def test_torchs_causal_biases_need_no_mask(device, seed, kernel_calls, log, T_q, T_k):
    q, k, v = qkv(device, (1, 2, T_q, 16), (1, 2, T_k, 16))

    def assert_same(bias, **mask):
        def plain(q, k, v):
            return reference.scaled_dot_product_attention(q, k, v, **mask)

        ours = scaled_dot_product_attention(q, k, v, bias)
        assert_within_budget("out", ours, plain(q, k, v), *exactly(plain, q, k, v))

    assert_same(causal_upper_left(T_q, T_k), is_causal=True)
    if T_q <= T_k:  # beyond, torch warns of NaN
        sees = torch.ones(T_q, T_k, dtype=torch.bool, device=device).tril(T_k - T_q)
        assert_same(causal_lower_right(T_q, T_k), attn_mask=sees)
    assert kernel_calls
    assert not log.messages


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bool mask", "attn_mask is a tensor"),
        ("float mask", "attn_mask is a tensor"),
        ("float64", "the kernels take float32, float16 and bfloat16, not float64"),
        ("head_dim 264", "head_dim 264 is over the kernels' limit of 256"),
        ("everything dropped", r"dropout_p is not in \[0, 1\)"),
        ("tensors for numbers", "dropout_p or scale is a tensor"),
    ],
)
def test_what_the_kernels_cannot_take_goes_to_torch_and_is_said_once(device, seed, kernel_calls, log, name, reason):
    q, k, v = qkv(device, (2, 2, 6, 264 if name == "head_dim 264" else 16))
    options = {}
    if name == "bool mask":
        options["attn_mask"] = torch.rand(6, 6, device=device) < 0.7
    elif name == "float mask":
        options["attn_mask"] = torch.randn(2, 1, 6, 6, device=device)
    elif name == "float64":
        q, k, v = (x.double() for x in (q, k, v))
    elif name == "everything dropped":
        options["dropout_p"] = 1.0
    elif name == "tensors for numbers":
        options = {"dropout_p": torch.tensor(0.0), "scale": torch.tensor(0.3)}
    for _ in range(3):
        ours = scaled_dot_product_attention(q, k, v, **options)
    torchs = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)  # CUDA's makes NaN of all dropped
    assert not kernel_calls
    assert len(log.messages) == 1
    assert f"torch's own function is used, because {reason}".replace("\\", "") in log.messages[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what a CPU tensor is told")
def test_a_cpu_without_the_interpreter_gets_torchs(monkeypatch, seed, log):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    q, k, v = qkv("cpu", (1, 2, 6, 16))
    assert torch.equal(scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert "tensors are on 'cpu'" in log.messages[0]


def test_a_mask_within_a_compiled_graph_is_said_while_tracing(device, seed, log):
    q, k, v = qkv(device, (1, 2, 6, 16))
    mask = torch.rand(6, 6, device=device) < 0.7
    compiled = torch.compile(
        lambda q, k, v, m: scaled_dot_product_attention(q, k, v, m), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))
    assert len(log.messages) == 1


@pytest.mark.parametrize(
    ("q_shape", "k_shape", "options"),
    [
        ((2, 4, 9, 16), (2, 2, 9, 16), {}),
        ((2, 4, 9, 16), (2, 3, 9, 16), {"enable_gqa": True}),
        ((2, 4, 9, 16), (2, 4, 9, 8), {}),
        ((2, 4, 9, 16), (3, 4, 9, 16), {}),
        ((16,), (16,), {}),
        ((1, 2, 6, 16), (1, 2, 6, 16), {"is_causal": True, "attn_mask": causal_upper_left(6, 6)}),
        ((1, 2, 6, 16), (1, 2, 6, 16), {"dropout_p": -0.5}),
    ],
)
def test_what_torch_rejects_is_rejected_by_torch(device, q_shape, k_shape, options):
    q, k, v = qkv(device, q_shape, k_shape)
    if device.type == "cuda" and options.get("dropout_p", 0.0) < 0:  # the one thing here that torch takes on a GPU
        assert scaled_dot_product_attention(q, k, v, **options).shape == q.shape
        return
    with pytest.raises(Exception) as torchs:  # noqa: PT011
        F.scaled_dot_product_attention(q, k, v, **options)
    with pytest.raises(type(torchs.value)) as ours:
        scaled_dot_product_attention(q, k, v, **options)
    assert str(ours.value) == str(torchs.value)


def test_dropout_keeps_the_share_and_the_mean(device, seed, kernel_calls):
    """v = 1: an output is the sum of what is kept of weights that sum to 1, divided by the keep rate."""
    q, k, _ = qkv(device, (1, 2, 64, 16))
    out = scaled_dot_product_attention(q, k, torch.ones_like(k), dropout_p=0.25)
    assert abs(out.mean().item() - 1.0) < 0.05
    assert out.std() > 0.01
    assert kernel_calls[0]["dropout_p"] == 0.25


def test_autocast(device, seed, kernel_calls):
    q, k, v = qkv(device, (1, 2, 9, 16))
    with torch.autocast(device.type, torch.bfloat16):
        ours = scaled_dot_product_attention(q, k.bfloat16(), v, is_causal=True)
        torchs = F.scaled_dot_product_attention(q, k.bfloat16(), v, is_causal=True)
    assert ours.dtype == torchs.dtype == torch.bfloat16
    rounded = (x.bfloat16() for x in (q, k, v))  # as autocast does
    (exact,) = exactly(lambda *qkv: reference.scaled_dot_product_attention(*qkv, is_causal=True), *rounded)
    assert_within_budget("out", ours, torchs, exact)
    assert len(kernel_calls) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_autocast_leaves_alone_is_left_to_torch(device, seed, kernel_calls, position, dtype):
    tensors = [*qkv(device, (1, 2, 9, 16))]
    tensors[position] = tensors[position].to(dtype)
    with torch.autocast(device.type, torch.bfloat16):
        with pytest.raises(RuntimeError) as torchs:
            F.scaled_dot_product_attention(*tensors)
        with pytest.raises(RuntimeError) as ours:
            scaled_dot_product_attention(*tensors)
    assert str(ours.value) == str(torchs.value)
    assert not kernel_calls


def test_empty(device):
    for q_shape, k_shape in [((2, 2, 0, 16), (2, 2, 5, 16)), ((2, 2, 5, 16), (2, 2, 0, 16)), ((0, 2, 5, 16),) * 2]:
        for is_causal in (True, False):
            out = scaled_dot_product_attention(*qkv(device, q_shape, k_shape), is_causal=is_causal)
            assert out.shape == q_shape
            assert (out == 0).all()
