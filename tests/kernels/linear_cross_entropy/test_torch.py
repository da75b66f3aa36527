"""torch's own machinery around the two functions: opcheck, compile, export, autocast, checkpoint, CUDA graphs, meta."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastgpt.kernels import cross_entropy, linear_cross_entropy
from tests.support.budget import GRADIENT, assert_within_budget, exactly

from .cases import problem, run

REDUCTIONS = ("mean", "sum", "none")


@pytest.mark.parametrize(("reduction", "return_lse"), [("mean", False), ("none", True)])
def test_opcheck(device, seed, reduction, return_lse):
    p = problem(device, torch.float32, (6,), 33, 8)
    op = torch.ops.fastgpt.linear_cross_entropy.default
    torch.library.opcheck(
        op, (p.x, p.weight, p.target, p.bias, -100, 0.1, 0.1, 9.0, reduction, return_lse, 2)
    )  # fmt: skip
    op = torch.ops.fastgpt.cross_entropy.default
    logits = torch.randn(6, 33, device=device, requires_grad=True)
    torch.library.opcheck(op, (logits, p.target, -100, 0.1, 0.1, 9.0, reduction, return_lse, False))


def test_opcheck_of_the_backward_operators(device, seed):
    p = problem(device, torch.bfloat16, (6,), 33, 8)
    ops, x, weight, bias = torch.ops.fastgpt, *(t.detach() for t in p.leaves)
    inputs, settings = (x, weight, p.target, bias), (-100, 0.1, 0.1, 9.0)
    for need in ((True, True, True), (False, True, False)):
        torch.library.opcheck(
            ops.linear_cross_entropy_with_gradients.default,
            (*inputs, *settings, "mean", True, 2, *need), test_utils=_NO_AUTOGRAD,
        )  # fmt: skip
        made = ops.linear_cross_entropy_with_gradients(*inputs, *settings, "mean", True, 2, *need)
        _, _, stats, counts, _, dweight, _ = made
        upstream = torch.randn(6, device=device)
        torch.library.opcheck(
            ops.linear_cross_entropy_bwd.default, (upstream, upstream, *inputs, stats, *settings, 2, *need),
            test_utils=_NO_AUTOGRAD,
        )  # fmt: skip
        torch.library.opcheck(
            ops.linear_cross_entropy_scale.default, (upstream[0], counts, dweight, torch.bfloat16),
            test_utils=_NO_AUTOGRAD,
        )  # fmt: skip
    logits = torch.randn(6, 33, device=device)
    *_, stats, counts = ops.cross_entropy_with_stats(logits, p.target, *settings, "sum", True, False)
    torch.library.opcheck(
        ops.cross_entropy_bwd.default, (upstream, None, logits, p.target, stats, *settings), test_utils=_NO_AUTOGRAD
    )


_NO_AUTOGRAD = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_graph_break(device, seed, reduction):
    p = problem(device, torch.float32, bias=False)
    settings = {"reduction": reduction, "label_smoothing": 0.1, "softcap": 8.0}

    def loss_of(x, weight):
        loss = linear_cross_entropy(x, weight, p.target, num_chunks=2, **settings)
        return loss + cross_entropy(F.linear(x, weight), p.target, inplace=True, **settings)

    eager, traced = loss_of(p.x, p.weight), compiled(loss_of)(p.x, p.weight)
    torch.testing.assert_close(traced, eager)
    upstream = torch.randn_like(eager)
    torch.testing.assert_close(
        torch.autograd.grad(traced, p.leaves, upstream), torch.autograd.grad(eager, p.leaves, upstream)
    )


def test_compiles_with_dynamic_shapes_and_lse(device, seed):
    function = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5):
        p = problem(device, torch.float32, (rows,), bias=False)
        loss, lse = function(p.x, p.weight, p.target, return_lse=True)
        expected, expected_lse = linear_cross_entropy(p.x, p.weight, p.target, return_lse=True)
        torch.testing.assert_close((loss, lse), (expected, expected_lse))
        torch.testing.assert_close(
            torch.autograd.grad(loss + lse.sum(), p.leaves),
            torch.autograd.grad(expected + expected_lse.sum(), p.leaves),
        )


class LossModel(nn.Module):
    def __init__(self, device, **settings):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(33, 8, device=device))
        self.settings = settings

    def forward(self, x, target):
        return linear_cross_entropy(x, self.weight, target, **self.settings)


def test_exports(device, seed):
    p = problem(device, torch.float32, (6,), 33, 8)
    model = LossModel(device, reduction="none", z_loss=0.1)
    x = p.x.detach()
    program = torch.export.export(model, (x, p.target), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},) * 2)
    assert any("linear_cross_entropy" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x[:4], p.target[:4]), model(x[:4], p.target[:4]))


def test_functional_call(device, seed):
    p = problem(device, torch.float32, (6,), 33, 8)
    model = LossModel(device)
    loss = torch.func.functional_call(model, {"weight": p.weight}, (p.x, p.target))
    torch.testing.assert_close(loss, linear_cross_entropy(p.x, p.weight, p.target))
    assert torch.autograd.grad(loss, p.weight)[0].any()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_activation_checkpointing(device, seed, reduction, use_reentrant):
    p = problem(device, torch.float32)

    def loss_of(x, weight, bias):
        return linear_cross_entropy(x * 2, weight, p.target, bias, reduction=reduction).sum()

    plain = torch.autograd.grad(loss_of(*p.leaves), p.leaves)
    checkpoint(loss_of, *p.leaves, use_reentrant=use_reentrant).backward()
    for leaf, gradient in zip(p.leaves, plain):
        assert torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(device, seed, dtype, reduction):
    """As F.linear + F.cross_entropy: products in the autocast dtype, loss float32, gradients in the leaves' dtype."""
    p = problem(device, torch.float32)

    def plain(*leaves):
        wide = leaves[0].dtype == torch.float64
        with torch.autocast(device.type, dtype, enabled=not wide):
            logits = F.linear(*leaves)
            assert wide or logits.dtype == dtype
            loss = F.cross_entropy(logits.flatten(0, 1), p.target.flatten(), reduction=reduction)
            loss = loss.view(p.target.shape if reduction == "none" else ())
        return [loss, *torch.autograd.grad(loss.sum(), leaves)]

    with torch.autocast(device.type, dtype):
        ours, our_grads = run(linear_cross_entropy, p, reduction=reduction)
    (theirs, *their_grads), (exact, *exact_grads) = plain(*p.leaves), exactly(plain, *p.leaves)
    assert ours.dtype == torch.float32
    assert_within_budget("loss", ours, theirs, exact)
    for name, *three in zip(("dx", "dweight", "dbias"), our_grads, their_grads, exact_grads):
        assert three[0].dtype == torch.float32
        assert_within_budget(name, *three, factor=GRADIENT)


@pytest.mark.parametrize("reduction", ["mean", "none"])  # made in the forward pass, and in the backward pass
def test_backward_is_the_same_inside_of_autocast(device, seed, reduction):
    """Where backward() is called rounds nothing: the products are those of the forward pass's dtype."""
    p = problem(device, torch.float32)
    loss = linear_cross_entropy(p.x, p.weight, p.target, p.bias, reduction=reduction).sum()
    loss = loss + cross_entropy(p.x * 1, p.target % 16, reduction=reduction).sum()
    expected = torch.autograd.grad(loss, p.leaves, retain_graph=True)
    with torch.autocast(device.type, torch.bfloat16):
        ours = torch.autograd.grad(loss, p.leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


def test_autocast_takes_mixed_dtypes(device, seed):
    p = problem(device, torch.float32, bias=False)
    with torch.autocast(device.type, torch.bfloat16):
        mixed = linear_cross_entropy(p.x.bfloat16(), p.weight, p.target)
        both = linear_cross_entropy(p.x, p.weight, p.target)
    assert torch.equal(mixed, both)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_meta_tensors(reduction):
    """Shapes, dtypes and devices, without computing: what FSDP and `torch.device("meta")` rely on."""
    from fastgpt.kernels import _runtime

    with _runtime.pretend(_runtime.KNOWN_TARGETS["sm_90"]):
        p = problem(torch.device("meta"), torch.bfloat16)
        loss, lse = linear_cross_entropy(p.x, p.weight, p.target, p.bias, reduction=reduction, return_lse=True)
        assert loss.device.type == "meta"
        assert (loss.shape, lse.shape) == (p.target.shape if reduction == "none" else (), p.target.shape)
        assert loss.dtype == lse.dtype == torch.float32
        gradients = torch.autograd.grad(loss.sum(), p.leaves)
        assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in p.leaves]


def test_deterministic(device, seed):
    p = problem(device, torch.bfloat16, (20,), 200)
    first = run(linear_cross_entropy, p, num_chunks=3)
    for _ in range(3):
        again = run(linear_cross_entropy, p, num_chunks=3)
        assert torch.equal(first[0], again[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], again[1]))


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cuda_graph(seed, reduction):
    p = problem(torch.device("cuda"), torch.bfloat16, (512,), 1000, 64)
    upstream = torch.ones(512 if reduction == "none" else (), device="cuda")

    def step():
        return run(linear_cross_entropy, p, upstream, num_chunks=4, reduction=reduction)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradients = step()
    with torch.no_grad():
        p.x.normal_()
        p.target.random_(0, 1000)
    graph.replay()
    expected, expected_gradients = step()
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients))


@pytest.mark.gpu
def test_no_host_sync():
    p = problem(torch.device("cuda"), torch.bfloat16, (512,), 1000, 64)
    run(linear_cross_entropy, p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(linear_cross_entropy, p)
        run(linear_cross_entropy, p, reduction="none")
        cross_entropy(torch.randn(8, 64, device="cuda", requires_grad=True), p.target[:8] % 64).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_loss_may_be_changed_in_place(device, seed, reduction):
    """As `loss /= accumulation_steps` does: nothing that is handed out is needed in the backward pass."""
    p = problem(device, torch.float32, (6,), 33, 8)
    gradients = []
    for in_place in (True, False):
        loss, lse = linear_cross_entropy(p.x, p.weight, p.target, p.bias, reduction=reduction, return_lse=True)
        if in_place:
            loss /= 4
            lse.mul_(0.25)
        else:
            loss, lse = loss / 4, lse * 0.25
        gradients.append(torch.autograd.grad(loss.sum() + lse.sum(), p.leaves))
    for a, b in zip(*gradients):
        assert torch.equal(a, b)
