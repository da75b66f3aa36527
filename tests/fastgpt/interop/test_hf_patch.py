"""fastgpt.patch on transformers' models as other people have them: wrapped, saved, sent, patched twice."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastgpt
from tests.fastgpt.hf_models import hf_model

pytestmark = pytest.mark.needs("transformers")


def tokens():
    return torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(3))


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def test_a_second_patch_says_that_all_is_converted():
    model = hf_model("gpt2")
    first = fastgpt.patch(model, ffn=False)
    assert len(first) == 7  # the attention, five norms, the loss
    assert not first.already
    second = fastgpt.patch(model)
    assert [change.before for change in second] == ["GPT2MLP"] * 2
    assert len(second.already) == 7
    third = fastgpt.patch(model)
    assert not third
    assert len(third.already) == 9
    assert str(third) == "9 converted already: (the model), (the model), transformer.h.0.ln_1, ..."
    assert fastgpt.patch(model, attention=False, ffn=False, loss=False).already == tuple(
        name for name, module in model.named_modules() if type(module) is fastgpt.nn.LayerNorm
    )
    again = pickle.loads(pickle.dumps(second))
    assert (again, again.already, str(again)) == (second, second.already, str(second))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gemma2", r"its attention caps its scores \(attn_logit_softcapping=0.5\)"),
        ("gpt_oss", "its attention has sinks"),
    ],
)
def test_attention_that_has_more_than_the_kernels_is_left(kind, reason):
    model = hf_model(kind, attn_implementation="eager")
    with pytest.raises(ValueError, match=f"nothing in {type(model).__name__} matched.*The model: {reason}"):
        fastgpt.patch(model)
    assert model.config._attn_implementation == "eager"
    report = fastgpt.patch(nn.Sequential(model, nn.LayerNorm(4)))
    assert list(report.left) == ["0"]
    assert "left as it was: 0: its attention" in str(report)
    assert model.config._attn_implementation == "eager"


def test_with_a_transformers_that_is_too_old_the_attention_is_left(monkeypatch):
    """Its masks are described in other terms, and the first forward would fail."""
    from transformers import masking_utils

    from fastgpt.interop.attention_registry import register

    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda batch_size, cache_position, kv_length: None)
    with pytest.raises(ImportError, match=r"transformers >= 5\.4"):
        register()
    model = hf_model("gpt2")
    assert "transformers >= 5.4" in fastgpt.patch(model).left[""]
    assert model.config._attn_implementation == "eager"


def test_a_model_without_the_interface_is_left():
    import transformers

    model = transformers.BloomModel(transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2))
    report = fastgpt.patch(model)
    assert report
    assert "AttentionInterface" in report.left[""]
    assert model.config._attn_implementation != "fastgpt"


def test_a_part_that_is_left_inside_of_a_model_that_is_not():
    """LLaVA's text model may be any: here one with soft-capping, beside a vision tower without."""
    import transformers

    text = transformers.Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=63)
    model = transformers.LlavaForConditionalGeneration(config)
    model.set_attn_implementation({"text_config": "eager"})
    report = fastgpt.patch(model)
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "fastgpt"
    assert any("language_model" in path for path in report.left)


def test_a_forward_that_somebody_has_set_is_left():
    """It would go on running, whatever the class: accelerate's offloading sets one on every module."""
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    model[1].forward = lambda x: 2 * x
    report = fastgpt.patch(model)
    assert [change.path for change in report] == ["0"]
    assert type(model[1]) is nn.LayerNorm
    assert str(report).splitlines()[1].startswith("left as it was: 1: somebody has replaced its forward")


@pytest.mark.needs("accelerate")
@pytest.mark.parametrize("first", ["patch", "offload"])
def test_weights_that_accelerate_keeps_elsewhere(first):
    from accelerate import cpu_offload

    model = hf_model("gpt2")
    right = logits(model)
    steps = [fastgpt.patch, lambda model: cpu_offload(model, execution_device="cpu")]
    for step in steps if first == "patch" else steps[::-1]:
        step(model)
    assert model.lm_head.weight.is_meta
    with fastgpt.kernels.interpret():
        torch.testing.assert_close(logits(model), right, rtol=1e-4, atol=1e-4)


def test_attentions_asked_for_in_the_config_keep_it_savable(tmp_path):
    """transformers refuses to save a config that asks for them with another attention than its eager one."""
    model = hf_model("gpt2", output_attentions=True)
    report = fastgpt.patch(model)
    assert "config.output_attentions is set" in report.left[""]
    model.save_pretrained(tmp_path)
    assert len(model(tokens()).attentions) == 2


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_table_of_implementations_names_the_attention(kind):
    model = hf_model(kind)
    with pytest.raises(ValueError, match=r"call fastgpt\.patch"):
        fastgpt.implementations(model)
    fastgpt.patch(model)
    rows = [row for row in fastgpt.implementations(model) if row.part == "attn"]
    assert [(row.layers, row.requested, row.used) for row in rows] == [("model", "auto", "sdpa")]


# ---- copies, files, processes --------------------------------------------------------------------------------------


def in_a_new_process(code, *arguments):
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.mark.parametrize("kind", ["llama"])
def test_a_pickle_registers_the_attention_where_it_is_read(tmp_path, kind):
    """Nothing but the attention is ours in this model, so nothing else could import fastgpt there."""
    model = hf_model(kind)
    right = logits(model)
    fastgpt.patch(model)
    torch.save(model, tmp_path / "model.pt")
    (tmp_path / "config.pkl").write_bytes(pickle.dumps(model.config))
    torch.save(tokens(), tmp_path / "idx.pt")
    code = """
import pickle, sys, torch
folder = sys.argv[1]
idx = torch.load(folder + "/idx.pt")
config = pickle.load(open(folder + "/config.pkl", "rb"))
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_config(config)(idx)
with torch.no_grad():
    model = torch.load(folder + "/model.pt", weights_only=False)
    torch.save((model(idx).logits, model.config._attn_implementation), folder + "/found.pt")
"""
    in_a_new_process(code, tmp_path)
    found, name = torch.load(tmp_path / "found.pt", weights_only=False)
    torch.testing.assert_close(found, right)
    assert name == "fastgpt"


def test_copies_of_a_patched_model():
    import transformers

    model = hf_model("gpt2")
    right = logits(model)
    fastgpt.patch(model)
    again = type(model)(model.config).eval()
    again.load_state_dict(model.state_dict())
    auto = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    auto.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again, auto):
        assert other.config._attn_implementation == "fastgpt"
        torch.testing.assert_close(logits(other), right)


def test_files_name_nothing_of_ours(tmp_path):
    model = hf_model("gpt2")
    right = logits(model)
    model.save_pretrained(tmp_path / "before")
    fastgpt.patch(model)
    model.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "after").iterdir():
        assert b"fastgpt" not in path.read_bytes(), path.name
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after"))
    assert before == after
    assert "fastgpt" not in str(model.config.to_dict())
    assert "fastgpt" not in model.config.to_json_string(use_diff=False)
    loaded = type(hf_model("gpt2")).from_pretrained(tmp_path / "after")
    assert loaded.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits(loaded.eval()), right)


# ---- what people do to a model before and after --------------------------------------------------------------------


def test_the_attention_can_be_set_back():
    model = hf_model("gpt2")
    right = logits(model)
    fastgpt.patch(model)
    for name in ("sdpa", "eager", "fastgpt"):
        model.set_attn_implementation(name)
        torch.testing.assert_close(logits(model), right)
    model.set_attn_implementation("sdpa")
    assert [change.path for change in fastgpt.patch(model)] == [""]


@pytest.mark.needs("peft")
def test_peft_before_and_after():
    """Adapters are heard, whichever came first."""
    import peft

    def with_adapter(model):
        config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
        model = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        return model.eval()

    right = logits(with_adapter(hf_model("gpt2")))
    assert not torch.allclose(right, logits(hf_model("gpt2")), atol=1e-2)
    first = hf_model("gpt2")
    fastgpt.patch(first)
    second = with_adapter(hf_model("gpt2"))
    report = fastgpt.patch(second)
    assert {change.path for change in report if "attn_implementation" in change.before} == {"base_model.model"}
    with fastgpt.kernels.interpret():
        for model in (with_adapter(first), second):
            torch.testing.assert_close(logits(model), right, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_after_patch(seed):
    plain, model = hf_model("gpt2"), hf_model("gpt2")
    fastgpt.patch(model)
    for reentrant in (False, True):
        for one in (plain, model):
            one.zero_grad()
            one.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
            one.enable_input_require_grads()
            kept = torch.ones(2, 6, dtype=torch.long)
            kept[0, :2] = 0
            labels = tokens()
            labels[0, :3] = -100  # what padding predicts is nobody's concern
            one(tokens(), attention_mask=kept, labels=labels).loss.backward()
        for (name, p), q in zip(model.named_parameters(), plain.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_after_patch(dtype):
    model = hf_model("llama")
    fastgpt.patch(model)
    right = logits(model)
    found = logits(model.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), right, rtol=0.1, atol=0.1)


def test_labels_in_evaluation_give_logits_too():
    model = hf_model("gpt2")
    plain = model(tokens(), labels=tokens())
    fastgpt.patch(model)
    output = model(tokens(), labels=tokens())
    torch.testing.assert_close(output.loss, plain.loss)
    torch.testing.assert_close(output.logits, plain.logits)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}, {"use_cache": False},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["greedy", "beams", "static", "no cache", "assisted"],
)  # fmt: skip
def test_generation(kind, settings):
    plain, model = hf_model(kind), hf_model(kind)
    fastgpt.patch(model)
    idx = tokens()
    kept = torch.ones_like(idx)
    kept[0, :2] = 0
    if "prompt_lookup_num_tokens" in settings:
        idx, kept = idx[:1, [0, 1, 2, 0, 1, 2]], kept[:1]
    settings = settings | {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = plain.generate(idx, attention_mask=kept, **settings)
    assert torch.equal(model.generate(idx, attention_mask=kept, **settings), expected)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_compiled_model(kind):
    """Patched before it is compiled, and compiled, called and patched then."""
    plain, model, late = hf_model(kind), hf_model(kind), hf_model(kind)
    kept = torch.ones(2, 6, dtype=torch.long)
    kept[0, :2] = 0
    fastgpt.patch(model)
    with torch.no_grad():
        right = plain(tokens(), attention_mask=kept).logits
        compiled = torch.compile(late, backend="eager")
        compiled(tokens(), attention_mask=kept)
        assert [change.path for change in fastgpt.patch(compiled)] == ["_orig_mod"]
        for one in (torch.compile(model, backend="eager", fullgraph=True), compiled):
            found = one(tokens(), attention_mask=kept).logits
            torch.testing.assert_close(found[kept.bool()], right[kept.bool()], rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


class WithMask(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, idx, kept):
        return self.model(idx, attention_mask=kept, use_cache=False).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_traced_model_reads_the_mask_it_is_given(kind):
    """Not the one that it was traced with, which hid nothing."""
    model = hf_model(kind)
    masks = torch.ones(2, 2, 6, dtype=torch.long)
    masks[1, 1, :3] = 0
    with torch.no_grad():
        right = WithMask(model)(tokens(), masks[1])
        fastgpt.patch(model)
        found = torch.jit.trace(WithMask(model), (tokens(), masks[0]), check_trace=False)(tokens(), masks[1])
    torch.testing.assert_close(found[masks[1].bool()], right[masks[1].bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.needs("peft")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_prefixes_learned_by_peft(kind):
    """Keys before the first token, which the padding mask counts and the queries do not."""
    import peft

    plain, model = hf_model(kind), hf_model(kind)
    fastgpt.patch(model)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    plain, model = (peft.get_peft_model(one, config).eval() for one in (plain, model))
    model.load_state_dict(plain.state_dict())
    kept = torch.ones(2, 6, dtype=torch.long)
    kept[0, :2] = 0
    for mask in (None, kept):
        seen = torch.ones(2, 6).bool() if mask is None else kept.bool()
        with torch.no_grad():
            found, right = (one(tokens(), attention_mask=mask).logits[seen] for one in (model, plain))
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["position ids", "ends"])
def test_packed_documents(how):
    """As transformers' DataCollatorWithFlattening packs them, with and without the arguments for flash attention."""
    plain, model = hf_model("llama"), hf_model("llama")
    fastgpt.patch(model)
    idx = tokens()[:1]
    settings = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}
    if how == "ends":
        ends = torch.tensor([0, 3, 6], dtype=torch.int32)
        settings |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 3, "max_length_k": 3}
    with torch.no_grad():
        right = torch.cat([plain(idx[:, :3]).logits, plain(idx[:, 3:]).logits], 1)
        found = model(idx, **settings, use_cache=how == "ends").logits
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_generation_goes_on_from_a_cache(kind):
    """A prefix that many prompts share, and the cache of an earlier call."""
    from transformers import DynamicCache

    def two_calls(model):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(tokens()[:1, :4], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        idx = torch.cat([tokens()[:1, :4].expand(2, 4), tokens()[:, 4:]], 1)
        settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        first = model.generate(idx, past_key_values=cache, return_dict_in_generate=True, **settings)
        longer = torch.cat([first.sequences, tokens()[:, :2]], 1)
        return model.generate(longer, past_key_values=first.past_key_values, **settings)

    plain, model = hf_model(kind), hf_model(kind)
    fastgpt.patch(model)
    assert torch.equal(two_calls(model), two_calls(plain))


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static", "disable_compile": True}])
def test_generation_with_an_encoder(kind, settings):
    plain, model = hf_model(kind), hf_model(kind)
    fastgpt.patch(model)
    kept = torch.ones(2, 6, dtype=torch.long)
    kept[0, 4:] = 0
    settings = settings | {"attention_mask": kept, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(tokens(), **settings), plain.generate(tokens(), **settings))


def test_another_name_for_the_attention():
    from fastgpt.interop.attention_registry import register

    model = hf_model("gpt2")
    right = logits(model)
    model.set_attn_implementation(register("fastgpt-too"))
    torch.testing.assert_close(logits(model), right)
    again = pickle.loads(pickle.dumps(model))
    assert again.config._attn_implementation == "fastgpt-too"
    torch.testing.assert_close(logits(again), right)


def test_a_patched_transformers_model_with_ours_in_torchs_place(monkeypatch, seed):
    import torch.nn.functional as F
    from transformers import GPT2Config, GPT2LMHeadModel

    monkeypatch.setattr(F, "scaled_dot_product_attention", fastgpt.kernels.scaled_dot_product_attention)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0)
    model, idx = GPT2LMHeadModel(config).eval(), torch.randint(32, (2, 8))
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        want = model(input_ids=idx, attention_mask=mask).logits
        fastgpt.patch(model)
        torch.testing.assert_close(model(input_ids=idx, attention_mask=mask).logits[:, 3:], want[:, 3:])
