"""What somebody did to a child counts in every module of ours: adapters, hooks, pruning, other classes, other forwards.

Each case is computed by the module, asked for its kernels by name, and by its children, called one by one.
"""

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as registry
from torch.nn.utils import parametrizations, prune

from fastgpt import GPT, GPTConfig, implementations
from fastgpt.kernels import _notice, reference
from fastgpt.model.blocks import FeedForward
from fastgpt.nn import GELUFFN, FlashMultiheadAttention, LinearCrossEntropyLoss, _exact

TINY = {"vocab_size": 32, "max_len": 8, "n_layers": 1, "n_heads": 2, "d_model": 16}


class LoRA(nn.Module):
    """As peft's: wraps a Linear, and `.weight` and `.bias` answer with the frozen base's."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * 0.3)
        self.b = nn.Parameter(torch.randn(base.out_features, rank) * 0.3)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _own_forward(child):
    child.forward = types.MethodType(lambda self, x: 3 * F.linear(x, self.weight, self.bias), child)


def _own_call(child):
    child._call_impl = types.MethodType(lambda self, x: 3 * F.linear(x, self.weight, self.bias), child)


def _partial(child):  # as accelerate's offloading does
    child.forward = functools.partial(lambda x, w: F.linear(2 * x, w), w=child.weight)


def _become(kind, **attributes):
    def change(child):
        child.__class__ = kind

    return change


# What is done in place to a Linear.
TO_A_LINEAR = {
    "forward hook": lambda c: c.register_forward_hook(lambda m, args, y: y * 2),
    "forward hook with kwargs": lambda c: c.register_forward_hook(lambda m, args, kw, y: y * 2, with_kwargs=True),
    "forward pre-hook": lambda c: c.register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
    "forward pre-hook with kwargs": lambda c: c.register_forward_pre_hook(
        lambda m, args, kw: ((args[0] * 2,), kw), with_kwargs=True
    ),
    "backward hook": lambda c: c.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,)),
    "backward pre-hook": lambda c: c.register_full_backward_pre_hook(lambda m, go: (go[0] * 2,)),
    "pruning": lambda c: prune.random_unstructured(c, "weight", 0.5),
    "weight norm by hooks": lambda c: nn.utils.weight_norm(c),
    "weight norm": lambda c: parametrizations.weight_norm(c),
    "spectral norm": lambda c: parametrizations.spectral_norm(c).eval(),
    "forward of its own": _own_forward,
    "a partial for a forward": _partial,
    "call of its own": _own_call,
    "another class": _become(Doubled),
}


def parameters_moved(module):
    """Biases too: away from 0, so that one that is left out shows."""
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0.0, 0.5)
    return module


def feed_forward(**options):
    return parameters_moved(FeedForward(GPTConfig(**TINY, ffn_impl="triton")))


def gelu_ffn(**options):
    return parameters_moved(GELUFFN(16, impl="triton", **options))


def assert_same(ours, theirs, inputs):
    """Two functions without arguments: the same numbers, and the same gradients of all the inputs that want one."""
    results, inputs = [], [x for x in inputs if x.requires_grad]
    for function in (ours, theirs):
        y = function()
        weights = torch.arange(1.0, y.numel() + 1).cos().view(y.shape)
        results.append((y, torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True)))
    (y, grads), (want, want_grads) = results
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    for grad, want_grad in zip(grads, want_grads):
        assert (grad is None) == (want_grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, want_grad, rtol=1e-4, atol=1e-5)


def one_by_one(module, x):
    for child in module.children():
        x = child(x)
    return x


@pytest.mark.parametrize(("make", "which"), [(feed_forward, 0), (gelu_ffn, 2)])
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("done", TO_A_LINEAR)
def test_what_is_done_to_a_linear_of_an_ffn_counts(interpreter, seed, make, impl, which, done):
    module = make()
    module.impl = impl
    before = module(torch.ones(2, 16))
    TO_A_LINEAR[done](module[which])
    assert module.why_children() is not None
    x = torch.randn(3, 16, requires_grad=True)
    leaves = [x, *module.parameters()]
    assert_same(lambda: module(x), lambda: one_by_one(module, x), leaves)
    if "backward" not in done and done != "weight norm" and "by hooks" not in done:
        assert not torch.allclose(module(torch.ones(2, 16)), before)


@pytest.mark.parametrize("make", [feed_forward, gelu_ffn])
@pytest.mark.parametrize("impl", ["triton", "reference", "torch"])
def test_adapters_and_other_activations_count(interpreter, seed, make, impl):
    for change in (
        lambda m: m.__setitem__(0, LoRA(m[0])),
        lambda m: m.__setitem__(2, LoRA(m[2])),
        lambda m: m.__setitem__(1, nn.SiLU()),
        lambda m: m.__setitem__(1, nn.ReLU()),
        lambda m: m.append(nn.Tanh()),
        lambda m: m.append(nn.Dropout(0.5).eval()),
        lambda m: m.__delitem__(1),
        lambda m: m.insert(1, nn.LayerNorm(64)),
        lambda m: m.__setitem__(1, nn.Sequential(nn.GELU(), nn.Tanh())),
    ):
        module = make()
        module.impl = impl
        change(module)
        if len(module) == 2:
            module.append(nn.Identity())
        x = torch.randn(3, 16, requires_grad=True)
        assert_same(lambda m=module: m(x), lambda m=module: one_by_one(m, x), [x, *module.parameters()])  # noqa: B023


def test_hooks_on_all_modules_count(interpreter, seed):
    module, x, called = gelu_ffn(), torch.randn(2, 16, requires_grad=True), []
    for register in (
        registry.register_module_forward_hook,
        registry.register_module_forward_pre_hook,
        registry.register_module_full_backward_hook,
        registry.register_module_full_backward_pre_hook,
    ):
        handle = register(lambda m, *args: called.append(type(m)))
        try:
            assert module.why_children() is not None
            module(x).sum().backward()
        finally:
            handle.remove()
        assert {nn.Linear, nn.GELU} <= set(called), register
        called.clear()
    assert module.why_children() is None


def test_a_forward_replaced_in_the_class_counts(interpreter, seed, monkeypatch):
    module, x = gelu_ffn(), torch.randn(2, 16)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * F.linear(x, self.weight, self.bias))
    assert torch.equal(module(x), one_by_one(module, x))
    assert _exact.exactly(nn.Linear) == ((nn.Linear, None),)  # asked too late to know the right one


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_a_call_replaced_for_all_modules_counts(interpreter, seed, monkeypatch, name):
    module, x, called, own = gelu_ffn(), torch.randn(2, 16), [], getattr(nn.Module, name)
    monkeypatch.setattr(nn.Module, name, lambda self, *args: called.append(type(self)) or own(self, *args))
    module(x)
    assert called == [GELUFFN, nn.Linear, nn.GELU, nn.Linear]


def test_symbolic_tracing_sees_the_children(interpreter, seed):
    module, x = feed_forward(), torch.randn(2, 16)
    traced = torch.fx.symbolic_trace(module)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    assert torch.equal(traced(x), one_by_one(module, x))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_multiply_their_own_way_count(interpreter, seed, name):
    class Halves(nn.Parameter):  # what torchao's and bitsandbytes' are to an nn.Linear
        pass

    module = gelu_ffn()
    setattr(module[0], name, Halves(getattr(module[0], name).detach()))
    assert module.why_children() == f"the {name} of a Linear is a Halves"


def test_what_is_undone_counts_no_more(interpreter, seed):
    module = gelu_ffn()
    handle = module[0].register_forward_hook(lambda *_: None)
    assert module.why_children() is not None
    handle.remove()
    assert module.why_children() is None
    module[2].forward = module[2].forward
    assert module.why_children() is not None
    del module[2].forward
    assert module.why_children() is None
    module[0]._compiled_call_impl = module[0]._call_impl  # what module[0].compile() leaves: the same formula
    assert module.why_children() is None


def test_modes_of_children_count(interpreter, seed):
    module = gelu_ffn(dropout=0.5)
    x = torch.randn(4, 16)
    module[3].eval()
    assert torch.equal(module(x), module(x))
    module.eval()
    module[3].train()
    assert (module(x) == 0).any()
    module[3].p = 0.0
    assert torch.equal(module(x), module(x))
    module[3] = nn.Identity()
    torch.testing.assert_close(module(x), one_by_one(module, x))


def test_it_is_said_once(interpreter, seed, caplog):
    _notice._said.clear()
    module = feed_forward()
    module[0] = LoRA(module[0])
    with caplog.at_level("WARNING", "fastgpt"):
        module(torch.ones(1, 16))
        module(torch.ones(1, 16))
    said = [r.message for r in caplog.records]
    assert said == [f"FeedForward: its children run one by one, because a Linear has become a {__name__}.LoRA"]


def test_slices_of_a_feed_forward_are_sequentials():
    assert [type(c) for c in feed_forward()[:2]] == [nn.Linear, nn.GELU]
    assert type(feed_forward()[1:]) is nn.Sequential


# ---- the head and its loss ------------------------------------------------------------------------------------------


def gpt(**options):
    impl = {"attn_impl": "sdpa", "norm_impl": "torch", "ffn_impl": "torch", "loss_impl": "triton"}
    return GPT(GPTConfig(**TINY, **{"tie_weights": False, **impl, **options}))


class Unembedding(nn.Module):
    """A head without any of a Linear's attributes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 32))

    def forward(self, x):
        return self.layers(x)


HEADS = {
    "LoRA": lambda m: setattr(m, "head", LoRA(m.head)),
    "a Linear with bias": lambda m: setattr(m, "head", nn.Linear(16, 32)),
    "a Linear": lambda m: setattr(m, "head", nn.Linear(16, 32, bias=False)),
    "no Linear": lambda m: setattr(m, "head", Unembedding()),
    "a bias of its own": lambda m: setattr(m.head, "bias", nn.Parameter(torch.randn(32))),
} | {done: lambda m, f=f: f(m.head) for done, f in TO_A_LINEAR.items()}


@pytest.mark.parametrize("return_logits", [None, False])
@pytest.mark.parametrize("done", HEADS)
def test_what_is_done_to_the_head_counts_in_loss_logits_and_sampling(interpreter, seed, done, return_logits):
    model = gpt()
    HEADS[done](model)
    idx = torch.randint(32, (2, 8))
    targets = idx.roll(-1, 1)
    targets[0, 3] = -100
    hidden = model.hidden_states(idx)
    output = model(idx, targets, return_logits=return_logits)
    logits = model.head(hidden)
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(output.loss, want)
    torch.testing.assert_close(output.logits, logits)
    leaves = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(output.loss, leaves, allow_unused=True)
    want_grads = torch.autograd.grad(want, leaves, allow_unused=True)
    for grad, want_grad in zip(grads, want_grads):
        torch.testing.assert_close(grad, want_grad, rtol=1e-4, atol=1e-6)
    each = model(idx, targets, reduction="none").loss
    assert each.shape == (2, 8)
    torch.testing.assert_close(each.sum() / 15, want)
    torch.testing.assert_close(model(idx).logits, logits)
    token = model.generate(idx[:, :7], 1, temperature=0.0)[:, -1]
    assert torch.equal(token, model(idx[:, :7]).logits[:, -1].argmax(-1))


def test_a_head_as_it_was_made_is_fused(interpreter, seed):
    model, idx = gpt(), torch.randint(32, (1, 8))
    assert model(idx, idx).computed_logits is None
    assert model.head(torch.ones(2, 16)).shape == (2, 32)
    model.head = LoRA(model.head)
    assert model(idx, idx).computed_logits is not None
    model.head = model.head.base
    assert model(idx, idx).computed_logits is None


# ---- attention's output projection, and a loss with a layer of its own ----------------------------------------------


@pytest.mark.parametrize(("fallback", "batch_first"), [(None, True), ("a mask", False), ("float64", True)])
@pytest.mark.parametrize("done", ["LoRA", *TO_A_LINEAR])
def test_what_is_done_to_attentions_output_projection_counts(interpreter, seed, done, batch_first, fallback):
    module = parameters_moved(FlashMultiheadAttention(16, 1, batch_first=batch_first))
    plain = nn.MultiheadAttention(16, 1, batch_first=batch_first)  # with the heads' outputs for a result
    plain.load_state_dict(module.state_dict())
    with torch.no_grad():
        plain.out_proj.weight.copy_(torch.eye(16))
        plain.out_proj.bias.zero_()
    module.out_proj.__class__ = nn.Linear if done == "another class" else type(module.out_proj)
    if done == "LoRA":
        module.out_proj = LoRA(module.out_proj)
    else:
        TO_A_LINEAR[done](module.out_proj)
    x = torch.randn((1, 5, 16) if batch_first else (5, 1, 16))
    mask = torch.rand(5, 5) < 0.3 if fallback == "a mask" else None
    if fallback == "float64":
        if done == "a partial for a forward":
            pytest.skip("it holds the float32 weight")
        module, plain, x = module.double(), plain.double(), x.double()
    x.requires_grad_()

    def by_children():
        heads, weights = plain(x, x, x, attn_mask=mask)
        return module.out_proj(heads) + weights.sum()

    def ours():
        out, weights = module(x, x, x, attn_mask=mask)
        return out + weights.sum()

    assert_same(ours, by_children, [x, *module.out_proj.parameters()])
    with torch.no_grad():  # torch's fast path reads the weight too
        module.eval(), plain.eval()
        torch.testing.assert_close(ours(), by_children(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("done", ["LoRA", "another head", *TO_A_LINEAR])
def test_what_is_done_to_the_linear_of_a_loss_counts(interpreter, seed, done, impl):
    settings = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "ignore_index": 3, "reduction": "sum"}
    module = parameters_moved(LinearCrossEntropyLoss(16, 32, bias=True, impl=impl, **settings))
    if done == "LoRA":
        module.linear = LoRA(module.linear)
    elif done == "another head":
        module.linear = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 32))
    else:
        TO_A_LINEAR[done](module.linear)
    x, target = torch.randn(2, 5, 16, requires_grad=True), torch.randint(32, (2, 5))
    target[0, 0] = 3
    assert_same(
        lambda: module(x, target),
        lambda: reference.cross_entropy(module.linear(x), target, **settings),
        [x, *module.parameters()],
    )


def test_a_changed_linear_of_a_loss_runs_without_a_gpu(monkeypatch):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    module = LinearCrossEntropyLoss(16, 32, impl="triton")
    module.linear = LoRA(module.linear)
    assert torch.isfinite(module(torch.randn(2, 16), torch.tensor([1, 2])))


# ---- the table of implementations -----------------------------------------------------------------------------------


def test_the_table_says_what_runs_and_why(interpreter):
    model = GPT(GPTConfig(**{**TINY, "n_layers": 3}, ffn_impl="triton", loss_impl="triton"))
    rows = {(r.part, r.layers): r for r in implementations(model)}
    assert (rows["ffn", "0-2"].used, rows["loss", "head"].used) == ("triton", "triton")
    model.blocks[1].ffn[0] = LoRA(model.blocks[1].ffn[0])
    model.head = LoRA(model.head)
    rows = {(r.part, r.layers): r for r in implementations(model)}
    assert rows["ffn", "0, 2"].used == "triton"
    for row, kind in ((rows["ffn", "1"], "Linear"), (rows["loss", "head"], "Head")):
        assert row.used == "torch"
        assert row.why == f"children run one by one: a {kind} has become a {__name__}.LoRA"
    assert sum(r.part == "loss" for r in rows.values()) == 1
    model.head = nn.Linear(16, 32)
    assert [r.used for r in implementations(model) if r.part == "loss"] == ["torch"]
    alone = GELUFFN(16, impl="triton")
    alone[1] = nn.SiLU()
    assert [r.why for r in implementations(alone)] == ["children run one by one: a GELU has become a SiLU"]


# ---- torch.compile and export ---------------------------------------------------------------------------------------


def test_compiled_modules_notice_what_torchs_do(interpreter, seed):
    """No graph break, and a new graph where a child is replaced or given a forward; hooks by torch's own switch."""
    for change in (
        lambda m: m.__setitem__(1, nn.SiLU()),
        lambda m: m.__setitem__(0, Doubled(16, 64)),
        lambda m: _own_forward(m[0]),
        lambda m: m[0].register_forward_hook(lambda m, args, y: y * 2),
        lambda m: m[0].register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
    ):
        torch._dynamo.reset()
        module, x = gelu_ffn(), torch.randn(3, 16)
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            compiled = torch.compile(module, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(x), module(x))
            change(module)
            torch.testing.assert_close(compiled(x), one_by_one(module, x))


def test_export_takes_the_kernels_or_the_children(interpreter, seed):
    x = torch.randn(3, 16)
    for change in (lambda m: None, lambda m: m.__setitem__(0, LoRA(m[0]))):
        module = gelu_ffn()
        change(module)
        for strict in (True, False):
            program = torch.export.export(module, (x,), strict=strict)
            fused = any("fastgpt" in str(node.target) for node in program.graph.nodes)
            assert fused == (module.why_children() is None)
            torch.testing.assert_close(program.module()(x), one_by_one(module, x))
