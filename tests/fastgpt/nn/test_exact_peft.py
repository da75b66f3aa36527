"""peft's adapters on our modules and on patched transformers models: numbers and gradients as unfused, and merging."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastgpt
from fastgpt import GPT, GPTConfig
from fastgpt.kernels import _runtime

pytestmark = [pytest.mark.needs("peft", "transformers"), pytest.mark.filterwarnings("ignore")]

TINY = {"vocab_size": 32, "max_len": 8, "n_layers": 1, "n_heads": 2, "d_model": 16}
PARTS = ("attn", "norm", "ffn", "loss")


def adapted(model, *targets, **options):
    """peft's model with LoRA of random weights on the modules of these names."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False, **options))


def loss_and_gradients(model, *args, **kwargs):
    model.zero_grad()
    loss = model(*args, **kwargs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_equal_results(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0])
    assert list(ours[1]) == list(theirs[1])
    for name, grad in ours[1].items():
        assert grad is not None, name
        torch.testing.assert_close(grad, theirs[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    "targets", [["ffn.0"], ["ffn.2"], ["out_proj"], ["head"], ["token_emb"], ["ffn.0", "ffn.2", "out_proj", "head"]]
)
def test_lora_on_a_gpt(interpreter, seed, tie, targets):
    model = GPT(GPTConfig(**TINY, tie_weights=tie))
    wrapped, idx = adapted(model, *targets), torch.randint(32, (2, 8))
    results = []
    for impl in ("triton", "reference"):
        model.use_implementations(**{f"{part}_impl": impl for part in PARTS})
        results.append(loss_and_gradients(wrapped, idx, targets=idx))
    assert_equal_results(*results)
    logits = wrapped(idx).logits
    wrapped.double().float()  # a move ties the head again, through adapters too
    torch.testing.assert_close(wrapped(idx).logits, logits)
    assert (model.head.weight is model.token_emb.weight) == tie
    model.use_implementations(ffn_impl="triton", loss_impl="triton")
    merged = wrapped.merge_and_unload()
    assert merged.blocks[0].ffn.why_children() is None
    output = merged(idx, targets=idx)
    assert output.computed_logits is None  # fused again
    if not tie or not {"head", "token_emb"} & set(targets):  # else peft merges into both
        torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.loss, results[0][0])


def test_lora_on_a_parameter_of_attention(interpreter, seed):
    """peft puts a wrapper around the module that owns the parameter."""
    model, idx = GPT(GPTConfig(**TINY)), torch.randint(32, (1, 6))
    wrapped = adapted(model, target_parameters=["attn.in_proj_weight"])
    results = []
    for impl in ("triton", "reference"):
        model.use_implementations(attn_impl=impl)
        results.append(loss_and_gradients(wrapped, idx, targets=idx))
    assert_equal_results(*results)
    maps = model.attention_maps(idx)[0]
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2, 6))
    assert model.generate(idx[:, :3], 3, temperature=0.0).shape == (1, 6)
    model.blocks[0].attn = nn.Identity()
    assert model(idx).logits.isfinite().all()
    with pytest.raises(TypeError, match="attention_maps: layer 0 attends by a Identity"):
        model.attention_maps(idx)


def test_modules_to_save_on_a_gpt(interpreter, seed):
    model = GPT(GPTConfig(**TINY, tie_weights=False, loss_impl="triton"))
    wrapped, idx = adapted(model, "out_proj", modules_to_save=["head"]), torch.randint(32, (2, 8))
    with torch.no_grad():
        for p in model.head.modules_to_save.parameters():
            p.add_(torch.randn_like(p))
    _, grads = loss_and_gradients(wrapped, idx, targets=idx)
    assert all(g is not None and g.any() for g in grads.values())
    assert sum("head" in name for name in grads) == 1
    output = wrapped(idx, targets=idx)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits.flatten(0, 1), idx.flatten()))


@pytest.mark.parametrize(
    "targets", [["c_fc", "c_proj"], ["c_attn"], ["lm_head"], ["c_fc", "c_attn", "c_proj", "lm_head"]]
)
def test_lora_on_a_patched_gpt2(interpreter, seed, targets):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 8}
    config = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    wrapped = adapted(GPT2LMHeadModel(config), *targets).train()
    idx = torch.randint(32, (2, 8))
    theirs = loss_and_gradients(wrapped, input_ids=idx, labels=idx)
    fastgpt.patch(wrapped)
    assert_equal_results(loss_and_gradients(wrapped, input_ids=idx, labels=idx), theirs)
    merged = wrapped.merge_and_unload()
    fastgpt.patch(merged) if not any(r.part == "ffn" for r in fastgpt.implementations(merged)) else None
    assert all(m.why_children() is None for m in merged.modules() if hasattr(m, "why_children"))
    if "lm_head" not in targets:  # which peft merges into the embedding too
        output = merged(input_ids=idx, labels=idx)
        assert output.logits is None
        torch.testing.assert_close(output.loss, theirs[0], rtol=1e-4, atol=1e-5)


def test_patched_first_and_adapted_then(interpreter, seed):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 8}
    config = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    fastgpt.patch(model)
    wrapped, idx = adapted(model, "c_fc", "c_proj", "lm_head").train(), torch.randint(32, (2, 8))
    ours = loss_and_gradients(wrapped, input_ids=idx, labels=idx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_runtime, "is_interpreting", lambda: False)
        assert_equal_results(ours, loss_and_gradients(wrapped, input_ids=idx, labels=idx))


@pytest.mark.parametrize("hook", [False, True])
def test_a_gpt2_head_with_a_bias_or_a_hook(interpreter, seed, hook):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).train()
    for m in model.modules():
        m.p = 0.0 if isinstance(m, nn.Dropout) else getattr(m, "p", None)
    model.lm_head = nn.Linear(16, 32)
    if hook:
        model.lm_head.register_forward_hook(lambda m, args, y: y * 2)
    idx = torch.randint(32, (2, 8))
    theirs = loss_and_gradients(model, input_ids=idx, labels=idx)
    fastgpt.patch(model, attention=False)
    assert_equal_results(loss_and_gradients(model, input_ids=idx, labels=idx), theirs)
    assert (model(input_ids=idx, labels=idx).logits is None) == (not hook)


def test_a_patched_gpt2_refuses_float_labels_as_before(interpreter, seed):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0)
    model, idx = GPT2LMHeadModel(config).train(), torch.randint(32, (1, 8))
    fastgpt.patch(model, attention=False)
    with pytest.raises((RuntimeError, TypeError)):
        model(input_ids=idx, labels=idx.float())
    with pytest.raises(IndexError, match="target -1 is out of bounds"):
        model(input_ids=idx, labels=torch.full_like(idx, -1))


def test_lora_on_multihead_attention(interpreter, seed):
    """peft wraps a MultiheadAttention as a whole, out_proj included: also one of ours."""

    class Model(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.attention = kind(16, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    x, outputs = torch.randn(2, 5, 16), []
    for kind in (nn.MultiheadAttention, fastgpt.nn.FlashMultiheadAttention):
        torch.manual_seed(1)
        model = adapted(Model(kind), "attention")
        y = model(x)
        y.square().sum().backward()
        outputs.append([y, *(p.grad for p in model.parameters() if p.requires_grad)])
    for ours, theirs in zip(*outputs):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


MLP = {
    "as it was made": lambda m: None,
    "pruning": lambda m: prune.random_unstructured(m.c_fc, "weight", 0.5),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.c_proj).eval(),
    "hook": lambda m: m.c_proj.register_forward_hook(lambda m, args, y: y * 2),
    "hook on the activation": lambda m: m.act.register_forward_hook(lambda m, args, y: y * 2),
    "backward hook": lambda m: m.c_fc.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,)),
    "another activation": lambda m: setattr(m, "act", nn.ReLU()),
    "no dropout": lambda m: setattr(m, "dropout", nn.Tanh()),
    "a forward of its own": lambda m: setattr(m.c_fc, "forward", lambda x: x @ m.c_fc.weight + 2 * m.c_fc.bias),
    "dropout in eval": lambda m: (setattr(m.dropout, "p", 0.5), m.dropout.eval()),
}


@pytest.mark.parametrize("done", MLP)
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "gelu_pytorch_tanh"])
def test_what_is_done_to_the_children_of_gpt2s_mlp_counts(interpreter, seed, done, activation):
    from transformers import GPT2Config
    from transformers.models.gpt2 import modeling_gpt2

    from fastgpt.interop import hf_modules

    module = modeling_gpt2.GPT2MLP(64, GPT2Config(n_embd=16, activation_function=activation, resid_pdrop=0.0))
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0.0, 0.5)
    MLP[done](module)
    x, results = torch.randn(3, 16, requires_grad=True), []
    for kind in (modeling_gpt2.GPT2MLP, hf_modules.GPT2MLP):
        module.__class__ = kind
        y = module(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    assert (module.why_children() is None) == (done in ("as it was made", "dropout in eval"))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
