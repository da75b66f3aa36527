"""fastgpt.patch: torch's and transformers' modules converted in place, with the same state dict and numbers."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import fastgpt
from fastgpt import GPT, GPTConfig
from tests.support.modules import assert_same_module
from tests.support.reference_gpt import ReferenceGPT

SHAPE = {"vocab_size": 61, "max_len": 16, "n_layers": 2, "n_heads": 2, "d_model": 16}


def away_from_init(model, std=0.2):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, std)
    return model


def batch(device, T=12, B=2):
    return torch.randint(0, 61, (B, T), device=device), torch.randint(0, 61, (B, T), device=device)


# ---- torch's modules -----------------------------------------------------------------------------------------------


def test_a_plain_model_keeps_its_numbers_and_state_dict(device, seed):
    model = away_from_init(ReferenceGPT(**SHAPE)).to(device)
    parameters, state = list(model.parameters()), {n: t.clone() for n, t in model.state_dict().items()}
    idx, targets = batch(device)
    plain = copy.deepcopy(model)

    report = fastgpt.patch(model)
    assert {(c.path, c.after.rsplit(".", 1)[1]) for c in report} == {
        *((f"blocks.{i}.{name}", kind) for i in (0, 1) for name, kind in (
            ("ln1", "LayerNorm"), ("attn", "FlashMultiheadAttention"), ("ln2", "LayerNorm"), ("ffn", "GELUFFN"))),
        ("ln_f", "LayerNorm"),
    }  # fmt: skip
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert_same_module(model, plain, idx, targets)
    model.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("switches", "kinds"),
    [
        ({"attention": False}, {"LayerNorm", "GELUFFN"}),
        ({"layer_norm": False}, {"FlashMultiheadAttention", "GELUFFN"}),
        ({"ffn": False}, {"FlashMultiheadAttention", "LayerNorm"}),
    ],
)
def test_switches(switches, kinds):
    report = fastgpt.patch(ReferenceGPT(**SHAPE), **switches)
    assert {c.after.rsplit(".", 1)[1] for c in report} == kinds


def test_report_prints_one_line_a_kind():
    lines = str(fastgpt.patch(ReferenceGPT(**{**SHAPE, "n_layers": 4}))).splitlines()
    assert len(lines) == 3
    assert "9 x LayerNorm -> fastgpt.nn.layer_norm.LayerNorm: blocks.0.ln1, blocks.0.ln2, blocks.1.ln1, ..." in lines


def test_a_patched_model_copies_pickles_and_knows_its_implementations(seed):
    model = ReferenceGPT(**SHAPE)
    fastgpt.patch(model)
    idx, _ = batch("cpu")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.ln_f) is fastgpt.nn.LayerNorm
        assert torch.equal(other(idx)[0], model(idx)[0])


def test_optimizer_hooks_and_modes_survive(seed):
    model = ReferenceGPT(**SHAPE).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    model.ln_f.register_forward_hook(lambda *args: calls.append(1))
    fastgpt.patch(model)
    assert not model.ln_f.training
    before = model.ln_f.weight.detach().clone()
    model(*batch("cpu"))[1].backward()
    optimizer.step()
    assert calls
    assert not torch.equal(model.ln_f.weight, before)


class NormOfItsOwn(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2), nn.GELU()),
        NormOfItsOwn(4),
        GPT(GPTConfig(**SHAPE)),
    ],
    ids=["linear", "relu", "longer", "subclass", "gpt"],
)
def test_nothing_to_convert_raises(model):
    with pytest.raises(
        ValueError, match=rf"nothing in {type(model).__name__} matched \['attention', 'layer_norm', 'ffn'"
    ):
        fastgpt.patch(model)


def test_a_second_patch_finds_nothing_left():
    model = ReferenceGPT(**SHAPE)
    first = fastgpt.patch(model)
    second = fastgpt.patch(model)
    assert not second
    assert sorted(second.already) == sorted(change.path for change in first)


def test_the_model_itself_may_be_the_match():
    model = nn.LayerNorm(4)
    assert fastgpt.patch(model)[0].path == ""
    assert type(model) is fastgpt.nn.LayerNorm


def test_dropout_after_the_ffn_still_drops(device, seed):
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.Dropout(0.5)).to(device)
    x = torch.randn(64, 8, device=device)
    fastgpt.patch(model)
    assert 0.3 < (model(x) == 0).float().mean() < 0.7
    assert (model.eval()(x) != 0).all()


# ---- transformers' GPT-2 -------------------------------------------------------------------------------------------


def gpt2(device, **fields):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 61, "n_positions": 16, "n_layer": 2, "n_head": 2, "n_embd": 16} | fields
    settings |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return away_from_init(transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))).to(device)


def unpatched(model):
    """A copy whose loss is transformers' own without its `.float()`, so that it can be had in float64."""

    def loss_of(logits, labels, vocab_size, num_items_in_batch=None, shift_labels=None, **_):
        if shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction=reduction)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    plain = copy.deepcopy(model)
    plain.loss_function = loss_of
    return plain


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "gelu_pytorch_tanh"])
def test_gpt2_trains_as_before(device, seed, activation):
    model = gpt2(device, activation_function=activation)
    idx, _ = batch(device)
    state = list(model.state_dict())
    plain = unpatched(model)

    report = fastgpt.patch(model)
    assert sorted(c.path for c in report if c.before == "GPT2MLP") == ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    assert any(c.before.startswith("attn_implementation") for c in report)
    assert sum(c.before == "LayerNorm" for c in report) == 5
    assert list(model.state_dict()) == state

    model.train()
    assert model(idx, labels=idx).logits is None
    assert_same_module(model, plain, idx, labels=idx, pick=lambda output: output.loss)
    model.eval()
    assert_same_module(model, plain, idx, labels=idx, pick=lambda output: (output.loss, output.logits))


def test_gpt2_loss_settings(device, seed):
    """What transformers' Trainer passes: the number of tokens over all micro-batches; ignored labels; tuples."""
    model = gpt2(device).train()
    idx, _ = batch(device)
    labels = idx.clone()
    labels[0, :6] = -100
    counted, shifted = torch.tensor(29, device=device), torch.roll(labels, 1, 1)
    calls = [{}, {"num_items_in_batch": counted}, {"shift_labels": shifted}, {"return_dict": False}]
    plain = unpatched(model)
    fastgpt.patch(model, attention=False, layer_norm=False, ffn=False)
    for call in calls:
        output = model(input_ids=idx, labels=labels, **call)
        assert isinstance(output, tuple) == (call.get("return_dict") is False)
        assert_same_module(model, plain, idx, labels=labels, **call, pick=lambda output: output[0])


PADDING = {  # {row: positions that are padding}
    "none": {},
    "right": {0: slice(6, 9)},
    "left": {1: slice(0, 4)},
    "both": {0: slice(7, 9), 2: slice(0, 1)},
    "hole": {1: slice(2, 4)},
}


@pytest.mark.parametrize("interpreted", [True, False], ids=["kernels", "fallback"])
@pytest.mark.parametrize("padding", PADDING)
def test_gpt2_padding(request, seed, padding, interpreted):
    device = request.getfixturevalue("device") if interpreted else torch.device("cpu")
    model = gpt2(device).eval()
    idx, _ = batch(device, T=9, B=3)
    kept = torch.ones(3, 9, dtype=torch.long, device=device)
    for row, gap in PADDING[padding].items():
        kept[row, gap] = 0
    model.set_attn_implementation("eager")
    plain = copy.deepcopy(model)
    fastgpt.patch(model, layer_norm=False, ffn=False, loss=False)
    seen = kept.bool()

    def pick(output):
        return [output.logits[seen], *(w.transpose(1, 2)[seen] for w in output.attentions)]

    assert_same_module(model, plain, idx, attention_mask=kept, output_attentions=True, pick=pick)


@pytest.mark.parametrize("padded", [False, True])
def test_gpt2_generates_as_before(device, seed, padded):
    model = gpt2(device).eval()
    idx, _ = batch(device, T=6)
    kept = torch.ones_like(idx)
    if padded:
        kept[0, :2] = 0
    settings = {"attention_mask": kept, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(idx, **settings)
    fastgpt.patch(model)
    assert torch.equal(model.generate(idx, **settings), expected)


def test_static_caches_go_to_torchs_attention(device, seed):
    model = gpt2(device).eval()
    idx, _ = batch(device, T=6)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static",
                "disable_compile": True}  # fmt: skip
    expected = model.generate(idx, **settings)
    fastgpt.patch(model, layer_norm=False, ffn=False, loss=False)
    assert torch.equal(model.generate(idx, **settings), expected)


def test_a_patched_gpt2_saves_what_an_unpatched_one_saves(seed, tmp_path):
    model = gpt2("cpu")
    model.save_pretrained(tmp_path / "before")
    fastgpt.patch(model)
    model.save_pretrained(tmp_path / "after")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after"))
    assert before == after
    assert GPT.from_pretrained(tmp_path / "after").num_parameters() == model.num_parameters()


def test_gpt2_copies_and_pickles(seed):
    model = gpt2("cpu").train()
    fastgpt.patch(model)
    idx, _ = batch("cpu")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(idx, labels=idx).loss, model(idx, labels=idx).loss)


class PlainRMSNorm(nn.Module):
    """transformers' computes in float32 whatever it is given, which is no float64 reference."""

    def __init__(self, weight, eps):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


def test_grouped_queries_of_another_architecture(device, seed):
    """The registered attention serves any transformers model: here Llama, with two query heads to a key head."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = away_from_init(transformers.LlamaForCausalLM(config)).to(device).eval()
    idx, _ = batch(device, T=9)
    kept = torch.ones_like(idx)
    kept[1, :3] = 0
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            plain.set_submodule(name, PlainRMSNorm(module.weight, module.variance_epsilon))
    (change,) = fastgpt.patch(model)
    assert change.before == 'attn_implementation="sdpa"'
    assert_same_module(model, plain, idx, attention_mask=kept, pick=lambda output: output.logits[kept.bool()])


# ---- what it refuses -----------------------------------------------------------------------------------------------


class Holder:
    """As a pipeline or a Trainer of transformers holds its model."""

    model = nn.LayerNorm(4)


@pytest.mark.parametrize("function", [fastgpt.patch, fastgpt.implementations])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "got None; pass the model itself"),
        ("gpt2", "got 'gpt2'; load the model first, for example by transformers' from_pretrained"),
        (nn.LayerNorm, "got the class LayerNorm; make an instance of it first"),
        (nn.LayerNorm(4).state_dict(), "got a OrderedDict; load a state dict into its model first"),
        ({"weight": torch.ones(2)}, "got a dict; load a state dict into its model first"),
        (Holder(), "got a Holder; pass its .model"),
        ([nn.LayerNorm(4)], "got a list; pass the model itself"),
        (3, "got a int; pass the model itself"),
    ],
    ids=["none", "name", "class", "state dict", "dict", "holder", "list", "number"],
)
def test_what_is_no_model_is_refused(function, model, message):
    with pytest.raises(TypeError, match=f"^{function.__name__}: model must be a torch.nn.Module, {message}$"):
        function(model)


@pytest.mark.parametrize("part", ["attention", "layer_norm", "ffn", "loss"])
@pytest.mark.parametrize("value", ["no", ["attention"], None, 1])
def test_a_part_is_patched_or_not(part, value):
    with pytest.raises(TypeError, match=rf"^patch: {part}=.* must be True or False"):
        fastgpt.patch(nn.TransformerEncoderLayer(8, 2, 16), **{part: value})
