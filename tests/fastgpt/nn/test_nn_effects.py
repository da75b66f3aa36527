"""What every setting of the drop-in modules and of the attention in transformers' models does."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp

from fastgpt.kernels import interpret
from fastgpt.nn import GELUFFN, LayerNorm, LinearCrossEntropyLoss

INTERPRETED = pytest.mark.parametrize("interpreted", [True, False], ids=["kernels", "fallback"])


def kernels(on: bool):
    """Kernels run inside, in the interpreter, if that is asked for."""
    if on:
        pytest.importorskip("triton")
    return interpret() if on else contextlib.nullcontext()


# ---- the modules ---------------------------------------------------------------------------------------------------


def test_an_ffn_that_recomputes_keeps_its_input_only(seed):
    pytest.importorskip("triton")
    x = torch.randn(3, 8, requires_grad=True)
    kept: dict[bool, list[torch.Size]] = {}
    for recompute in (False, True):
        module = GELUFFN(8, 20, recompute=recompute, impl="triton")
        shapes = kept.setdefault(recompute, [])
        with (
            interpret(),
            torch.autograd.graph.saved_tensors_hooks(lambda t, s=shapes: s.append(t.shape) or t, lambda t: t),
        ):
            module(x).sum().backward()
    assert (3, 20) in kept[False]
    assert (3, 20) not in kept[True]
    assert (3, 8) in kept[True]


@INTERPRETED
def test_dropout_of_everything_leaves_the_residual(seed, interpreted):
    module = GELUFFN(8, dropout=1.0, impl="triton" if interpreted else "torch")
    x, residual = torch.randn(3, 8), torch.randn(3, 8)
    with kernels(interpreted):
        assert torch.equal(module(x), torch.zeros(3, 8))
        assert torch.equal(module(x, residual), residual)
        assert not torch.equal(module.eval()(x, residual), residual)


def test_a_layer_norm_has_a_derivative_in_forward_mode_where_kernels_run(seed):
    module, x, direction = LayerNorm(8), torch.randn(3, 8), torch.randn(3, 8)
    expected = jvp(lambda x: F.layer_norm(x, (8,), module.weight, module.bias), (x,), (direction,))
    with kernels(True):
        found = jvp(module, (x,), (direction,))
    torch.testing.assert_close(found, expected)


@INTERPRETED
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_of_every_reduction(seed, reduction, interpreted):
    impl, x = "triton" if interpreted else "torch", torch.randn(2, 3, 8)
    module = LinearCrossEntropyLoss(8, 11, bias=True, reduction=reduction, impl=impl)
    target = torch.tensor([[3, -100, 0], [10, 7, -100]])
    logits = F.linear(x, module.linear.weight, module.linear.bias)
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction=reduction)
    with kernels(interpreted):
        torch.testing.assert_close(module(x, target), expected.view(2, 3) if reduction == "none" else expected)


def test_a_loss_passes_its_number_of_chunks_on(seed, monkeypatch):
    given = []
    monkeypatch.setattr(
        "fastgpt.kernels.reference.linear_cross_entropy", lambda *args, num_chunks: given.append(num_chunks)
    )
    for num_chunks in (None, 3):
        LinearCrossEntropyLoss(8, 11, num_chunks=num_chunks)(torch.randn(4, 8), torch.tensor([1, 2, 3, 4]))
    assert given == [None, 3]


# ---- attention in transformers' models -----------------------------------------------------------------------------


@pytest.fixture
def attention():
    pytest.importorskip("transformers")
    from fastgpt.interop.attention_registry import attention

    return attention


def inputs(T_q: int = 6, T_k: int = 6, H_kv: int = 4):
    return torch.randn(2, 4, T_q, 8), torch.randn(2, H_kv, T_k, 8), torch.randn(2, H_kv, T_k, 8)


def plain(q, k, v, seen, scale):
    """softmax(q kᵀ scale) v over the keys seen, head h beside key head h // (H / H_kv)."""
    k, v = (torch.stack([x[:, h * x.shape[1] // q.shape[1]] for h in range(q.shape[1])], 1) for x in (k, v))
    return (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ v


@INTERPRETED
@pytest.mark.parametrize("own", [True, False, None], ids=["causal", "bidirectional", "unsaid"])
@pytest.mark.parametrize("call", [True, False, None], ids=["causal", "bidirectional", "unsaid"])
def test_what_the_call_says_of_causality_counts_before_the_module(seed, attention, own, call, interpreted):
    q, k, v = inputs(H_kv=2)
    module = SimpleNamespace(num_key_value_groups=2, **({} if own is None else {"is_causal": own}))
    causal = next((said for said in (call, own) if said is not None), True)
    seen = torch.ones(6, 6, dtype=torch.bool).tril(0 if causal else 6)
    with kernels(interpreted):
        out, weights = attention(module, q, k, v, None, is_causal=call)
    torch.testing.assert_close(out.transpose(1, 2), plain(q, k, v, seen, 8**-0.5))
    assert weights is None


@INTERPRETED
@pytest.mark.parametrize("wanted", [True, False], ids=["with weights", "without"])
def test_the_models_scale_counts(seed, attention, wanted, interpreted):
    """Gemma's is no function of head_dim."""
    q, k, v = inputs(T_q=3, H_kv=2)
    seen = torch.ones(3, 6, dtype=torch.bool).tril(3)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2)
    with kernels(interpreted):
        out, weights = attention(module, q, k, v, None, scaling=0.9, output_attentions=wanted)
    torch.testing.assert_close(out.transpose(1, 2), plain(q, k, v, seen, 0.9))
    if wanted:
        eye = torch.eye(6).expand(2, 4, 6, 6)
        torch.testing.assert_close(weights, plain(q, k.repeat_interleave(2, 1), eye, seen, 0.9))


@INTERPRETED
@pytest.mark.parametrize("extras", [{}, {"output_attentions": True}, {"softcap": 50.0}], ids=str)
def test_the_models_dropout_counts(seed, attention, extras, interpreted):
    """A value of all ones comes out as the sum of the weights kept: of each it is kept or dropped, and scaled."""
    q, k, v = inputs(T_q=20, T_k=20)
    module = SimpleNamespace(is_causal=False, num_key_value_groups=1)
    with kernels(interpreted):
        found = attention(module, q, k, torch.ones_like(v), None, dropout=0.5, **extras)[0]
        kept = attention(module, q, k, torch.ones_like(v), None, dropout=0.0, **extras)[0]
    torch.testing.assert_close(kept, torch.ones_like(kept))
    assert (found - 1.0).abs().mean() > 0.05
    assert (found.mean() - 1.0).abs() < 0.2


@INTERPRETED
@pytest.mark.needs("transformers")
@pytest.mark.parametrize("given", [{}, {"num_items_in_batch": torch.tensor(7)}], ids=["mean", "sum over items"])
def test_labels_that_a_patched_gpt2_is_told_not_to_count_do_not(seed, given, interpreted):
    from transformers import GPT2Config, GPT2LMHeadModel

    from fastgpt import patch

    config = GPT2Config(vocab_size=29, n_positions=8, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0, embd_pdrop=0)
    config.resid_pdrop = 0.0
    idx = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    model = GPT2LMHeadModel(config).train()
    expected = [model(idx, labels=idx, ignore_index=index, **given).loss for index in (5, -100)]
    assert expected[0] != expected[1]
    patch(model, attention=False, layer_norm=False, ffn=False)
    with kernels(interpreted):
        found = [model(idx, labels=idx, ignore_index=index, **given).loss for index in (5, -100)]
    torch.testing.assert_close(found, expected)


@INTERPRETED
@pytest.mark.needs("transformers")
def test_the_ffn_of_a_patched_gpt2_drops_in_training_only(seed, interpreted):
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    from fastgpt import patch

    module, x = GPT2MLP(40, GPT2Config(n_embd=16, resid_pdrop=0.5)), torch.randn(30, 16)
    whole = module.eval()(x)
    patch(module)
    with kernels(interpreted):
        torch.testing.assert_close(module(x), whole)
        dropped = module.train()(x)
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
