"""Tiny transformers models of the kinds whose attention differs, with weights away from their initial values."""

from __future__ import annotations

import torch
from torch import nn

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE = _TOKENS | {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_GROUPED = _BASE | {"num_key_value_heads": 2}
_SEQ2SEQ = _TOKENS | {"vocab_size": 64, "d_model": 16, "decoder_start_token_id": 0}

MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _TOKENS | {"vocab_size": 64, "n_positions": 64, "n_embd": 16,
             "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 4}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config",
               _GROUPED | {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 0.5}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig",
                _GROUPED | {"head_dim": 8, "sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "bert": ("BertModel", "BertConfig", _BASE),
    "bert_classifier": ("BertForSequenceClassification", "BertConfig", _BASE | {"num_labels": 3}),
    "modernbert": ("ModernBertModel", "ModernBertConfig",
                   _BASE | {"local_attention": 4, "global_attn_every_n_layers": 2}),
    "t5": ("T5ForConditionalGeneration", "T5Config", _SEQ2SEQ | {"d_kv": 4, "d_ff": 24, "num_layers": 2,
           "num_heads": 4}),
    "bart": ("BartForConditionalGeneration", "BartConfig", _SEQ2SEQ | {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
             "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "max_position_embeddings": 64}),
}  # fmt: skip


def hf_model(kind: str, attn_implementation: str = "eager", **fields) -> nn.Module:
    """The model in evaluation; two calls give the same weights."""
    import transformers

    model, config, settings = MODELS[kind]
    settings = settings | fields | {"attn_implementation": attn_implementation}
    model = getattr(transformers, model)(getattr(transformers, config)(**settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + (p.dim() == 1))
    return model.eval()


def hf_pair(kind: str, **fields) -> tuple[nn.Module, nn.Module]:
    """(with transformers' eager attention, with ours): the same weights."""
    from fastgpt.interop.attention_registry import register

    eager, ours = hf_model(kind, **fields), hf_model(kind, **fields)
    ours.set_attn_implementation(register())
    assert ours.config._attn_implementation == "fastgpt"
    return eager, ours
