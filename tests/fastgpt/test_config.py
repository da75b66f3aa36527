"""GPTConfig: what it refuses, its JSON, presets."""

import json

import pytest

import fastgpt
from fastgpt import GPT, GPTConfig, presets

TINY = {"vocab_size": 50, "max_len": 16, "n_layers": 2, "n_heads": 4, "d_model": 32}


def test_defaults_that_follow_from_other_fields():
    config = GPTConfig(**TINY)
    assert (config.d_ff, config.n_kv_heads, config.head_dim) == (128, 4, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"d_model": 30}, ValueError, r"d_model \(30\) is not divisible by n_heads \(4\); take d_model 32"),
        ({"n_kv_heads": 3}, ValueError, r"n_kv_heads \(3\) must divide n_heads \(4\); choose from \[1, 2, 4\]"),
        ({"n_kv_heads": 8}, ValueError, r"n_kv_heads \(8\) must divide n_heads \(4\)"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"gelu": "erf"}, ValueError, r'gelu must be "none" \(exact, erf\) or "tanh", got \'erf\''),
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
        ({"n_layers": 2.0}, TypeError, "n_layers must be an int, got 2.0"),
        ({"layer_norm_eps": -1e-5}, ValueError, "layer_norm_eps must not be negative"),
        ({"attn_impl": "flash"}, ValueError, r"attn_impl='flash'; choose from \"auto\", \"triton\", \"sdpa\""),
        ({"norm_impl": "sdpa"}, ValueError, r"norm_impl='sdpa'; choose from \"auto\", \"triton\", \"torch\""),
    ],
)
def test_bad_fields_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        GPTConfig(**{**TINY, **changes})


def test_json_round_trip(tmp_path):
    config = GPTConfig(**TINY, n_kv_heads=2, gelu="tanh", attn_impl="sdpa")
    config.to_json(tmp_path / "config.json")
    assert GPTConfig.from_json(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[1]", "expected a JSON object"),
        (json.dumps({**TINY, "n_layer": 2}), r"unknown fields \['n_layer'\]"),
        (json.dumps({"vocab_size": 3}), r"fields \['max_len', 'n_layers', 'n_heads', 'd_model'\] are missing"),
    ],
)
def test_bad_json_is_named(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_json(tmp_path / "c.json")


def test_replace_moves_dependent_defaults():
    config = GPTConfig(**TINY)
    assert config.replace(d_model=64).d_ff == 256
    assert config.replace(n_heads=8).n_kv_heads == 8
    assert GPTConfig(**TINY, d_ff=100).replace(d_model=64).d_ff == 100


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt2", 124.4), ("gpt2-124m", 124.4), ("gpt2-350m", 354.8), ("gpt2-774m", 774.0), ("gpt2-1.5b", 1557.6)],
)
def test_gpt2_sizes(name, millions):
    import torch

    with torch.device("meta"):
        model = GPT(GPTConfig.preset(name))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05)
    assert model.config.gelu == "tanh"


def test_depth_study_grid():
    study = [GPTConfig.preset(name) for name in presets.names() if name.startswith("depth-")]
    assert {(c.n_layers, c.d_model, c.n_heads) for c in study} == {
        (l, d, h) for l in (2, 4, 8, 12) for d in (256, 512) for h in (4, 8)
    }
    assert all(c.d_ff == 4 * c.d_model for c in study)
    assert GPTConfig.preset("depth-2x256x4", max_len=64, dropout=0.1).max_len == 64


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'gpt3'; choose from gpt2, "):
        fastgpt.GPTConfig.preset("gpt3")
