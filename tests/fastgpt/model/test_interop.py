"""Checkpoints: ours, transformers' GPT-2, nanoGPT's, nn.TransformerEncoder's; and what is wrong with a bad one."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastgpt import GPT, GPTConfig
from fastgpt.model.formats import folder, hf_gpt2, nanogpt
from fastgpt.model.formats.transformer_encoder import blocks_from_encoder, encoder_from_blocks

SHAPE = {"vocab_size": 61, "max_len": 24, "n_layers": 2, "n_heads": 4, "d_model": 32}


def away_from_init(model, std=0.2):
    """No value is left at 0 or 1, so that a bias or weight that is not copied shows."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, std)
    return model


def assert_same_states(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def batch(V=61, T=20):
    return torch.randint(0, V, (2, T)), torch.randint(0, V, (2, T))


# ---- our own format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "fields", [{}, {"tie_weights": False, "bias": False}, {"n_kv_heads": 2, "gelu": "tanh", "d_ff": 48, "dropout": 0.1}]
)
def test_own_round_trip_is_exact(seed, tmp_path, fields, dtype):
    model = away_from_init(GPT(GPTConfig(**SHAPE, **fields, attn_impl="reference"))).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.token_emb.weight.dtype == dtype
    assert_same_states(loaded.state_dict(), model.state_dict())
    assert (loaded.head.weight is loaded.token_emb.weight) == model.config.tie_weights
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_overrides_dtype_and_device(seed, tmp_path):
    GPT(GPTConfig(**SHAPE, attn_impl="triton")).save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path, attn_impl="sdpa", dropout=0.2, dtype=torch.bfloat16, device="cpu")
    assert (model.config.attn_impl, model.config.dropout) == ("sdpa", 0.2)
    assert model.head.weight.dtype == torch.bfloat16
    assert model.head.weight is model.token_emb.weight


def test_saving_again_replaces_and_a_failure_leaves_the_previous(seed, tmp_path, monkeypatch):
    model = away_from_init(GPT(GPTConfig(**SHAPE)))
    model.save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")

    def full(path, tensors):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastgpt.model.formats.folder.write_safetensors", full)
    with pytest.raises(OSError, match=r"could not write .*model.safetensors.*No space left.*previous file is intact"):
        away_from_init(model).save_pretrained(tmp_path)
    assert_same_states(load_file(tmp_path / "model.safetensors"), before)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown format 'gguf'; choose from"):
        GPT(GPTConfig(**SHAPE)).save_pretrained(tmp_path, format="gguf")


# ---- bad checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_a_hub_name_is_not_downloaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"'{name}' does not exist.*nothing is downloaded.*save_pretrained"):
        GPT.from_pretrained(name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"exists, but has no config.json and no ckpt.pt"):
        GPT.from_pretrained(tmp_path)


@pytest.fixture
def saved(seed, tmp_path):
    GPT(GPTConfig(**SHAPE)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", lambda b: b[: len(b) // 2], "model.safetensors is truncated or corrupted"),
        ("model.safetensors", lambda b: b"\xff" * 8 + b[8:], "model.safetensors is truncated or corrupted"),
        ("model.safetensors", lambda b: b"", "model.safetensors is truncated or corrupted"),
        ("config.json", lambda b: b[: len(b) // 2], "config.json is corrupted"),
        ("config.json", lambda b: b'{"model_type": "llama"}', r'model_type must be "fastgpt" or "gpt2", got \'llama\''),
        (
            "config.json",
            lambda b: b.replace(b'"max_len": 24', b'"max_len": 25'),
            r"pos_emb.weight has shape \(24, 32\)",
        ),
        ("config.json", lambda b: b.replace(b'"n_layers": 2', b'"n_layers": 3'), r"missing blocks.2.attn.in_proj_bias"),
        ("config.json", lambda b: b.replace(b'"n_layers": 2', b'"n_layers": 1'), r"unexpected blocks.1.attn.in_proj"),
        (
            "config.json",
            lambda b: b.replace(b'"n_heads": 4', b'"n_heads": 5'),
            r"config.json: n_heads=5 must divide d_model \(32\)",
        ),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_named(saved, file, damage, message):
    content = (saved / file).read_bytes()
    assert damage(content) != content
    (saved / file).write_bytes(damage(content))
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(saved)


def test_missing_weights_are_named(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has a config.json but no model.safetensors"):
        GPT.from_pretrained(saved)


# ---- transformers' GPT-2 -------------------------------------------------------------------------------------------


def transformers_model(**fields):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 61, "n_positions": 24, "n_layer": 2, "n_head": 4, "n_embd": 32} | fields
    settings |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return away_from_init(transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)))


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"activation_function": "gelu", "n_inner": 40}, {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}],
)
def test_equals_transformers(seed, tmp_path, fields, impl):
    theirs = transformers_model(**fields)
    theirs.save_pretrained(tmp_path)
    ours, theirs = GPT.from_pretrained(tmp_path, attn_impl=impl).double(), theirs.double()
    idx, _ = batch()
    expected = theirs(idx, labels=idx)
    expected.loss.backward()
    output = ours(idx[:, :-1], idx[:, 1:])  # transformers shifts its labels itself
    output.loss.backward()
    assert (output.logits - expected.logits[:, :-1]).abs().max() < 1e-12
    assert (output.loss - expected.loss).abs() < 1e-5  # which transformers takes in float32, and gradients with it
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    gradients = hf_gpt2.state_from_hf(gradients, ours.config)
    for name, p in ours.named_parameters():
        assert (p.grad - gradients[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_round_trip_is_exact_both_ways(seed, tmp_path, tie):
    theirs = transformers_model(tie_word_embeddings=tie)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "back", format="hf")
    assert_same_states(
        dict(sorted(load_file(tmp_path / "back" / "model.safetensors").items())),
        dict(sorted(load_file(tmp_path / "theirs" / "model.safetensors").items())),
    )
    again = type(theirs).from_pretrained(tmp_path / "back")
    assert_same_states(again.state_dict(), theirs.state_dict())
    again_ours = GPT.from_pretrained(tmp_path / "back")
    assert again_ours.config == ours.config
    assert_same_states(again_ours.state_dict(), ours.state_dict())


def test_keys_without_prefix_and_mask_buffers(seed, tmp_path):
    """The layout of the files that OpenAI's weights were first published in."""
    theirs = transformers_model()
    theirs.save_pretrained(tmp_path)
    expected = GPT.from_pretrained(tmp_path).state_dict()
    state = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    for i in range(2):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    assert_same_states(GPT.from_pretrained(tmp_path).state_dict(), expected)


@pytest.mark.parametrize("how", ["sharded", "pickled"])
def test_other_files_of_transformers(seed, tmp_path, how):
    theirs = transformers_model()
    if how == "sharded":
        theirs.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    else:
        theirs.save_pretrained(tmp_path)
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    idx, _ = batch()
    with torch.no_grad():
        ours = GPT.from_pretrained(tmp_path).double()
        assert (ours(idx).logits - theirs.double().eval()(idx).logits).abs().max() < 1e-12
    for shard in sorted(tmp_path.glob("model-*.safetensors"))[:1]:
        shard.unlink()
        with pytest.raises(FileNotFoundError, match=f"names {shard.name}, which is missing"):
            GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "said", ['{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": 3}', "3", "{", "{}"]
)
def test_an_index_that_names_no_files_is_the_file_at_fault(tmp_path, said):
    GPT(GPTConfig(vocab_size=8, max_len=4, n_layers=1, n_heads=1, d_model=8)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(said)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is corrupted"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
    ],
)
def test_variants_of_gpt2_that_we_do_not_have(fields, message):
    with pytest.raises(ValueError, match=message):
        hf_gpt2.config_from_hf(fields)


def test_different_dropouts_become_one_and_it_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="fastgpt"):
        assert hf_gpt2.config_from_hf({"resid_pdrop": 0.2}).dropout == 0.2
    assert "one dropout for all places" in caplog.text


@pytest.mark.parametrize(
    ("format", "fields", "message"),
    [
        ("hf", {"n_kv_heads": 2}, "no grouped-query attention"),
        ("hf", {"bias": False}, "has biases, and this model does not"),
        ("nanogpt", {"gelu": "tanh"}, "nanoGPT has gelu='none' only"),
        ("nanogpt", {"tie_weights": False}, "nanoGPT has tie_weights=True only"),
        ("nanogpt", {"n_kv_heads": 1}, "nanoGPT has n_kv_heads=4 only"),
        ("nanogpt", {"d_ff": 40}, "nanoGPT has d_ff=128 only"),
    ],
)
def test_models_that_others_cannot_express(tmp_path, format, fields, message):
    with pytest.raises(ValueError, match=message):
        GPT(GPTConfig(**SHAPE, **fields)).save_pretrained(tmp_path, format=format)


# ---- nanoGPT -------------------------------------------------------------------------------------------------------


def nanogpt_checkpoint(bias=True, prefix=""):
    """What nanoGPT's train.py saves: its names, nn.Linear layouts, tied head present, counters around."""
    d, V, T = 32, 61, 24
    shapes = {"transformer.wte.weight": (V, d), "transformer.wpe.weight": (T, d)}
    for i in range(2):
        h = f"transformer.h.{i}."
        shapes |= {h + "ln_1.weight": (d,), h + "attn.c_attn.weight": (3 * d, d), h + "attn.c_proj.weight": (d, d)}
        shapes |= {h + "ln_2.weight": (d,), h + "mlp.c_fc.weight": (4 * d, d), h + "mlp.c_proj.weight": (d, 4 * d)}
        if bias:
            shapes |= {f"{name.removesuffix('weight')}bias": s[:1] for name, s in shapes.items() if name.startswith(h)}
    shapes["transformer.ln_f.weight"] = (d,)
    if bias:
        shapes["transformer.ln_f.bias"] = (d,)
    model = {prefix + name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    model[prefix + "lm_head.weight"] = model[prefix + "transformer.wte.weight"]
    arguments = {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "block_size": 24,
        "bias": bias,
        "vocab_size": 61,
        "dropout": 0.0,
    }
    return {
        "model": model, "model_args": arguments, "optimizer": {"state": {}, "param_groups": []}, "iter_num": 7,
        "best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char"},
    }  # fmt: skip


def nanogpt_forward(state, idx):
    """nanoGPT's model in functional form, from its own names."""
    import torch.nn.functional as F

    def at(name):
        return state.get("transformer." + name)

    x = at("wte.weight")[idx] + at("wpe.weight")[: idx.shape[1]]
    for i in range(2):
        h = F.layer_norm(x, (32,), at(f"h.{i}.ln_1.weight"), at(f"h.{i}.ln_1.bias"))
        qkv = F.linear(h, at(f"h.{i}.attn.c_attn.weight"), at(f"h.{i}.attn.c_attn.bias"))
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in qkv.split(32, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.linear(y, at(f"h.{i}.attn.c_proj.weight"), at(f"h.{i}.attn.c_proj.bias"))
        h = F.layer_norm(x, (32,), at(f"h.{i}.ln_2.weight"), at(f"h.{i}.ln_2.bias"))
        h = F.gelu(F.linear(h, at(f"h.{i}.mlp.c_fc.weight"), at(f"h.{i}.mlp.c_fc.bias")))
        x = x + F.linear(h, at(f"h.{i}.mlp.c_proj.weight"), at(f"h.{i}.mlp.c_proj.bias"))
    return F.linear(F.layer_norm(x, (32,), at("ln_f.weight"), at("ln_f.bias")), state["lm_head.weight"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_checkpoint(seed, tmp_path, prefix, bias):
    checkpoint = nanogpt_checkpoint(bias, prefix)
    for i in range(2):
        checkpoint["model"][f"{prefix}transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    idx, _ = batch()
    plain = {name.removeprefix("_orig_mod."): tensor for name, tensor in checkpoint["model"].items()}
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        model = GPT.from_pretrained(path)
        assert (model.config.bias, model.config.gelu, model.config.tie_weights) == (bias, "none", True)
        torch.testing.assert_close(model(idx).logits, nanogpt_forward(plain, idx), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_round_trip_is_exact(seed, tmp_path, bias):
    checkpoint = nanogpt_checkpoint(bias)
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    model = GPT.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "back", format="nanogpt")
    back = torch.load(tmp_path / "back" / "ckpt.pt", weights_only=True)
    assert back["model_args"] == checkpoint["model_args"]
    assert_same_states(dict(sorted(back["model"].items())), dict(sorted(checkpoint["model"].items())))
    assert_same_states(GPT.from_pretrained(tmp_path / "back").state_dict(), model.state_dict())


class Executed:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"model": Executed(), "model_args": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"ckpt.pt is truncated, corrupted or holds more than tensors"):
        GPT.from_pretrained(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_a_truncated_pickle_is_refused(seed, tmp_path):
    torch.save(nanogpt_checkpoint(), tmp_path / "ckpt.pt")
    content = (tmp_path / "ckpt.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"ckpt.pt is truncated, corrupted"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"state_dict": {}}, r"is a dict with 'model' and 'model_args', this has \['state_dict'\]"),
        ([1], "this has list"),
        ({"model": {}, "model_args": {"n_layer": 2, "n_head": 2}}, r"lacks \['vocab_size', 'block_size', 'n_embd'\]"),
    ],
)
def test_what_is_no_nanogpt_checkpoint(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        nanogpt.from_checkpoint(checkpoint)


# ---- nn.TransformerEncoder -----------------------------------------------------------------------------------------


def test_transformer_encoder_stack(seed):
    layer = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    encoder = away_from_init(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    wrapped = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    blocks = blocks_from_encoder(wrapped, prefix="encoder.")
    model = away_from_init(GPT(GPTConfig(**SHAPE)))
    missing, unexpected = model.load_state_dict({**model.state_dict(), **blocks})
    assert not missing
    assert not unexpected
    x = torch.randn(2, 20, 32)
    expected = encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(20), is_causal=True)
    out, residual = None, x
    for block in model.blocks:
        out, residual = block(out, residual)
    torch.testing.assert_close(residual + out, expected, rtol=0, atol=2e-5)
    back = encoder_from_blocks(model.state_dict(), "encoder.")
    assert_same_states(dict(sorted(back.items())), dict(sorted(wrapped.items())))


def test_transformer_encoder_prefix_that_is_not_there():
    with pytest.raises(ValueError, match=r"no parameter is named 'model.layers.\*'; .*check the prefix"):
        blocks_from_encoder(nn.TransformerEncoderLayer(8, 2).state_dict(), "model.")


def test_weights_of_another_shape_name_the_source():
    config = GPTConfig(**SHAPE)
    state = GPT(config.replace(vocab_size=60)).state_dict()
    with pytest.raises(
        ValueError, match=r"^here: token_emb.weight has shape \(60, 32\) and the config asks for \(61, 32\)"
    ):
        folder.filled(lambda: GPT(config), state, source="here", config="", device=None, dtype=None)


def test_config_file_is_plain_json(saved):
    fields = json.loads((saved / "config.json").read_text())
    assert fields["model_type"] == "fastgpt"
    assert {"vocab_size", "max_len", "n_layers", "attn_impl"} <= set(fields)
