"""torch.func and forward-mode AD around every public function: right, or refused with the way out named."""

import contextlib

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, jacfwd, jacrev, jvp, vjp, vmap

from fastgpt import kernels
from fastgpt.kernels import _library

from .calls import CALLS, DROPOUT

pytest.importorskip("triton")

FORWARD_MODE = r"has no forward-mode derivative.*kernels\.reference\.{}"
ONCE = r"differentiable once.*kernels\.reference\.{}"
NAMES = list(CALLS)
REFUSING = [name for name in CALLS if name != "scaled_dot_product_attention"]  # which goes to torch's own instead


def public(name):
    """The public function whose operator a call runs first."""
    name = name.split(",")[0]
    return "flash_attention" if name == "scaled_dot_product_attention" else name


def loss_of(call, integers, upstream=None):
    """A scalar of the floating-point inputs, in order."""

    def loss(*floats):
        outputs = call.run(kernels, {**dict(zip(call.floats, floats)), **integers})
        return sum(
            (o * (o.detach().cos() if upstream is None else u)).sum() for o, u in zip(outputs, upstream or outputs)
        )

    return loss


def split(call, device, requires_grad=False):
    inputs = call.inputs(device, requires_grad)
    return [inputs[n] for n in call.floats], {n: inputs[n] for n in call.integers}


def assert_close(ours, expected):
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


def expected_gradients(loss, floats):
    leaves = [x.detach().requires_grad_() for x in floats]
    return torch.autograd.grad(loss(*leaves), leaves)


# ------------------------------------------------------------------------------------------------------- reverse mode


@pytest.mark.parametrize("name", NAMES)
def test_grad_is_autograds(device, seed, name):
    call = CALLS[name]
    floats, integers = split(call, device)
    loss, every = loss_of(call, integers), tuple(range(len(floats)))
    expected = expected_gradients(loss, floats)
    for a, b in zip(grad(loss, argnums=every)(*floats), expected):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)
    (some,) = grad(loss, argnums=(len(floats) - 1,))(*floats)
    torch.testing.assert_close(some, expected[-1])
    _, backward = vjp(loss, *floats)
    assert_close(backward(torch.ones((), device=device)), expected)  # outside of the transform that saved the tensors


@pytest.mark.parametrize("name", NAMES)
def test_grad_beside_recorded_tensors(device, seed, name):
    """torch.func.grad of some arguments, of which others are recorded by autograd outside, and its reverse."""
    call = CALLS[name]
    floats, integers = split(call, device, requires_grad=True)
    loss = loss_of(call, integers)
    expected = torch.autograd.grad(loss(*floats), floats)
    value = vjp(loss, *floats)[0]  # recorded outside too
    assert_close(torch.autograd.grad(value, floats), expected)
    first = grad(lambda x: loss(x, *floats[1:]))(floats[0].detach())
    torch.testing.assert_close(first, expected[0])


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_a_loop(device, seed, name):
    """Samples along different dimensions, of one argument, of all, or of the integers only."""
    call = CALLS[name]
    singles = [call.inputs(device) for _ in range(2)]
    names = list(singles[0])

    def check(dims):
        batched = [
            torch.stack([s[n] for s in singles], dim=dims[n]) if dims[n] is not None else singles[0][n] for n in names
        ]
        run = vmap(lambda *x: call.run(kernels, dict(zip(names, x))), in_dims=tuple(dims[n] for n in names))
        rows = [[b if dims[n] is None else b.select(dims[n], i) for n, b in zip(names, batched)] for i in range(2)]
        expected = [call.run(kernels, dict(zip(names, row))) for row in rows]
        assert_close(run(*batched), [torch.stack(o) for o in zip(*expected)])

    check(dict.fromkeys(names, 0))
    check({n: -1 if n in call.floats else 0 for n in names})
    check({n: 1 if i == 0 else None for i, n in enumerate(names)})
    check({n: 0 if n == names[-1] else None for n in names})


@pytest.mark.parametrize("name", NAMES)
def test_per_sample_gradients(device, seed, name):
    call = CALLS[name]
    floats, integers = split(call, device)
    loss, every = loss_of(call, integers), tuple(range(len(floats)))
    samples = torch.stack([floats[0], floats[0].flip(0) * 0.5])
    expected = [expected_gradients(loss, [s, *floats[1:]]) for s in samples]
    expected = [torch.stack(g) for g in zip(*expected)]
    in_dims = (0, *(None for _ in floats[1:]))
    assert_close(vmap(grad(loss, argnums=every), in_dims)(samples, *floats[1:]), expected)
    total = grad(lambda x: vmap(loss, in_dims)(x, *floats[1:]).sum())(samples)
    torch.testing.assert_close(total, expected[0], atol=2e-5, rtol=2e-5)
    samples.requires_grad_()
    recorded = torch.autograd.grad(vmap(loss, in_dims)(samples, *floats[1:]).sum(), samples)[0]
    torch.testing.assert_close(recorded, expected[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_jacobians_by_reverse_mode(device, seed, name):
    call = CALLS[name]
    floats, integers = split(call, device)

    def first_output(x):
        outputs = call.run(kernels, {**dict(zip(call.floats, [x, *floats[1:]])), **integers})
        return outputs[0].flatten()[:2]

    x = floats[0].detach().requires_grad_()
    y = first_output(x)
    rows = [torch.autograd.grad(y_i, x, retain_graph=True)[0] for y_i in (y if y.numel() > 1 else [y[0]])]
    torch.testing.assert_close(jacrev(first_output)(floats[0]), torch.stack(rows))
    y = first_output(x)
    (batched,) = torch.autograd.grad(y, x, torch.eye(y.numel(), device=device), is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack(rows))
    torch.testing.assert_close(torch.autograd.functional.jacobian(first_output, floats[0]), torch.stack(rows))


def test_batched_gradients_of_a_graph_that_dies(device, seed):
    """Backward passes that may overwrite what they saved must not where vmap makes several of one."""
    x, w1, w2 = (torch.randn(s, device=device) for s in ((3, 8), (12, 8), (8, 12)))
    upstream = torch.randn(2, 3, 8, device=device)
    expected = []
    for g in upstream:
        x_ = x.clone().requires_grad_()
        expected.append(torch.autograd.grad(kernels.gelu_ffn(x_, w1, None, w2, None), x_, g)[0])
    x.requires_grad_()
    y = kernels.gelu_ffn(x, w1, None, w2, None)
    (ours,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=False)
    torch.testing.assert_close(ours, torch.stack(expected))

    logits, target = torch.randn(3, 8, device=device), torch.tensor([1, 2, 7], device=device)
    upstream, expected = torch.randn(2, 3, device=device), []
    for g in upstream:
        x_ = logits.clone().requires_grad_()
        loss = kernels.cross_entropy(x_ * 1, target, reduction="none", inplace=True)
        expected.append(torch.autograd.grad(loss, x_, g)[0])
    x_ = logits.clone().requires_grad_()
    loss = kernels.cross_entropy(x_ * 1, target, reduction="none", inplace=True)
    (ours,) = torch.autograd.grad(loss, x_, upstream, is_grads_batched=True, retain_graph=False)
    torch.testing.assert_close(ours, torch.stack(expected))


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_under_vmap(device, seed, name):
    """As torch's: an error unless the caller says whether the samples share their mask."""
    call = DROPOUT[name]
    floats, _ = split(call, device)
    run = lambda *x: call.run(kernels, dict(zip(call.floats, x)))[0]  # noqa: E731
    samples = [torch.stack([x, x]) for x in floats]
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(run)(*samples)
    same, different = (vmap(run, randomness=r)(*samples) for r in ("same", "different"))
    assert torch.equal(*same)
    assert not torch.equal(*different)


@pytest.mark.parametrize("name", ["flash_attention", "linear_cross_entropy", "gelu_ffn"])
def test_functional_call_of_many_models(device, seed, name):
    """Ensembles: one input, stacked parameters."""
    call = CALLS[name]
    first, *names = call.floats

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for n in names:
                self.register_parameter(n, torch.nn.Parameter(torch.randn(call.floats[n], device=device)))

        def forward(self, x):
            tensors = {first: x, **dict(self.named_parameters()), **integers}
            return call.run(kernels, tensors)[0]

    floats, integers = split(call, device)
    models = [Model() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    ours = vmap(lambda p, b, x: functional_call(models[0], (p, b), (x,)), (0, 0, None))(parameters, buffers, floats[0])
    torch.testing.assert_close(ours, torch.stack([m(floats[0]) for m in models]))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DROPOUT])
def test_a_result_of_captured_tensors_may_be_written_into(device, seed, name):
    """A transform is active, and no argument is one of its tensors: the result must be, for what comes next."""
    call = CALLS[name]
    captured = call.inputs(device)

    def loss(x):
        out = call.run(kernels, captured)[0]
        return (out.mul_(x) if out.dim() else out * x).square().sum()  # of a captured tensor it would be an error

    x = torch.tensor(1.5, device=device)
    out = call.run(kernels, captured)[0]
    torch.testing.assert_close(grad(loss)(x), 2 * x * out.square().sum())


def test_no_samples(device, seed):
    out = vmap(kernels.layer_norm)(torch.randn(0, 3, 8, device=device))
    assert out.shape == (0, 3, 8)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["flash_attention", "gelu_ffn", "linear_cross_entropy"])
def test_compiled_transforms(device, seed, name, backend):
    torch._dynamo.reset()
    call = CALLS[name]
    floats, integers = split(call, device)
    loss = loss_of(call, integers, [1.0, 1.0])
    compiled = torch.compile(lambda *x: vmap(grad(loss), (0, *(None for _ in floats[1:])))(*x), backend=backend)
    samples = torch.stack([floats[0], floats[0] * 0.5])
    expected = torch.stack([grad(loss)(s, *floats[1:]) for s in samples])
    torch.testing.assert_close(compiled(samples, *floats[1:]), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_functionalize(device, seed, name):
    call = CALLS[name]
    floats, integers = split(call, device)
    run = lambda *x: call.run(kernels, {**dict(zip(call.floats, x)), **integers})  # noqa: E731
    assert_close(torch.func.functionalize(run)(*floats), run(*floats))


# ---------------------------------------------------------------------------------- forward mode, and twice in reverse


def refused(name, function, error=NotImplementedError, message=FORWARD_MODE):
    with pytest.raises(error, match=message.format(public(name))):
        function()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", REFUSING)
def test_forward_mode_is_refused(device, seed, name, recorded):
    """Whichever argument carries the tangent, under every way in, in no_grad too."""
    call = CALLS[name]
    floats, integers = split(call, device, requires_grad=recorded)
    loss = loss_of(call, integers, [1.0, 1.0])
    for i, x in enumerate(floats):
        of_one = lambda x, i=i: loss(*floats[:i], x, *floats[i + 1 :])  # noqa: E731
        for context in (contextlib.nullcontext, torch.no_grad):
            with context(), forward_ad.dual_level():
                refused(name, lambda of_one=of_one, x=x: of_one(forward_ad.make_dual(x, torch.ones_like(x))))
        refused(name, lambda of_one=of_one, x=x: jvp(of_one, (x.detach(),), (torch.ones_like(x),)))
    refused(name, lambda: torch.no_grad()(jvp)(loss, (*floats,), (*map(torch.ones_like, floats),)))
    refused(name, lambda: jacfwd(loss)(*floats))
    refused(
        name, lambda: vmap(lambda x: jvp(loss, (x, *floats[1:]), (*map(torch.ones_like, floats),)))(floats[0][None])
    )
    refused(name, lambda: jvp(grad(loss), (*floats,), (*map(torch.ones_like, floats),)))
    refused(name, lambda: torch.func.hessian(loss)(*floats))
    every = tuple(floats)
    refused(
        name,
        lambda: torch.autograd.functional.jacobian(loss, every, strategy="forward-mode", vectorize=True),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_tangent_of_the_upstream_gradient_is_refused(device, seed, name):
    call = CALLS[name]
    floats, integers = split(call, device, requires_grad=True)
    outputs = call.run(kernels, {**dict(zip(call.floats, floats)), **integers})
    if name == "attention_weights":
        pytest.skip("its backward pass is written in torch's operators, which keep tangents")
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(outputs[0]), torch.ones_like(outputs[0]))
        refused(name, lambda: torch.autograd.grad(outputs[0], floats, upstream, allow_unused=True))


def test_sdpa_goes_to_torchs_own_under_forward_mode(device, seed):
    q, k, v = (torch.randn(2, 5, 16, device=device, dtype=torch.float64) for _ in range(3))
    call = lambda f: lambda *x: f(*x, is_causal=True)  # noqa: E731
    expected = jvp(call(kernels.reference.scaled_dot_product_attention), (q, k, v), (k, v, q))
    singles = [tuple(x.float() for x in tensors) for tensors in ((q, k, v), (k, v, q))]
    ours = jvp(call(kernels.scaled_dot_product_attention), *singles)
    torch.testing.assert_close([x.double() for x in ours], [*expected], atol=1e-5, rtol=1e-5)


def test_a_tangent_that_is_not_there_costs_nothing(device, seed):
    x = torch.randn(3, 8, device=device)
    expected = kernels.layer_norm(x)
    with forward_ad.dual_level():
        assert torch.equal(kernels.layer_norm(x), expected)
        x_ = forward_ad.make_dual(x, x)
        with torch.inference_mode():  # drops tangents, by torch's own rule
            assert torch.equal(kernels.layer_norm(x_), expected)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "attention_weights"])
def test_a_second_derivative_is_refused(device, seed, name):
    call = CALLS[name]
    floats, integers = split(call, device)
    loss = loss_of(call, integers, [1.0, 1.0])
    every = tuple(range(len(floats)))

    def square(*x):
        return sum(g.square().sum() for g in grad(loss, argnums=every)(*x))

    once = {"error": RuntimeError, "message": ONCE}
    refused(name, lambda: grad(square)(*floats), **once)
    refused(name, lambda: jacrev(jacrev(loss))(*floats), **once)
    ones = tuple(map(torch.ones_like, floats))
    refused(name, lambda: torch.autograd.functional.hvp(loss, tuple(floats), ones), **once)
    refused(name, lambda: torch.autograd.functional.vhp(loss, tuple(floats), ones), **once)
    refused(name, lambda: torch.autograd.functional.hessian(loss, tuple(floats)), **once)
    refused(name, lambda: torch.autograd.functional.jvp(loss, tuple(floats), ones), **once)
    leaves = [x.requires_grad_() for x in floats]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    refused(name, lambda: torch.autograd.grad(sum(g.sum() for g in first), leaves[0]), **once)


@pytest.mark.parametrize("name", _library.launches)
def test_every_operator_has_the_rules(name):
    """Called through torch.ops too: no operator has another way in."""
    operator = getattr(torch.ops.fastgpt, name).default
    assert operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode)


def test_operators_called_through_torch_ops(device, seed):
    x = torch.randn(3, 8, device=device)
    call = lambda x: torch.ops.fastgpt.layer_norm_fwd(x, None, None, 1, 1e-5, torch.float32)[0]  # noqa: E731
    expected = kernels.layer_norm(x)
    torch.testing.assert_close(vmap(call)(x), expected)
    torch.testing.assert_close(
        grad(lambda x: call(x).sin().sum())(x), grad(lambda x: kernels.layer_norm(x).sin().sum())(x)
    )
    refused("layer_norm", lambda: jvp(call, (x,), (x,)))
    with torch.no_grad(), forward_ad.dual_level():
        refused("layer_norm", lambda: call(forward_ad.make_dual(x, x)))


@pytest.mark.parametrize("name", ["flash_attention", "layer_norm", "linear_gelu", "linear_cross_entropy"])
def test_functionalize_around_a_transform_is_refused(device, seed, name):
    """torch has no rule for it; inside it has, which the message says."""
    call = CALLS[name]
    floats, integers = split(call, device)
    loss = loss_of(call, integers)
    per_sample = vmap(loss, in_dims=(0, *[None] * (len(floats) - 1)))
    for function, first in ((grad(loss), floats[0]), (per_sample, floats[0][None])):
        with pytest.raises(NotImplementedError, match=rf"functionalize inside.*kernels\.reference\.{public(name)}"):
            functionalize(function)(first, *floats[1:])
    assert_close([grad(functionalize(loss))(*floats)], [grad(loss)(*floats)])
