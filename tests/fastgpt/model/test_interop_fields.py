"""Every field that other people's files and ours have in common, one at a time and away from its default."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fastgpt import GPT, GPTConfig, patch
from fastgpt.model.formats import hf_gpt2, nanogpt
from fastgpt.model.formats.transformer_encoder import blocks_from_encoder, encoder_from_blocks

SHAPE = {"vocab_size": 29, "max_len": 8, "n_layers": 2, "n_heads": 2, "d_model": 16}
IDX = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def make(**fields) -> GPT:
    model = GPT(GPTConfig(**SHAPE | fields))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3)
    return model.eval()


@pytest.mark.needs("transformers")
@pytest.mark.parametrize(
    ("fields", "theirs"),
    [
        ({"layer_norm_eps": 0.3}, {"layer_norm_epsilon": 0.3}),
        ({"d_ff": 24}, {"n_inner": 24}),
        ({"gelu": "tanh"}, {"activation_function": "gelu_new"}),
        ({"gelu": "none"}, {"activation_function": "gelu"}),
        ({"dropout": 0.25}, {"resid_pdrop": 0.25, "embd_pdrop": 0.25, "attn_pdrop": 0.25}),
        ({"tie_weights": False}, {"tie_word_embeddings": False}),
        ({"max_len": 9}, {"n_positions": 9}),
        ({"n_heads": 4}, {"n_head": 4}),
        ({"n_layers": 3}, {"n_layer": 3}),
    ],
    ids=str,
)
def test_transformers_reads_every_field_that_we_write_and_computes_the_same(seed, tmp_path, fields, theirs):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = make(**fields)
    model.save_pretrained(tmp_path, format="hf")
    config = GPT2Config.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in theirs} == theirs
    other = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(other(IDX).logits, model(IDX).logits, atol=1e-5, rtol=1e-5)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(IDX).logits, model(IDX).logits)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}), ({"layer_norm_epsilon": 0.3}, {"layer_norm_eps": 0.3}), ({"n_inner": 24}, {"d_ff": 24}),
        ({"activation_function": "gelu"}, {"gelu": "none"}), ({"tie_word_embeddings": False}, {"tie_weights": False}),
        ({"n_ctx": 5}, {}),  # what older files say beside n_positions, and nothing reads
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_a_config_of_gpt2_leaves_out_have_transformers_defaults(theirs, ours):
    assert hf_gpt2.config_from_hf(theirs) == GPTConfig.preset("gpt2", dropout=0.1, **ours)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_nanogpts_of_before_it_had_a_bias_to_choose(seed, bias, said):
    """Whose model_args say nothing of biases and dropout: the weights tell."""
    model = make(bias=bias, dropout=0.25)
    checkpoint = nanogpt.to_checkpoint(model.config, model.state_dict())
    expected = {
        "vocab_size": 29, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "bias": bias, "dropout": 0.25,
    }  # fmt: skip
    assert checkpoint["model_args"] == expected
    if not said:
        del checkpoint["model_args"]["bias"], checkpoint["model_args"]["dropout"]
    config, state = nanogpt.from_checkpoint(checkpoint)
    assert config == model.config.replace(dropout=0.25 if said else 0.0)
    assert state.keys() == model.state_dict().keys()


def test_encoders_of_more_than_ten_layers(seed):
    """Their numbers have two digits; norms and projections are told apart by what they compute."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 11, enable_nested_tensor=False)
    with torch.no_grad():
        for p in encoder.parameters():
            p.normal_(0.0, 0.3)
    model = make(n_layers=11, d_ff=24)
    renamed = blocks_from_encoder({f"encoder.{name}": p for name, p in encoder.state_dict().items()}, "encoder.")
    found = {name for name in model.state_dict() if name.startswith("blocks.")}
    assert renamed.keys() == found
    model.load_state_dict(renamed, strict=False)
    x, mask = torch.randn(2, 8, 16), nn.Transformer.generate_square_subsequent_mask(8)
    expected = encoder(x, mask=mask, is_causal=True)
    out, residual = None, x
    for block in model.blocks:
        out, residual = block(out, residual)
    torch.testing.assert_close(residual + out, expected, atol=1e-4, rtol=1e-4)
    assert encoder_from_blocks(renamed, "encoder.").keys() == {f"encoder.{name}" for name in encoder.state_dict()}


def test_a_file_of_a_tied_model_holds_the_weight_once_under_either_name(seed, tmp_path):
    from safetensors.torch import load_file, save_file

    model = make()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "head.weight" not in state
    state["head.weight"] = state.pop("token_emb.weight")
    save_file(state, tmp_path / "model.safetensors")
    again = GPT.from_pretrained(tmp_path)
    assert again.head.weight is again.token_emb.weight
    assert torch.equal(again(IDX).logits, model(IDX).logits)
    assert json.loads((tmp_path / "config.json").read_text())["tie_weights"] is True


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_fast", "quick_gelu"])
def test_a_gpt2_of_another_activation_keeps_its_ffn(seed, activation):
    """gelu_fast is the tanh GELU with rounded constants, quick_gelu a sigmoid: near, and not the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=29, n_positions=8, n_embd=16, n_layer=1, n_head=2, activation_function=activation)
    model = GPT2LMHeadModel(config).eval()
    expected, kind = model(IDX).logits, type(model.transformer.h[0].mlp)
    report = patch(model)
    assert type(model.transformer.h[0].mlp) is kind
    assert not [change.path for change in report if change.path.endswith("mlp")]
    torch.testing.assert_close(model(IDX).logits, expected)
