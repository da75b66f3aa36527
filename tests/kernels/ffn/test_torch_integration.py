"""The FFN inside torch: compile, export, opcheck, autocast, fake and meta tensors, checkpointing, CUDA graphs."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from fastgpt.kernels import gelu_ffn, linear_gelu, reference
from fastgpt.kernels._random import new_seed
from tests.kernels.ffn.cases import ffn_inputs

OPS = torch.ops.fastgpt


def small(device, dtype=torch.float32, grad=True, biases=(True, True)):
    return ffn_inputs(device, dtype, (2, 5, 16), 24, 8, biases, grad)


def _plain(x, w1, b1, w2, b2):
    return gelu_ffn(x, w1, b1, w2, b2).square().sum()


def _everything(x, w1, b1, w2, b2):
    y = gelu_ffn(x, w1, b1, w2, b2, "tanh", recompute=True, residual=x[..., :8])
    return (linear_gelu(x, w1, b1).sum() * y).sum()


# ---------------------------------------------------------------------------------------------- compile and export


@pytest.mark.parametrize("function", [_plain, _everything])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_in_one_graph(device, seed, backend, function):
    torch._dynamo.reset()
    tensors = small(device)
    want = torch.autograd.grad(function(*tensors), tensors)
    got = torch.autograd.grad(torch.compile(function, fullgraph=True, backend=backend)(*tensors), tensors)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
def test_compiles_with_inductor():
    torch._dynamo.reset()
    tensors = small("cuda")
    want = torch.autograd.grad(_everything(*tensors), tensors)
    got = torch.autograd.grad(torch.compile(_everything, fullgraph=True)(*tensors), tensors)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


def test_compiles_with_dynamic_shapes_once(device, seed):
    torch._dynamo.reset()
    tensors, graphs = small(device), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(gelu_ffn, fullgraph=True, dynamic=True, backend=count)
    for tokens in (5, 7, 9):
        x = torch.randn(2, tokens, 16, device=device)
        torch.testing.assert_close(compiled(x, *tensors[1:]), gelu_ffn(x, *tensors[1:]))
    assert len(graphs) == 1


def test_exports(device, seed):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 8)

        def forward(self, x):
            return gelu_ffn(x, self.up.weight, self.up.bias, self.down.weight, self.down.bias)

    layer, x = Layer().to(device), torch.randn(2, 5, 16, device=device)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    assert "fastgpt.gelu_ffn_fwd" in str(program.graph)
    x = torch.randn(3, 5, 16, device=device)
    torch.testing.assert_close(program.module()(x), layer(x))


def _opcheck_cases(device):
    x, w1, b1, w2, b2 = small(device)
    detached = [t.detach() for t in (x, w1, b1, w2, b2)]
    dx, dw1, db1, dw2, _ = detached
    dout, dact, pre = (torch.randn(*s, device=device) for s in ((2, 5, 8), (2, 5, 24), (10, 24)))
    key, residual = new_seed(device), torch.randn(2, 5, 8, device=device, requires_grad=True)
    yield OPS.linear_gelu_fwd, (x, w1, b1, "none", True, "triton")
    yield OPS.linear_gelu_fwd, (x, w1, None, "tanh", False, "cublas")
    yield OPS.linear_gelu_bwd, (dact, dx, dw1, db1, pre, "none", [True] * 3)
    yield OPS.linear_gelu_bwd, (dact, dx, dw1, None, None, "tanh", [False, True, False])
    yield OPS.gelu_ffn_fwd, (x, w1, b1, w2, b2, residual, key, 0.25, "none", True, False, "triton")
    yield OPS.gelu_ffn_fwd, (x, w1, None, w2, None, None, None, 0.0, "tanh", False, True, "cublas")
    yield OPS.gelu_ffn_bwd, (dout, dx, dw1, db1, dw2, pre, key, 0.25, "none", [True] * 5, "triton")
    yield OPS.gelu_ffn_bwd, (dout, dx, dw1, db1, dw2, None, None, 0.0, "tanh", [False, True] * 2 + [True], "cublas")
    yield OPS.gelu_ffn_bwd_, (dout, dx, dw1, db1, dw2, pre, None, 0.0, "none", [True] * 5, "cublas")


@pytest.mark.parametrize("case", range(9))
def test_opcheck(device, seed, case):
    op, args = list(_opcheck_cases(device))[case]
    torch.library.opcheck(op.default, args)


def test_overwriting_backward_leaves_dpre_in_place(device, seed):
    x, w1, b1, w2, _ = small(device, grad=False)
    pre, dout = torch.randn(10, 24, device=device), torch.randn(2, 5, 8, device=device)
    for path in ("triton", "cublas"):
        args = (None, 0.0, "none", [True] * 5, path)
        want = OPS.gelu_ffn_bwd(dout, x, w1, b1, w2, pre, *args)
        mine = pre.clone()
        got = OPS.gelu_ffn_bwd_(dout, x, w1, b1, w2, mine, *args)
        assert all(torch.equal(a, b) for a, b in zip(got, want))
        torch.testing.assert_close(mine.sum(0), want[2])


def test_fake_and_meta_tensors_have_the_real_shapes(device, seed):
    real = small(device, torch.bfloat16)
    want = gelu_ffn(*real)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in real]
        out = gelu_ffn(*fake)
        out.sum().backward()
        assert (out.shape, out.dtype, out.stride()) == (want.shape, want.dtype, want.stride())
    meta = [t.detach().to("meta") for t in real]
    for overwrite_pre, shown in ((False, (10, 24)), (True, (0,))):
        shapes = OPS.gelu_ffn_fwd(*meta, None, None, 0.0, "none", True, overwrite_pre, "auto")
        assert [s.shape for s in shapes] == [want.shape, shown]


# ------------------------------------------------------------------------------------------------ autocast and friends


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_as_linear(device, seed, dtype):
    tensors = small(device)
    with torch.autocast(device.type, dtype):
        out, like = gelu_ffn(*tensors), reference.gelu_ffn(*tensors)
        up = linear_gelu(*tensors[:3])
    assert out.dtype == like.dtype == up.dtype == dtype
    torch.testing.assert_close(out, like, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in tensors)
    with torch.autocast(device.type, dtype, enabled=False):
        assert gelu_ffn(*tensors).dtype == torch.float32


@pytest.mark.parametrize("path", ["triton", "cublas"])
@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"dropout_p": 0.3}], ids=str)
def test_backward_inside_of_autocast_computes_in_the_forwards_dtype(device, seed, options, path):
    """As in a float32 island of an autocast region. torch's own products run in autocast's dtype there."""
    tensors = small(device)
    for run, leaves in (
        (lambda *t: gelu_ffn(*t, path=path, **options), tensors),
        (lambda *t: linear_gelu(*t, path=path), tensors[:3]),
    ):
        with torch.autocast(device.type, torch.bfloat16):
            with torch.autocast(device.type, enabled=False):
                out = run(*leaves)
            dout = torch.randn_like(out)
            got = torch.autograd.grad(out, leaves, dout, retain_graph=True)
        want = torch.autograd.grad(out, leaves, dout)
        assert out.dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_autocast_leaves_float64_alone(device):
    x, w1, b1, w2, b2 = small(device, torch.float64)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.nn.functional.linear(x, w1).dtype == torch.float64
        for run in (lambda: gelu_ffn(x, w1, b1, w2, b2), lambda: linear_gelu(x, w1, b1)):
            with pytest.raises(TypeError, match=r"x is torch.float64.*reference"):
                run()
        with pytest.raises(TypeError, match=r"w1 is torch.float64"):
            gelu_ffn(x.float(), w1, b1, w2, b2)


# ------------------------------------------------------------------------------------------------------ autograd's ways


@pytest.mark.parametrize("path", ["triton", "cublas"])
@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 5, 16)], ids=str)
def test_results_may_be_modified_in_place(device, seed, shape, path):
    x, w1, b1, w2, b2 = ffn_inputs(device, torch.float32, shape, 24, 16)
    r = torch.randn(shape, device=device, requires_grad=True)

    def ffn(function, *more, **options):
        h = function(x, w1, b1, w2, b2, **options)
        h += r
        return h.square().sum()

    def linear(function, **options):
        h = function(x, w1, b1, **options)
        h.mul_(2.0)[..., 0] = 0.0
        return h.square().sum()

    for run, name, ours, leaves in (
        (ffn, "gelu_ffn", gelu_ffn, (x, w1, b1, w2, b2, r)),
        (linear, "linear_gelu", linear_gelu, (x, w1, b1)),
    ):
        want = torch.autograd.grad(run(getattr(reference, name)), leaves)
        got = torch.autograd.grad(run(ours, path=path), leaves)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_saved_pre_activation_may_not_be_modified(device, seed):
    tensors = small(device)
    for out, pre in (
        OPS.linear_gelu_fwd(*tensors[:3], "none", True, "cublas"),
        OPS.gelu_ffn_fwd(*tensors, None, None, 0.0, "none", True, False, "cublas"),
    ):
        pre.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


class _Dead(torch.autograd.Function):
    """The identity, whose backward gives no gradient at all."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_upstream_gradient_is_no_gradient(device, seed):
    for run in (lambda *t: gelu_ffn(*t), lambda *t: linear_gelu(*t[:3])):
        tensors = small(device)
        _Dead.apply(run(*tensors)).sum().backward()
        assert all(t.grad is None for t in tensors)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(device, seed, reentrant):
    tensors, dout = small(device), torch.randn(2, 5, 8, device=device)

    def run(*t):
        return gelu_ffn(*t, dropout_p=0.3)

    torch.manual_seed(seed)
    want = torch.autograd.grad(run(*tensors), tensors, dout)
    torch.manual_seed(seed)
    out = checkpoint(run, *tensors, use_reentrant=reentrant)
    out.backward(dout)
    assert all(torch.equal(t.grad, b) for t, b in zip(tensors, want))


def test_functional_call_and_copies(device, seed):
    from fastgpt.nn import GELUFFN

    module, x = GELUFFN(16, 24, 8, impl="triton", device=device), torch.randn(2, 16, device=device)
    replaced = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    other = copy.deepcopy(module)
    other.load_state_dict(replaced)
    torch.testing.assert_close(torch.func.functional_call(module, replaced, (x,)), other(x))


def test_dropout_draws_anew_and_follows_manual_seed(device, seed):
    tensors = small(device, grad=False)

    def draw():
        return gelu_ffn(*tensors, dropout_p=0.5)

    torch.manual_seed(1)
    first = draw()
    assert not torch.equal(first, draw())
    torch.manual_seed(1)
    assert torch.equal(first, draw())


def test_saved_tensor_hooks_may_move_what_is_saved(device, seed):
    """Offloading hooks hand back other tensors; backward may overwrite those too."""
    tensors, dout = small(device), torch.randn(2, 5, 8, device=device)
    want = torch.autograd.grad(gelu_ffn(*tensors), tensors, dout)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        got = torch.autograd.grad(gelu_ffn(*tensors), tensors, dout)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.gpu
def test_cuda_graph():
    tensors = ffn_inputs("cuda", torch.bfloat16, (256, 128), 512, 128)
    dout = torch.randn(256, 128, device="cuda", dtype=torch.bfloat16)

    def step():
        for t in tensors:
            t.grad = None
        out = gelu_ffn(*tensors, residual=tensors[0])
        out.backward(dout)
        return [out, *(t.grad for t in tensors)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors[0].copy_(torch.randn_like(tensors[0]))
    graph.replay()
    replayed = [t.clone() for t in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, step()))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_inputs():
    tensors = small("cuda:1")
    assert gelu_ffn(*tensors).device == torch.device("cuda:1")


# ------------------------------------------------------------------------------------------ who may see an overwriting


@pytest.mark.parametrize("path", ["triton", "cublas"])
@pytest.mark.parametrize("save_pre", [False, True])
def test_opcheck_with_overwrite_pre(device, seed, path, save_pre):
    x, w1, b1, w2, b2 = small(device)
    arguments = (x, w1, b1, w2, b2, None, None, 0.0, "none", save_pre, True, path)
    torch.library.opcheck(OPS.gelu_ffn_fwd.default, arguments)
    with torch.no_grad():
        torch.library.opcheck(OPS.gelu_ffn_fwd.default, arguments)


def test_what_backward_overwrites_nobody_else_holds(device, seed):
    tensors, dout = small(device), torch.randn(2, 5, 8, device=device)
    arguments = (*tensors, None, None, 0.0, "none", True)
    y, nothing = OPS.gelu_ffn_fwd(*arguments, True, "triton")
    assert nothing.shape == (0,)
    want = torch.autograd.grad(y, tensors, dout)
    y, pre = OPS.gelu_ffn_fwd(*arguments, False, "triton")
    before = pre.clone()
    got = torch.autograd.grad(y, tensors, dout)
    assert torch.equal(pre, before)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_the_overwriting_backward_tells_autograd(device, seed):
    """Another function that has saved the pre-activation must not go on with what lies there now."""
    x, w1, b1, w2, _ = small(device, grad=False)
    pre, scale = torch.randn(10, 24, device=device), torch.ones(10, 24, device=device, requires_grad=True)
    product = pre * scale
    dout, rest = torch.randn(2, 5, 8, device=device), (None, 0.0, "none", [True] * 5, "triton")
    version = pre._version
    OPS.gelu_ffn_bwd(dout, x, w1, b1, w2, pre, *rest)
    assert pre._version == version
    OPS.gelu_ffn_bwd_(dout, x, w1, b1, w2, pre, *rest)
    assert pre._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
