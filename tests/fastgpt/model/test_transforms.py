"""torch.func and forward mode through a whole GPT: plain implementations do everything, the kernels what they can."""

import logging

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vmap

import fastgpt
from fastgpt import OneHeadLM
from fastgpt.kernels import _notice, interpret
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.nn import impl

SETS = {
    **{name: s for name, s in IMPLEMENTATION_SETS.items() if "triton" not in s.values()},
    "auto": dict.fromkeys(("attn_impl", "norm_impl", "ffn_impl", "loss_impl"), "auto"),
}
FUSED = dict.fromkeys(("attn_impl", "norm_impl", "ffn_impl", "loss_impl"), "triton")
TARGETS = torch.tensor([[3, 0, 11, -100, 2, 5], [1, 1, 4, 7, -100, 9], [0, 12, 2, 3, 8, 8]])
TOKENS = TARGETS.abs().flip(1) % 13


def make(implementations, dtype=torch.float64, **more):
    torch.manual_seed(0)
    config = {"vocab_size": 13, "max_len": 6, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_model": 8, **more}
    model = fastgpt.GPT(fastgpt.GPTConfig(**config, **implementations)).to(dtype)
    return model, {name: p.detach() for name, p in model.named_parameters()}


def loss_of(model):
    def loss(parameters, tokens, targets):
        if tokens.dim() == 1:
            tokens, targets = tokens[None], targets[None]
        return functional_call(model, parameters, (tokens, targets), tie_weights=True).loss

    return loss


def by_autograd(loss, parameters, tokens, targets):
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves, tokens, targets), [*leaves.values()])))


def assert_close(ours, expected, **tolerance):
    assert ours.keys() == expected.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.fixture(params=SETS)
def plain(request):
    model, parameters = make(SETS[request.param])
    return loss_of(model), parameters, model


def test_grad_and_per_sample_gradients(plain):
    loss, parameters, _ = plain
    expected = [by_autograd(loss, parameters, *sample) for sample in zip(TOKENS, TARGETS)]
    stacked = {name: torch.stack([e[name] for e in expected]) for name in parameters}
    assert_close(grad(loss)(parameters, TOKENS[0], TARGETS[0]), expected[0])
    assert_close(vmap(grad(loss), (None, 0, 0))(parameters, TOKENS, TARGETS), stacked)
    assert_close(jacrev(lambda p: vmap(loss, (None, 0, 0))(p, TOKENS, TARGETS))(parameters), stacked)


def test_vmap_over_models_and_over_logits(plain):
    loss, parameters, model = plain
    both = {name: torch.stack([p, 1.5 * p]) for name, p in parameters.items()}
    ours = vmap(loss, (0, None, None))(both, TOKENS, TARGETS)
    expected = [loss({name: p[i] for name, p in both.items()}, TOKENS, TARGETS) for i in range(2)]
    torch.testing.assert_close(ours, torch.stack(expected))
    logits = vmap(lambda t: functional_call(model, parameters, (t[None],), tie_weights=True).logits[0])(TOKENS)
    torch.testing.assert_close(logits, model(TOKENS).logits)


def test_forward_mode(plain):
    loss, parameters, _ = plain
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    first = by_autograd(loss, parameters, TOKENS, TARGETS)
    expected = sum((first[name] * direction[name]).sum() for name in first)
    of = lambda p: loss(p, TOKENS, TARGETS)  # noqa: E731
    torch.testing.assert_close(jvp(of, (parameters,), (direction,))[1], expected)
    with torch.no_grad(), forward_ad.dual_level():
        dual = of({name: forward_ad.make_dual(p, direction[name]) for name, p in parameters.items()})
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)
    one = lambda b: loss({**parameters, "ln_f.bias": b}, TOKENS, TARGETS)  # noqa: E731
    torch.testing.assert_close(jacfwd(one)(parameters["ln_f.bias"]), first["ln_f.bias"])
    per_sample = vmap(lambda t, y: jvp(lambda p: loss(p, t, y), (parameters,), (direction,))[1])(TOKENS, TARGETS)
    rows = [by_autograd(loss, parameters, t, y) for t, y in zip(TOKENS, TARGETS)]
    torch.testing.assert_close(per_sample, torch.stack([sum((r[n] * direction[n]).sum() for n in r) for r in rows]))


def test_second_derivatives(plain):
    loss, parameters, _ = plain
    name = "blocks.0.attn.in_proj_bias"
    of = lambda b: loss({**parameters, name: b}, TOKENS, TARGETS)  # noqa: E731
    b = parameters[name]
    matrix = hessian(of)(b)
    torch.testing.assert_close(matrix, jacrev(jacrev(of))(b))
    torch.testing.assert_close(matrix, matrix.T)
    direction, step = torch.randn_like(b), 1e-5
    difference = (grad(of)(b + step * direction) - grad(of)(b - step * direction)) / (2 * step)
    torch.testing.assert_close(matrix @ direction, difference, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(jvp(grad(of), (b,), (direction,))[1], matrix @ direction)


def test_dropout_follows_vmaps_randomness():
    model, parameters = make(SETS["torch"], dropout=0.5)
    loss = loss_of(model.train())
    repeated = TOKENS[:1].expand(4, -1), TARGETS[:1].expand(4, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(loss, (None, 0, 0))(parameters, *repeated)
    different = vmap(loss, (None, 0, 0), randomness="different")(parameters, *repeated)
    assert len({*different.tolist()}) == 4


def test_one_head_under_vmap():
    model = OneHeadLM(13, 6, 8)
    expected = model(TOKENS).logits
    torch.testing.assert_close(vmap(lambda t: model(t[None]).logits[0])(TOKENS), expected)


def test_padding_masks_under_vmap():
    """Their values cannot be looked at: torch's own attention takes over, instead of an error."""
    attention = fastgpt.nn.FlashMultiheadAttention(8, 2, batch_first=True).eval()
    x, mask = torch.randn(3, 2, 5, 8), torch.tensor([[[False] * 4 + [True]] * 2] * 3)
    with interpret():
        run = lambda x, m: attention(x, x, x, key_padding_mask=m, need_weights=False)[0]  # noqa: E731
        ours = vmap(run)(x, mask)
        torch.testing.assert_close(ours, torch.stack([run(*sample) for sample in zip(x, mask)]))


# --------------------------------------------------------------------------------------------------------- the kernels


def test_the_kernels_under_grad_and_vmap():
    """As many launches as samples, and the plain implementation's gradients."""
    pytest.importorskip("triton")
    fused, parameters = make(FUSED, torch.float32)
    exact, wide = make(SETS["reference"])
    expected = vmap(grad(loss_of(exact)), (None, 0, 0))(wide, TOKENS, TARGETS)
    with interpret():
        ours = vmap(grad(loss_of(fused)), (None, 0, 0))(parameters, TOKENS, TARGETS)
        assert_close({n: g.double() for n, g in ours.items()}, expected, atol=2e-6, rtol=2e-5)
        values = vmap(loss_of(fused), (None, 0, 0))(parameters, TOKENS, TARGETS)
    torch.testing.assert_close(
        values.double(), vmap(loss_of(exact), (None, 0, 0))(wide, TOKENS, TARGETS), atol=1e-6, rtol=1e-6
    )


def test_the_kernels_refuse_forward_mode():
    pytest.importorskip("triton")
    model, parameters = make(FUSED, torch.float32)
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}
    with interpret(), pytest.raises(NotImplementedError, match=r'kernels\.reference.*_impl="reference"'):
        jvp(lambda p: loss_of(model)(p, TOKENS, TARGETS), (parameters,), (ones,))


def test_auto_passes_the_kernels_over_where_forward_mode_is_on(caplog):
    pytest.importorskip("triton")
    cuda = torch.device("cuda")
    if not torch.cuda.is_available():  # then a CUDA device stands for fake tensors, which the kernels take
        assert impl.choose("attn", "auto", cuda, torch.float32, 64) == "triton"
    impl.forget()
    _notice._said.clear()
    with forward_ad.dual_level(), caplog.at_level(logging.INFO, "fastgpt"):
        for _ in range(2):
            assert impl.choose("attn", "auto", cuda, torch.float32, 64) == "sdpa"
            assert impl.choose("norm", "auto", cuda, torch.float32) == "torch"
        assert impl.choose("attn", "triton", cuda, torch.float32, 64) == "triton"  # which then refuses by itself
    said = [r.message for r in caplog.records if "forward-mode" in r.message]
    assert len(said) == 2
    assert impl.choose("norm", "auto", cuda, torch.float32) == "triton"


def test_linearize(plain):
    """It traces with make_fx, which may not be asked for the values of token ids."""
    loss, parameters, _ = plain
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    of = lambda p: loss(p, TOKENS, TARGETS)  # noqa: E731
    expected = jvp(of, (parameters,), (direction,))[1]
    torch.testing.assert_close(linearize(of, parameters)[1](direction), expected)


def test_one_head_linearize():
    model = OneHeadLM(13, 6, 8)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    of = lambda p: functional_call(model, p, (TOKENS,)).logits  # noqa: E731
    torch.testing.assert_close(linearize(of, parameters)[1](direction), jvp(of, (parameters,), (direction,))[1])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_attention_module_in_forward_mode(training, need_weights):
    """torch's own, which takes over, must keep to operators that have one: neither a fused one nor its fast path."""
    torch.manual_seed(0)
    module = fastgpt.nn.FlashMultiheadAttention(8, 2, batch_first=True).double().train(training)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    x = torch.randn(2, 5, 8, dtype=torch.float64)

    def of(p):
        return functional_call(module, p, (x, x, x), {"need_weights": need_weights})[0].square().sum()

    first = grad(of)(parameters)
    expected = sum((first[name] * direction[name]).sum() for name in first)
    torch.testing.assert_close(jvp(of, (parameters,), (direction,))[1], expected)
    with torch.no_grad(), forward_ad.dual_level():
        dual = of({name: forward_ad.make_dual(p, direction[name]) for name, p in parameters.items()})
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)
    one = lambda b: of({**parameters, "in_proj_bias": b})  # noqa: E731
    bias = parameters["in_proj_bias"]
    torch.testing.assert_close(hessian(one)(bias), jacrev(jacrev(one))(bias))
    assert torch.backends.mha.get_fastpath_enabled(), "left as it was"


def test_scaled_dot_product_attention_where_torch_takes_over_has_second_derivatives():
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    of = lambda function: lambda q: function(q, x, x, is_causal=True).sum()  # noqa: E731
    ours, plain = (of(k.scaled_dot_product_attention) for k in (fastgpt.kernels, fastgpt.kernels.reference))
    torch.testing.assert_close(jacrev(jacrev(ours))(x), jacrev(jacrev(plain))(x))
