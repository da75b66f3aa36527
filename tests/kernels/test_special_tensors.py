"""Tensors that are not what they look like: what they say counts, not what their storage holds.

Every public function, forward and backward, with inputs and incoming gradients of each kind, must give the bits that it
gives for plain copies of them.
"""

import pytest
import torch
import torch.utils.flop_counter
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map, tree_map_only

from fastgpt import kernels

from .calls import CALLS, DROPOUT

pytest.importorskip("triton")


class FunctionSubclass(Tensor):
    """Seen by __torch_function__ only."""


class Wrapper(Tensor):
    """Holds its elements in another tensor: it has no storage to be read."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inner = tree_map_only(Wrapper, lambda w: w.inner, (args, kwargs or {}))
        out = func(*inner[0], **inner[1])
        return return_and_correct_aliasing(func, args, kwargs or {}, tree_map_only(Tensor, Wrapper, out))


def negated(x):
    """What `.conj().imag` of a complex tensor gives, of any dtype: minus sign pending."""
    assert torch._neg_view(x.neg()).is_neg()
    return torch._neg_view(x.neg())


def imaginary(x):
    return torch.complex(torch.zeros_like(x), x.neg()).conj().imag if x.is_floating_point() else x


def expanded(x):
    return x[:1].expand(x.shape) if x.dim() and x.is_floating_point() else x


def offset(x):
    return torch.cat([x.new_zeros(3), x.flatten(), x.new_zeros(1)])[3:-1].view(x.shape)


def permuted(x):
    return x.mT.contiguous().mT if x.dim() > 1 else torch.stack([x, x], dim=-1)[..., 0]


def broken(x):
    """Rows and columns far apart, last dimension not adjacent."""
    return torch.cat([x, x, x], dim=-1)[..., : 2 * x.shape[-1] : 2] if x.dim() and x.is_floating_point() else x


VIEWS = {f.__name__: f for f in (negated, imaginary, expanded, offset, permuted, broken)}
VIEWS["copy on write"] = torch._lazy_clone
VIEWS["view of a view"] = lambda x: (x * 1).view_as(x)[...]
TYPES = {
    "parameter": lambda x: nn.Parameter(x, x.requires_grad) if x.is_floating_point() else x,
    "buffer": nn.Buffer,
    "function subclass": lambda x: x.as_subclass(FunctionSubclass),
    "wrapper": Wrapper,
}


def plain(x):
    """A new dense tensor of the same elements."""
    x = x.inner if isinstance(x, Wrapper) else x
    with torch._C.DisableTorchFunctionSubclass():
        copy = torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x.detach())
    assert not copy.is_neg()
    assert copy.is_contiguous()
    assert type(copy) is Tensor
    return copy


def gradients(outputs, inputs, upstream):
    wanted = [x for x in inputs.values() if x.requires_grad]
    return torch.autograd.grad([o for o in outputs if o.requires_grad], wanted, upstream)


def results(call, inputs, upstream_of):
    outputs = call.run(kernels, inputs)
    upstream = [upstream_of(torch.randn(o.shape, device=o.device)) for o in outputs]
    return [*outputs, *gradients(outputs, inputs, upstream)]


def assert_the_same(call, inputs, make_upstream, seed, exact=True):
    torch.manual_seed(seed)
    ours = results(call, inputs, make_upstream)
    torch.manual_seed(seed)
    copies = {name: plain(x).requires_grad_(x.requires_grad) for name, x in inputs.items()}
    expected = results(call, copies, lambda g: plain(make_upstream(g)))
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected):
        if exact:
            assert torch.equal(plain(a), b)
        else:
            torch.testing.assert_close(plain(a), b)


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("name", [*CALLS, *DROPOUT])
def test_views(device, seed, name, kind):
    call, make = {**CALLS, **DROPOUT}[name], VIEWS[kind]
    inputs = {n: make(x) for n, x in call.inputs(device, requires_grad=True).items()}
    # Rows that are read in another way may be summed in another order.
    exact = "nega" in kind or kind in ("imaginary", "copy on write", "view of a view")
    assert_the_same(call, inputs, make, seed, exact)


@pytest.mark.parametrize("name", CALLS)
def test_one_negated_argument(device, seed, name):
    call = CALLS[name]
    for lazy in (*call.floats, *call.integers, "the upstream gradient"):
        inputs = {n: negated(x) if n == lazy else x for n, x in call.inputs(device, requires_grad=True).items()}
        assert_the_same(call, inputs, negated if lazy == "the upstream gradient" else lambda g: g, seed)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CALLS)
def test_types(device, seed, name, kind):
    call, make = CALLS[name], TYPES[kind]
    inputs = {n: make(x) for n, x in call.inputs(device).items()}
    for n in call.floats:
        inputs[n].requires_grad_()
    if "attention, packed" in name and "wrapper" in kind:
        pytest.skip("torch.bucketize writes to an out argument")
    assert_the_same(call, inputs, make, seed)
    if kind in ("function subclass", "wrapper"):
        assert all(isinstance(o, type(inputs[next(iter(inputs))])) for o in call.run(kernels, inputs))


@pytest.mark.parametrize("name", CALLS)
def test_inference_tensors(device, seed, name):
    """Made in inference mode, used inside and outside of it."""
    call = CALLS[name]
    with torch.inference_mode():
        inputs = call.inputs(device)
        inside = call.run(kernels, inputs)
        lazy = call.run(kernels, {n: negated(x) for n, x in inputs.items()})
    assert all(x.is_inference() for x in (*inputs.values(), *inside))
    expected = call.run(kernels, {n: plain(x) for n, x in inputs.items()})
    for outputs in (inside, lazy, call.run(kernels, inputs)):
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected))


@pytest.mark.parametrize("name", CALLS)
def test_zero_tensors(device, seed, name):
    """torch's efficient zeros have no memory at all."""
    call = CALLS[name]
    inputs = call.inputs(device)
    zeros = {n: torch._efficientzerotensor(x.shape, device=device) for n, x in inputs.items() if n in call.floats}
    with torch.no_grad():
        ours = call.run(kernels, {**inputs, **zeros})
        expected = call.run(kernels, {**inputs, **{n: plain(x) for n, x in zeros.items()}})
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))
    assert_the_same(
        call,
        call.inputs(device, requires_grad=True),
        lambda g: torch._efficientzerotensor(g.shape, device=device),
        seed,
    )


@pytest.mark.parametrize("name", CALLS)
def test_functional_tensors(device, seed, name):
    call = CALLS[name]
    inputs = call.inputs(device)
    ours = call.run(kernels, {n: torch._to_functional_tensor(x) for n, x in inputs.items()})
    for a, b in zip(ours, call.run(kernels, inputs)):
        torch._sync(a)
        assert torch.equal(torch._from_functional_tensor(a), b)


@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors(device, seed, name):
    call = CALLS[name]
    inputs = call.inputs(device, requires_grad=True)
    real = results(call, inputs, lambda g: g)
    with FakeTensorMode() as mode:
        fake = results(call, tree_map(mode.from_tensor, inputs), lambda g: g)
    assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]


@pytest.mark.parametrize("name", [*CALLS, *DROPOUT])
def test_nothing_in_memory(device, seed, name):
    """No rows, no batch: empty results, and gradients of the right shapes."""
    call = {**CALLS, **DROPOUT}[name]
    inputs = call.inputs(device, requires_grad=True)
    rows = next(iter(inputs.values())).shape[0]
    weights = ("w", "weight", "bias", "w1", "b1", "w2", "b2", "b", "cu_seqlens")
    empty = {n: x if n in weights else x.detach()[:0].requires_grad_(x.requires_grad) for n, x in inputs.items()}
    if "packed" in name:
        empty = {n: x if n in weights else x.detach()[:, :, :0].requires_grad_() for n, x in inputs.items()}
        empty["cu_seqlens"] = torch.zeros(2, dtype=torch.int32, device=device)
    outputs = call.run(kernels, empty)
    full = call.run(kernels, inputs)
    for o, f in zip(outputs, full):
        assert o.shape == f.shape or o.numel() == 0, (rows, o.shape)
    for x, g in zip(
        (x for x in empty.values() if x.requires_grad),
        gradients(outputs, empty, [torch.ones_like(o) for o in outputs]),
    ):
        assert g.shape == x.shape
        assert not g.any()


# -------------------------------------------------------------------------------------------------------- refusals


def refused(x):
    yield "sparse", x.to_sparse()
    yield "mkldnn", x.cpu().to_mkldnn()
    yield "nested", torch.nested.nested_tensor([x, x])
    yield "nested", torch.nested.nested_tensor([x, x], layout=torch.jagged)
    yield "complex64", torch.complex(x, x)
    yield "qint8", torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
    yield "list", x.tolist()
    if x.dim() == 2:
        yield "sparse_csr", x.to_sparse_csr()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("scaled_dot")])
def test_what_is_not_dense_and_real_is_refused_by_name(device, seed, name):
    call = CALLS[name]
    inputs = call.inputs(device)
    for argument in inputs:
        for kind, other in refused(inputs[argument].float()):
            if kind == "complex64" and argument in call.integers and argument != "target":
                continue
            with pytest.raises(TypeError) as error:
                call.run(kernels, {**inputs, argument: other})
            function = name.split(",")[0]
            assert str(error.value).startswith(f"{function}: {argument} "), str(error.value)
            assert kind in str(error.value)


# ------------------------------------------------------------------------------------------- what bypasses an operator


@pytest.mark.parametrize("lazy", ["logits", "target", "upstream"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_the_loss_that_overwrites_its_logits(device, seed, lazy, reduction):
    """Its backward pass writes into storage, and must not where that says something else."""
    target = torch.tensor([3, 0, 10], device=device)
    x = torch.randn(3, 11, device=device, requires_grad=True)
    g = torch.randn(3 if reduction == "none" else (), device=device)

    def gradient(make, inplace):
        logits = make(x) if lazy == "logits" else x * 1
        targets = make(target) if lazy == "target" else target
        loss = kernels.cross_entropy(logits, targets, reduction=reduction, inplace=inplace)
        return torch.autograd.grad(loss, x, make(g) if lazy == "upstream" else g)[0]

    assert torch.equal(plain(gradient(negated, True)), gradient(lambda t: t * 1, False))


def test_saved_tensors_handed_back_negated(device, seed):
    """Hooks may give back what they like: a backward pass that overwrites what was saved looks at it first."""
    x, w1, w2 = (torch.randn(s, device=device, requires_grad=True) for s in ((3, 8), (12, 8), (8, 12)))
    g = torch.randn(3, 8, device=device)
    expected = torch.autograd.grad(kernels.gelu_ffn(x, w1, None, w2, None), (x, w1, w2), g)
    pack = lambda t: t.detach().neg() if t.is_floating_point() else t  # noqa: E731
    unpack = lambda t: torch._neg_view(t) if t.is_floating_point() else t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = kernels.gelu_ffn(x, w1, None, w2, None)
    for a, b in zip(torch.autograd.grad(y, (x, w1, w2), g), expected):
        assert torch.equal(plain(a), b)


@pytest.mark.parametrize("name", CALLS)
def test_modes_that_watch_see_negated_tensors_right(device, seed, name):
    """Through the dispatcher, which resolves them before a mode or a kernel sees them."""
    call = CALLS[name]
    inputs = call.inputs(device)
    expected = call.run(kernels, inputs)
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        ours = call.run(kernels, {n: negated(x) for n, x in inputs.items()})
    assert all(torch.equal(plain(a), b) for a, b in zip(ours, expected))
