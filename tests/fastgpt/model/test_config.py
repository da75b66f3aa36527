"""GPTConfig: what it refuses, its JSON, presets."""

import copy
import dataclasses
import json
import pickle

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
        ({"d_model": 30}, ValueError, r"n_heads=4 must divide d_model \(30\); take d_model 32"),
        ({"n_kv_heads": 3}, ValueError, r"n_kv_heads=3 must divide n_heads \(4\); choose from 1, 2, 4"),
        ({"n_kv_heads": 8}, ValueError, r"n_kv_heads=8 must divide n_heads \(4\)"),
        ({"dropout": 1.0}, ValueError, "dropout=1.0 must be a number, at least 0 and below 1"),
        ({"dropout": float("nan")}, ValueError, "dropout=nan must be a number"),
        ({"dropout": "0.1"}, TypeError, "dropout='0.1' must be a number"),
        ({"gelu": "erf"}, ValueError, "gelu='erf' must be one of none, tanh"),
        ({"gelu": None}, TypeError, "gelu=None must be one of none, tanh"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0 must be an integer, at least 1"),
        ({"n_layers": 2.0}, TypeError, "n_layers=2.0 must be an integer"),
        ({"n_layers": "4"}, TypeError, "n_layers='4' must be an integer"),
        ({"d_model": True}, TypeError, "d_model=True must be an integer"),
        ({"d_ff": 0}, ValueError, "d_ff=0 must be an integer, at least 1"),
        ({"layer_norm_eps": -1e-5}, ValueError, "layer_norm_eps=-1e-05 must be a number, at least 0"),
        ({"layer_norm_eps": float("nan")}, ValueError, "layer_norm_eps=nan must be a number"),
        ({"layer_norm_eps": float("inf")}, ValueError, "layer_norm_eps=inf must be a number"),
        ({"bias": "no"}, TypeError, "bias='no' must be True or False"),
        ({"tie_weights": 1}, TypeError, "tie_weights=1 must be True or False"),
        ({"attn_impl": "flash"}, ValueError, "attn_impl='flash' must be one of auto, triton, sdpa, reference"),
        ({"attn_impl": None}, TypeError, "attn_impl=None must be one of auto"),
        ({"norm_impl": "sdpa"}, ValueError, "norm_impl='sdpa' must be one of auto, triton, torch, reference"),
    ],
)
def test_bad_fields_are_named(changes, error, message):
    with pytest.raises(error, match=f"^GPTConfig: {message}"):
        GPTConfig(**{**TINY, **changes})


def test_numbers_of_other_libraries_become_pythons():
    np = pytest.importorskip("numpy")
    config = GPTConfig(**{**TINY, "n_layers": np.int64(2)}, dropout=np.float32(0.5), layer_norm_eps=0)
    assert (type(config.n_layers), type(config.dropout), type(config.layer_norm_eps)) == (int, float, float)
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_fields_are_read_only_and_the_message_names_replace():
    config = GPTConfig(**TINY)
    for name in ("n_layers", "d_ff", "dropout"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=rf"{name} is read-only; config.replace\({name}=3\)"):
            setattr(config, name, 3)
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"{name} is read-only"):
            delattr(config, name)
    assert config == GPTConfig(**TINY)


@pytest.mark.parametrize(
    ("name", "field"),
    [("n_layer", "n_layers"), ("n_head", "n_heads"), ("max_length", "max_len"),
     ("layer_norm_epsilon", "layer_norm_eps"), ("drop_out", "dropout"),
     ("tie_weight", "tie_weights"), ("vocabsize", "vocab_size")],
)  # fmt: skip
def test_a_field_nearly_named_is_refused(name, field):
    with pytest.raises(AttributeError, match=f"there is no field '{name}'; did you mean '{field}'"):
        setattr(GPTConfig(**TINY), name, 3)
    with pytest.raises(TypeError, match=f"there is no field '{name}'; did you mean '{field}'"):
        GPTConfig(**TINY).replace(**{name: 3})


def test_other_peoples_attributes_are_kept_but_neither_compared_nor_saved():
    """As transformers' Trainer, peft and generation utilities set them."""
    config, plain = GPTConfig(**TINY), GPTConfig(**TINY)
    names = [
        *("use_cache", "pad_token_id", "eos_token_id", "bos_token_id", "_attn_implementation", "torch_dtype", "dtype"),
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "is_decoder", "tie_word_embeddings", "model_type"),
        *("attention_dropout", "hidden_dropout", "resid_pdrop", "initializer_range", "quantization_config"),
        *("output_attentions", "return_dict", "problem_type", "gradient_checkpointing", "_name_or_path"),
    ]
    for value, name in enumerate(names):
        setattr(config, name, value)
        assert getattr(config, name) == value
    assert config == plain
    assert hash(config) == hash(plain)
    assert config.to_dict() == plain.to_dict()
    assert repr(config) == repr(plain)
    assert not hasattr(config.replace(n_layers=1), "use_cache")
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), copy.copy(config)):
        assert copied == plain
        assert copied.use_cache == 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            copied.n_layers = 3
    del config.use_cache
    assert {plain: 1}[config] == 1
    assert config != config.replace(n_layers=1)


def test_dict_round_trip():
    config = GPTConfig(**TINY, n_kv_heads=2, gelu="tanh", attn_impl="sdpa")
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**TINY, "n_layer": 2}, r"c.json: unknown fields \['n_layer'\]"),
        ({"vocab_size": 3}, r"c.json: fields \['max_len', 'n_layers', 'n_heads', 'd_model'\] are missing"),
        ({**TINY, "n_layers": "2"}, r"c.json: n_layers='2' must be an integer"),
    ],
)
def test_bad_fields_are_named_with_their_source(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_dict(fields, source="c.json")


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


def test_what_to_plan_for_on_many_gpus():
    large = [GPTConfig.preset(name) for name in presets.names() if name.startswith("gpt-")]
    assert [(c.n_layers, c.d_model, c.n_heads) for c in large] == [
        (l, d, h) for l in (32, 64, 96) for d, h in ((4096, 32), (6144, 48), (8192, 64))
    ]
    assert {(c.vocab_size, c.max_len, c.head_dim, c.d_ff // c.d_model, c.gelu) for c in large} == {
        (50257, 2048, 128, 4, "tanh")
    }
    assert "gpt-{32,64,96}x{4096x32,6144x48,8192x64}" in presets.described()


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"preset='gpt3' must be one of gpt2, "):
        fastgpt.GPTConfig.preset("gpt3")
