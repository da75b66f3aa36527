"""What autograd asks of the two functions: which gradients, how often, in place or not, and through lse."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from fastgpt.kernels import cross_entropy, linear_cross_entropy, reference
from tests.support.budget import GRADIENT, OUTPUT, assert_all_within_budget, assert_within_budget, exactly

from .cases import FLOAT_DTYPES, Problem, problem, run


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_second_backward_through_a_retained_graph(device, seed, reduction):
    p = problem(device, torch.bfloat16)
    loss = linear_cross_entropy(p.x, p.weight, p.target, p.bias, reduction=reduction)
    upstream = torch.randn_like(loss)
    first = torch.autograd.grad(loss, p.leaves, upstream, retain_graph=True)
    doubled = torch.autograd.grad(loss, p.leaves, upstream * 2, retain_graph=True)
    again = torch.autograd.grad(loss, p.leaves, upstream)
    for a, b, c in zip(first, doubled, again):
        assert torch.equal(a * 2, b)
        assert torch.equal(a, c)


@pytest.fixture
def products(monkeypatch) -> set[tuple[int, ...]]:
    """The shapes of all matrix products that have been made."""
    shapes = set()

    def recorded(original):
        def product(*args, **kwargs):
            out = original(*args, **kwargs)
            shapes.add(tuple(out.shape))
            return out

        return product

    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, recorded(getattr(torch, name)))
    return shapes


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x weight", "weight bias"])
def test_only_the_gradients_asked_for(device, seed, products, wanted, reduction):
    p = problem(device, torch.float32)
    _, full = run(linear_cross_entropy, p, reduction=reduction)
    p.x.requires_grad_("x" in wanted.split())
    p.weight.requires_grad_("weight" in wanted)
    p.bias.requires_grad_("bias" in wanted)
    products.clear()
    linear_cross_entropy(p.x, p.weight, p.target, p.bias, reduction=reduction).sum().backward()
    assert ((15, 16) in products) == ("x" in wanted.split())
    assert ((128, 16) in products) == ("weight" in wanted)  # 99 classes, padded for the GEMMs
    for leaf, gradient in zip((p.x, p.weight, p.bias), full):
        assert (leaf.grad is None) == (not leaf.requires_grad)
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, gradient)


def test_forward_without_gradients_computes_the_loss_only(device, seed, monkeypatch):
    from fastgpt.kernels.linear_cross_entropy import launch

    p = problem(device, torch.float32)
    expected = linear_cross_entropy(p.x, p.weight, p.target, p.bias, z_loss=0.1).detach()
    monkeypatch.setattr(launch, "_loss_and_gradient", None)
    monkeypatch.setattr(launch._Gradients, "add", None)
    with torch.no_grad():
        loss = linear_cross_entropy(p.x, p.weight, p.target, p.bias, z_loss=0.1)
    frozen = [t.detach() for t in (p.x, p.weight)]
    again = linear_cross_entropy(*frozen, p.target, p.bias.detach(), z_loss=0.1)
    assert loss.grad_fn is None
    assert again.grad_fn is None
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_accumulation_is_exact(device, seed, dtype):
    """32 sequences at once, or 4 x 8 of them summed and divided by all tokens: one gradient, whatever is hidden."""
    p = problem(device, dtype, (32, 2), 33, 8, bias=False)
    lengths = torch.randint(0, 3, (32, 1), device=device)
    p.target = torch.where(torch.arange(2, device=device) < lengths, p.target, -100)
    p.target[0, 0] = 1
    tokens = (p.target != -100).sum()

    def at_once(function, x, weight):
        loss = function(x, weight, p.target)
        return [loss, *torch.autograd.grad(loss, weight)]

    def in_parts(function, x, weight):
        micro = [function(x[i : i + 8], weight, p.target[i : i + 8], reduction="sum") / tokens
                 for i in range(0, 32, 8)]  # fmt: skip
        gradients = [torch.autograd.grad(loss, weight)[0] for loss in micro]
        return [sum(micro[1:], micro[0]), sum(gradients[1:], gradients[0])]

    right = exactly(functools.partial(at_once, reference.linear_cross_entropy), p.x, p.weight)
    for way in (at_once, in_parts):  # parts round more: each gradient, and each sum of them
        plain = functools.partial(way, reference.linear_cross_entropy)
        same = exactly(plain, p.x, p.weight)
        three = way(linear_cross_entropy, p.x, p.weight), plain(p.x, p.weight), same
        for name, a, b, c, value, factor in zip(("loss", "dweight"), *three, right, (OUTPUT, GRADIENT)):
            torch.testing.assert_close(c.value, value.value, rtol=1e-12, atol=1e-12)
            assert_within_budget(name, a, b, c, factor=factor)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_lse_is_differentiable(device, seed, dtype, reduction):
    p = problem(device, dtype)
    g_loss, g_lse = torch.randn(3, 5, device=device), torch.randn(3, 5, device=device)

    def gradients(function, p, g_loss, g_lse, **settings):
        loss, lse = function(p.x, p.weight, p.target, p.bias, reduction=reduction, return_lse=True, **settings)
        assert lse.shape == p.target.shape
        return [lse, *torch.autograd.grad((loss * g_loss).sum() + (lse * g_lse).sum(), p.leaves)]

    def plain(x, weight, bias, g_loss, g_lse):
        return gradients(reference.linear_cross_entropy, Problem(x, weight, bias, p.target), g_loss, g_lse, softcap=9.0)

    inputs = p.x, p.weight, p.bias, g_loss, g_lse
    ours = gradients(linear_cross_entropy, p, g_loss, g_lse, softcap=9.0, num_chunks=2)
    torchs, exact = plain(*inputs), exactly(plain, *inputs)
    assert_within_budget("lse", ours[0], torchs[0], exact[0], factor=OUTPUT)
    assert_all_within_budget(("dx", "dweight", "dbias"), ours[1:], torchs[1:], exact[1:], factor=GRADIENT)


def test_lse_alone_and_unused(device, seed):
    p = problem(device, torch.float32, bias=False)
    loss, lse = linear_cross_entropy(p.x, p.weight, p.target, return_lse=True)
    alone = torch.autograd.grad(lse.sum(), p.leaves, retain_graph=True)

    def plain(*leaves):
        return torch.autograd.grad(torch.logsumexp(F.linear(*leaves), -1).sum(), leaves)

    exact = exactly(plain, *p.leaves)
    assert_all_within_budget(("dx", "dweight"), alone, plain(*p.leaves), exact, factor=GRADIENT)
    unused = torch.autograd.grad(loss, p.leaves)
    _, without = run(linear_cross_entropy, p)
    for a, b in zip(unused, without):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("trainable", ["all", "weight"])
def test_double_backward_raises(device, seed, reduction, trainable):
    p = problem(device, torch.float32, bias=False)
    p.x.requires_grad_(trainable == "all")
    loss = linear_cross_entropy(p.x, p.weight, p.target, reduction=reduction).sum()
    (dweight,) = torch.autograd.grad(loss, p.weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once.*reference"):
        dweight.square().sum().backward()


@pytest.mark.parametrize("inplace", [False, True])
def test_double_backward_of_cross_entropy_raises(device, seed, inplace):
    leaf = torch.randn(3, 9, device=device, requires_grad=True)
    loss = cross_entropy(leaf * 1.0, torch.zeros(3, dtype=torch.int64, device=device), inplace=inplace)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once.*reference"):
        gradient.sum().backward()


class TestInplace:
    """cross_entropy(..., inplace=True): the backward pass writes over the logits, and autograd knows it."""

    @pytest.fixture
    def leaf(self, device, seed):
        return torch.randn(4, 300, device=device, requires_grad=True)

    @pytest.fixture
    def target(self, device):
        return torch.tensor([0, 299, -100, 7], device=device)

    def test_writes_over_the_logits_and_nowhere_else(self, leaf, target):
        storage = torch.full((4, 320), 7.0, device=leaf.device)
        logits = storage[:, :300].copy_(leaf)  # rows wider than V: what lies between belongs to the user
        logits.retain_grad()
        before = logits.detach().clone()
        loss = cross_entropy(logits, target, inplace=True)
        assert torch.equal(logits, before)
        loss.backward()

        def plain(leaf):
            return torch.autograd.grad(F.cross_entropy(leaf, target), leaf)

        (exact,) = exactly(plain, leaf)
        assert_within_budget("dlogits", leaf.grad, *plain(leaf), exact, factor=GRADIENT)
        assert torch.equal(logits.detach(), leaf.grad)
        assert (storage[:, 300:] == 7.0).all()

    def test_default_leaves_the_logits_alone(self, leaf, target):
        logits = leaf * 1.0
        before = logits.detach().clone()
        loss = cross_entropy(logits, target)
        first = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert torch.equal(logits, before)
        assert torch.equal(*first, *torch.autograd.grad(loss, leaf))

    def test_second_backward_raises(self, leaf, target):
        loss = cross_entropy(leaf * 1.0, target, inplace=True)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=r"second backward.*inplace=False"):
            loss.backward()

    def test_other_users_of_the_logits_raise(self, leaf, target):
        logits = leaf * 1.0
        other = logits.square().sum()  # saves the logits
        cross_entropy(logits, target, inplace=True).backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            other.backward()

    def test_backward_after_a_change_of_the_logits_raises(self, leaf, target):
        logits = leaf * 1.0
        loss = cross_entropy(logits, target, inplace=True)
        logits.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_make_fx_records_the_gradient(self, leaf, target):
        """In its real mode tensors are plain, and yet each step has to be an operator."""

        def gradient(x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(cross_entropy(x * 1.0, target, inplace=True), x)[0]

        traced = make_fx(gradient)(torch.randn_like(leaf))
        assert torch.equal(traced(leaf.detach()), gradient(leaf))

    def test_the_profiler_sees_an_operator_that_writes_over_the_logits(self, leaf, target):
        def gradient():
            logits = leaf * 1.0
            (g,) = torch.autograd.grad(cross_entropy(logits, target, inplace=True), logits)
            assert g.data_ptr() == logits.data_ptr()
            return g

        with torch.autograd.profiler.profile() as profile:
            seen = gradient()
        assert "fastgpt::cross_entropy_bwd_" in [event.name for event in profile.function_events]
        assert torch.equal(seen, gradient())

    @pytest.mark.parametrize("view", [lambda x: x.view(2, 2, 300), lambda x: x[1:].view(3, 3, 100), lambda x: x.t()])
    def test_a_view_of_a_leaf_is_refused_as_torch_does(self, leaf, view):
        logits = view(leaf)
        target = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=leaf.device)
        with pytest.raises(RuntimeError, match="a view of a leaf Variable"):
            logits.mul_(2.0)
        with pytest.raises(ValueError, match=r"cross_entropy: inplace=True .* a view of a leaf .* inplace=False"):
            cross_entropy(logits, target, inplace=True)
        with torch.no_grad():  # there is no backward pass
            cross_entropy(view(leaf), target, inplace=True)
        cross_entropy(view(leaf * 1.0), target, inplace=True).backward()

    def test_upstream_gradients_that_lie_in_the_logits(self, leaf, target):
        """What every row's programs read must not be overwritten by the first row's."""

        def gradient(inplace, upstream):
            logits = leaf * 1.0
            losses = cross_entropy(logits, target, reduction="none", return_lse=True, inplace=inplace)
            first_row = logits.detach()[0]
            return torch.autograd.grad(losses, leaf, upstream(first_row[:4], first_row[1:5]))[0]

        expected = gradient(False, lambda a, b: (a.clone(), b.clone()))
        assert torch.equal(gradient(True, lambda a, b: (a, b.clone())), expected)
        assert torch.equal(gradient(True, lambda a, b: (a.clone(), b)), expected)

    @pytest.mark.parametrize("unpack", [lambda x: x[:1].expand(4, 300), lambda x: x.t().contiguous().t()])
    def test_saved_logits_handed_back_in_other_memory(self, leaf, target, unpack):
        def gradient(inplace):
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x: x, lambda x: unpack(x.detach()) if x.shape == leaf.shape else x
            ):
                loss = cross_entropy(leaf[:1].expand(4, 300) * 1.0, target, reduction="sum", inplace=inplace)
            return torch.autograd.grad(loss, leaf)[0]

        assert torch.equal(gradient(True), gradient(False))

    def test_without_gradients_it_changes_nothing(self, leaf, target):
        with torch.no_grad():
            loss = cross_entropy(leaf, target, inplace=True)
            assert_within_budget("loss", loss, F.cross_entropy(leaf, target), *exactly(F.cross_entropy, leaf, target))


@pytest.mark.parametrize(
    "view", [lambda x: x[:, :9], lambda x: x[::2], lambda x: x.t(), lambda x: x.view(2, 4, 12), lambda x: x[:, None]]
)
def test_views_whose_elements_share_no_memory_take_their_gradient_in_place(device, seed, view):
    leaves = [torch.randn(8, 12, device=device).requires_grad_() for _ in range(2)]
    leaves[1].data.copy_(leaves[0].data)
    for leaf, inplace in zip(leaves, (True, False)):
        logits = view(leaf * 1.0)
        target = torch.arange(logits[..., 0].numel(), device=device).view(logits.shape[:-1]) % logits.shape[-1]
        cross_entropy(logits, target, inplace=inplace).backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_pads_an_odd_vocabulary_adds_nothing(device, seed, monkeypatch, smoothing):
    """The rows of zeros that the GEMMs have of the weight: whatever the memory held before."""
    p = problem(device, torch.float32, V=99)
    reference_run = run(reference.linear_cross_entropy, p, label_smoothing=smoothing)[1]
    new_empty = torch.Tensor.new_empty
    poisoned = lambda x, *args, **kwargs: _poison(new_empty(x, *args, **kwargs))  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    ours = run(linear_cross_entropy, p, label_smoothing=smoothing)[1]
    for mine, theirs in zip(ours, reference_run):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def _poison(x: torch.Tensor) -> torch.Tensor:
    return x.fill_(float("nan")) if x.is_floating_point() and x.device.type != "meta" else x
