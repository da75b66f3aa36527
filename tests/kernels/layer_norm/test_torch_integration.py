"""LayerNorm inside torch: compile, export, opcheck, autocast, fake tensors, checkpointing, graphs, double backward."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from fastgpt.kernels import _runtime, add_layer_norm, layer_norm, reference

from .cases import bf16, fp16, fp32, parameters

pytest.importorskip("triton")

OPS = torch.ops.fastgpt


def leaves(device, *lead, N=32, dtype=fp32):
    """x, residual, weight, bias."""
    x, residual = (torch.randn(*lead, N).to(device, dtype).requires_grad_() for _ in range(2))
    return [x, residual, *(t.requires_grad_() for t in parameters(N, fp32, device))]


def loss(x, residual, weight, bias):
    normed, new = add_layer_norm(x, residual, weight, bias)
    return (layer_norm(new, (new.shape[-1],), weight, bias) * normed).sum() + new.square().sum()


def assert_same(ours, expected, inputs):
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_fullgraph_compile_with_dynamic_rows(device, seed, backend):
    torch._dynamo.reset()
    count = []
    lookup = torch._dynamo.lookup_backend(backend)
    compiled = torch.compile(loss, backend=lambda *args: count.append(1) or lookup(*args), fullgraph=True)
    for n, rows in enumerate((3, 4, 7)):
        inputs = leaves(device, 2, rows)
        assert_same(compiled(*inputs), loss(*inputs), inputs)
        assert len(count) <= min(n + 1, 2), f"compiled anew for {rows} rows"


def test_compile_with_dropout_is_one_graph(device, seed):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *args: sum(t.sum() for t in add_layer_norm(*args, dropout_p=0.5)), backend="aot_eager", fullgraph=True
    )
    inputs = leaves(device, 3)
    grads = torch.autograd.grad(compiled(*inputs), inputs)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.gpu
def test_inductor(device, seed):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True)
    for rows in (300, 301):
        inputs = leaves(device, 2, rows)
        assert_same(compiled(*inputs), loss(*inputs), inputs)


def test_export_with_dynamic_rows(device, seed):
    class Norms(nn.Module):
        def forward(self, x, residual, weight, bias):
            return add_layer_norm(x, residual, weight, bias)

    inputs = [t.detach() for t in leaves(device, 6)]
    rows = torch.export.Dim("rows", min=2, max=10**6)
    program = torch.export.export(Norms(), tuple(inputs), dynamic_shapes=({0: rows}, {0: rows}, None, None))
    assert any(node.target == OPS.add_layer_norm_fwd.default for node in program.graph.nodes)
    more = [t.detach() for t in leaves(device, 11)]
    torch.testing.assert_close(program.module()(*more), add_layer_norm(*more))


@pytest.mark.parametrize("affine", [True, False])
def test_opcheck_forward(device, seed, affine):
    x, residual, weight, bias = leaves(device, 2, 3)
    weight, bias = (weight, bias) if affine else (None, None)
    torch.library.opcheck(OPS.layer_norm_fwd.default, (x, weight, bias, 1, 1e-5, fp32))
    seed = torch.tensor([1, 2], device=device)
    torch.library.opcheck(OPS.add_layer_norm_fwd.default, (x, residual, weight, bias, seed, 1, 1e-5, 0.5, fp32))


@pytest.mark.parametrize("wanted", [(True, True, fp32), (True, False, None), (False, True, None), (False, False, bf16)])
def test_opcheck_backward(device, seed, wanted):
    x, residual, weight, _ = (t.detach() for t in leaves(device, 2, 3))
    stats, key = torch.rand(2, 6, device=device), torch.tensor([1, 2], device=device)
    parts = {"test_utils": ("test_schema", "test_faketensor")}  # traced together with the forward above
    torch.library.opcheck(OPS.layer_norm_bwd.default, (residual, x, weight, stats, 1, *wanted), **parts)
    need_dx, need_dweight, dbias = wanted
    for dnew in (None, x):
        arguments = (
            x,
            dnew,
            residual,
            weight,
            key,
            stats,
            1,
            0.5,
            bf16 if need_dx else None,
            need_dx,
            need_dweight,
            dbias,
        )
        torch.library.opcheck(OPS.add_layer_norm_bwd.default, arguments, **parts)


@pytest.mark.parametrize("shape", [lambda x: x.shape[-1], lambda x: x.shape[1:], lambda x: [*x.shape[1:]]])
@pytest.mark.parametrize("function", [layer_norm, reference.layer_norm])
def test_symbolic_sizes(device, seed, function, shape):
    x = torch.randn(3, 16, device=device)
    graph = make_fx(lambda x: function(x, shape(x)), tracing_mode="symbolic")(x)
    torch.testing.assert_close(graph(x), function(x))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: function(x, shape(x)), backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.parametrize("shape", [np.int64(16), np.array([16]), torch.Size([16])])
def test_integers_that_are_not_pythons(device, seed, shape):
    x = torch.randn(3, 16, device=device)
    assert torch.equal(layer_norm(x, shape), layer_norm(x))


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_without_values(kind):
    mode = FakeTensorMode() if kind == "fake" else torch.device("meta")
    with mode:
        x, residual, weight, bias = leaves("meta" if kind == "meta" else "cpu", 8, 1024, N=768, dtype=bf16)
        normed, new = add_layer_norm(x, residual, weight, bias, dropout_p=0.1)
        y = layer_norm(new, 768, weight, bias, out_dtype=fp32)
        (y.sum() + normed.sum()).backward()
    assert (y.dtype, normed.dtype, new.dtype) == (fp32, bf16, bf16)
    assert y.shape == normed.shape == new.shape == x.shape
    assert all(t.grad.shape == t.shape and t.grad.dtype == t.dtype for t in (x, residual, weight, bias))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_draws_the_same_dropout_again(device, seed, use_reentrant):
    inputs = leaves(device, 4)

    def block(*args):
        normed, new = add_layer_norm(*args, dropout_p=0.5)
        return layer_norm(normed * new, 32)

    results = []
    for again in (True, False):
        torch.manual_seed(3)
        out = checkpoint(block, *inputs, use_reentrant=use_reentrant) if again else block(*inputs)
        torch.manual_seed(99)  # whoever draws anew in the backward draws something else
        results.append(
            torch.autograd.grad(out.sin().sum(), inputs) if not use_reentrant or not again else _grads(out, inputs)
        )
    for a, b in zip(*results):
        assert torch.equal(a, b)


def _grads(out, inputs):
    for t in inputs:
        t.grad = None
    out.sin().sum().backward()
    return [t.grad for t in inputs]


def test_functional_call_and_grad(device, seed):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

        def forward(self, x):
            return layer_norm(x, 32, self.weight)

    x, _, weight, _ = leaves(device, 3)
    module = Norm().to(device)
    assert torch.equal(torch.func.functional_call(module, {"weight": weight}, (x,)), layer_norm(x, 32, weight))


def test_no_grad_and_inference_mode(device, seed):
    x, residual, weight, bias = leaves(device, 3)
    with torch.no_grad():
        y = layer_norm(x, 32, weight, bias)
        normed, new = add_layer_norm(x, residual, weight, bias)
    assert not any(t.requires_grad for t in (y, normed, new))
    with torch.inference_mode():
        assert torch.equal(layer_norm(x, 32, weight, bias), y)


@pytest.mark.parametrize("function", [layer_norm, add_layer_norm])
def test_double_backward_raises_and_names_the_way_out(device, seed, function):
    x, residual, weight, bias = leaves(device, 3)
    arguments = (x, 32, weight, bias) if function is layer_norm else (x, residual, weight, bias)
    out = function(*arguments)
    out = out if function is layer_norm else out[0]
    (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once.*reference"):
        dx.square().sum().backward()


def test_input_modified_in_place_is_noticed(device, seed):
    x, _, weight, bias = leaves(device, 3)
    h = x * 1
    y = layer_norm(h, 32, weight, bias)
    h.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_cpu_autocast_changes_nothing_as_in_torch(device, seed):
    if device.type == "cuda":
        pytest.skip("CUDA's autocast has its own test")
    for dtype in (fp32, bf16):
        x = torch.randn(3, 32).to(dtype)
        with torch.autocast("cpu", bf16):
            assert layer_norm(x, 32).dtype == F.layer_norm(x, (32,)).dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [bf16, fp16, fp32])
def test_cuda_autocast_gives_float32_as_torch_does(device, seed, dtype):
    x, residual, weight, bias = leaves(device, 5, N=96, dtype=dtype)
    with torch.autocast("cuda", bf16):
        ours, torchs = layer_norm(x, 96, weight, bias), F.layer_norm(x, (96,), weight, bias)
        normed, new = add_layer_norm(x, residual, weight, bias)
    assert ours.dtype == torchs.dtype == normed.dtype == fp32
    assert new.dtype == dtype
    torch.testing.assert_close(ours, torchs)
    for a, b in zip(torch.autograd.grad(ours.sum(), (x, weight)), torch.autograd.grad(torchs.sum(), (x, weight))):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-2)


def test_autocast_rule_by_device(monkeypatch):
    """What the CUDA test above checks on a GPU, decided here without one."""
    from fastgpt.kernels.layer_norm import arguments

    x = torch.empty(2, 8, dtype=bf16, device="meta")
    assert arguments.torch_out_dtype(x) == bf16
    token = _runtime.paper_autocast.set(bf16)
    try:
        assert layer_norm(x).dtype == fp32
        assert layer_norm(x, out_dtype=bf16).dtype == bf16
        assert [t.dtype for t in add_layer_norm(x, x)] == [fp32, bf16]
    finally:
        _runtime.paper_autocast.reset(token)


@pytest.mark.parametrize("out_dtype", [fp32, bf16, fp16])
def test_out_dtype(device, seed, out_dtype):
    x, residual, weight, bias = leaves(device, 3, dtype=bf16)
    y = layer_norm(x, 32, weight, bias, out_dtype=out_dtype)
    assert torch.equal(y, layer_norm(x, 32, weight, bias, out_dtype=fp32).to(out_dtype))
    normed, _ = add_layer_norm(x, residual, weight, bias, out_dtype=out_dtype)
    (y.sum() + normed.sum()).backward()
    assert normed.dtype == out_dtype
    assert x.grad.dtype == bf16


@pytest.mark.gpu
def test_cuda_graph(device, seed):
    inputs = leaves(device, 64, N=768)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(loss(*inputs), inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(loss(*inputs), inputs)
    with torch.no_grad():
        inputs[0].normal_()
    graph.replay()
    for a, b in zip(captured, torch.autograd.grad(loss(*inputs), inputs)):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_runs_on_the_device_of_its_input():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(3, 32, device="cuda:1")
    with torch.cuda.device(0):
        torch.testing.assert_close(layer_norm(x), reference.layer_norm(x))
