"""What every setting of a model does, fused or not: by the formulas, and by what must differ without it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.kernels import interpret
from fastgpt.model.config import IMPLEMENTATION_SETS

SHAPE = {"vocab_size": 29, "max_len": 8, "n_layers": 2, "n_heads": 2, "d_model": 16}
IDX = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
TARGETS = torch.tensor([[1, 4, 1, 5, 9, 2], [6, -100, 3, 5, -100, 9]])


def make(seed: int = 0, **fields) -> GPT:
    """Weights away from their initial values; two calls give the same."""
    model = GPT(GPTConfig(**SHAPE | fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator) + (p.dim() == 1))
    return model


def fused(**fields) -> GPT:
    pytest.importorskip("triton")
    return make(**IMPLEMENTATION_SETS["fastgpt"], **fields)


# ---- the fused parts get the settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"gelu": "tanh"}, {"gelu": "none"}, {"layer_norm_eps": 0.5}, {"n_kv_heads": 1, "bias": False}], ids=str
)
def test_fused_logits_are_those_of_the_formulas(fields):
    expected = make(**IMPLEMENTATION_SETS["reference"], **fields)(IDX).logits
    with interpret():
        torch.testing.assert_close(fused(**fields)(IDX).logits, expected, atol=1e-5, rtol=1e-4)
    others = {"gelu": "tanh" if fields.get("gelu") == "none" else "none", "layer_norm_eps": 1e-5}
    if not {*fields} & {"bias"}:
        other = make(**IMPLEMENTATION_SETS["reference"], **others)(IDX).logits
        assert (other - expected).abs().max() > 1e-4, "the setting shows in these numbers"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fused_losses_of_every_reduction(reduction):
    expected = make(**IMPLEMENTATION_SETS["reference"])(IDX, TARGETS, reduction=reduction).loss
    with interpret():
        found = fused()(IDX, TARGETS, reduction=reduction).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["attention", "sub-layers", "embeddings"])
def test_fused_dropout_in_every_place(where):
    """One place at a time, the others switched off; in evaluation none."""
    model = fused(dropout=0.5)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5 if {"attn": "attention", "norm": "sub-layers"}[module.fastgpt_part] == where else 0.0
    if where != "embeddings":
        model.config = model.config.replace(dropout=0.0)
    with interpret():
        first, second = (model(IDX).logits for _ in range(2))
        assert not torch.equal(first, second)
        model.eval()
        expected = make(**IMPLEMENTATION_SETS["reference"])(IDX).logits
        torch.testing.assert_close(model(IDX).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_head_with_a_bias_is_called():
    """The fused loss has none to pass it by."""
    model = fused()
    model.head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 29))
    with interpret():
        out = model(IDX, TARGETS)
    expected = F.cross_entropy(out.logits.flatten(0, 1), TARGETS.flatten())
    torch.testing.assert_close(out.loss, expected)
    plain = make(**IMPLEMENTATION_SETS["reference"])(IDX).logits
    torch.testing.assert_close(out.logits, plain + model.head.bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torchs_loss_of_half_precision_logits_is_taken_in_float32(dtype):
    model = make(**IMPLEMENTATION_SETS["torch"]).to(dtype)
    out = model(IDX, TARGETS)
    assert out.logits.dtype == dtype
    assert torch.equal(out.loss, F.cross_entropy(out.logits.float().flatten(0, 1), TARGETS.flatten()))


# ---- what a model tells of itself ----------------------------------------------------------------------------------


def test_attention_maps_of_a_model_in_training_are_without_dropout():
    model = make(dropout=0.5).train()
    found, again = (model.attention_maps(IDX) for _ in range(2))
    expected = model.eval().attention_maps(IDX)
    for layer in (0, 1):
        assert torch.equal(found[layer], again[layer])
        assert torch.equal(found[layer], expected[layer])


@pytest.mark.parametrize("name", IMPLEMENTATION_SETS)
def test_implementations_are_changed_in_every_part_and_in_the_config(name):
    if name == "fastgpt":
        pytest.importorskip("triton")
    wanted = IMPLEMENTATION_SETS[name]
    model = make().use_implementations(**wanted)
    assert {field: getattr(model.config, field) for field in wanted} == wanted
    impls = {(module.fastgpt_part, module.impl) for module in model.modules() if hasattr(module, "fastgpt_part")}
    assert impls == {(field.removesuffix("_impl"), impl) for field, impl in wanted.items()}


def test_the_sets_of_implementations_are_whole():
    assert {
        "fastgpt": {"attn_impl": "triton", "norm_impl": "triton", "ffn_impl": "triton", "loss_impl": "triton"},
        "torch": {"attn_impl": "sdpa", "norm_impl": "torch", "ffn_impl": "torch", "loss_impl": "torch"},
        "reference": dict.fromkeys(("attn_impl", "norm_impl", "ffn_impl", "loss_impl"), "reference"),
    } == IMPLEMENTATION_SETS


@pytest.mark.parametrize(
    ("names", "shape"),  # Radford et al. 2019, table 2; heads of 64 columns, which is what GPT-3's table says of them
    [
        (("gpt2", "gpt2-124m", "GPT2"), (12, 12, 768)),
        (("gpt2-medium", "gpt2-350m"), (24, 16, 1024)),
        (("gpt2-large", "gpt2-774m"), (36, 20, 1280)),
        (("gpt2-xl", "gpt2-1.5b"), (48, 25, 1600)),
    ],
)
def test_every_number_of_gpt2s_presets(names, shape):
    n_layers, n_heads, d_model = shape
    for name in names:
        assert GPTConfig.preset(name) == GPTConfig(
            vocab_size=50257, max_len=1024, n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_ff=4 * d_model,
            n_kv_heads=n_heads, dropout=0.0, bias=True, tie_weights=True, gelu="tanh", layer_norm_eps=1e-5,
        )  # fmt: skip
        assert GPTConfig.preset(name).head_dim == 64


# ---- what it takes -------------------------------------------------------------------------------------------------


def test_targets_of_as_many_numbers_in_another_shape_are_refused():
    for targets in (TARGETS.T.contiguous(), TARGETS.flatten(), TARGETS[None]):
        for model in (make(), OneHeadLM(29, 16, 8)):
            with pytest.raises(ValueError, match=r"targets have shape .* and idx \(2, 6\)"):
                model(IDX, targets)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_one_head_model_with_weights_that_are_no_numbers_is_not_read(tmp_path, bad):
    model = OneHeadLM(29, 16, 8)
    model.save_pretrained(tmp_path / "good")
    OneHeadLM.from_pretrained(tmp_path / "good")
    with torch.no_grad():
        model.W_0.weight[3, 4] = bad
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"W_0\.weight holds 1 of 256 numbers that are NaN or infinite"):
        OneHeadLM.from_pretrained(tmp_path / "bad")


# ---- torch.func ----------------------------------------------------------------------------------------------------


def test_logits_asked_for_inside_of_a_transform_are_differentiated():
    """The weights are those of functional_call, whose call is over when they are asked for."""
    model = make().double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def late(parameters):
        out = functional_call(model, parameters, (IDX, TARGETS), {"return_logits": False}, tie_weights=True)
        return out.logits.square().sum()

    def early(parameters):
        return functional_call(model, parameters, (IDX,), tie_weights=True).logits.square().sum()

    found, expected = grad(late)(parameters), grad(early)(parameters)
    for name in parameters:
        torch.testing.assert_close(found[name], expected[name], msg=name)


# ---- what a look at a model leaves behind --------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_a_look_at_attention_leaves_no_hooks(monkeypatch, fails):
    model = make()

    def failing(*_):
        raise RuntimeError("out of memory")

    if fails:
        monkeypatch.setattr(model, "hidden_states", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            model.attention_maps(IDX)
    else:
        model.attention_maps(IDX)
    assert not any(module._forward_pre_hooks for module in model.modules())
