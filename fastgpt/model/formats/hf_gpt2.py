"""transformers' GPT-2 (`GPT2LMHeadModel`) <-> our state dict and config.

HF keeps projections as Conv1D, weight (in, out): the transpose of nn.Linear's. The head has no key where it is tied.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from torch import Tensor

from ..config import GPTConfig

log = logging.getLogger("fastgpt")

# ours, HF's, whether transposed
_BLOCK = (
    ("ln1.{}", "ln_1.{}", False),
    ("attn.in_proj_{}", "attn.c_attn.{}", True),
    ("attn.out_proj.{}", "attn.c_proj.{}", True),
    ("ln2.{}", "ln_2.{}", False),
    ("ffn.0.{}", "mlp.c_fc.{}", True),
    ("ffn.2.{}", "mlp.c_proj.{}", True),
)
_OUTER = (
    ("token_emb.weight", "wte.weight"),
    ("pos_emb.weight", "wpe.weight"),
    ("ln_f.weight", "ln_f.weight"),
    ("ln_f.bias", "ln_f.bias"),
)
_GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")  # causal masks that older versions saved as weights


def names(n_layers: int) -> list[tuple[str, str, bool]]:
    """(our name, HF's name without `transformer.`, transposed) of every tensor but the head."""
    pairs = [(ours, theirs, False) for ours, theirs in _OUTER]
    for i in range(n_layers):
        for ours, theirs, transposed in _BLOCK:
            for kind in ("weight", "bias"):
                pairs.append(
                    (f"blocks.{i}.{ours.format(kind)}", f"h.{i}.{theirs.format(kind)}", transposed and kind == "weight")
                )
    return pairs


def state_from_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """HF's names, with or without `transformer.`, to ours. What has no counterpart keeps its name, to be reported."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not _BUFFER.search(name)}
    ours = {}
    for name, theirs, transposed in names(config.n_layers):
        if theirs in state:
            tensor = state.pop(theirs)
            ours[name] = tensor.t().contiguous() if transposed else tensor
    head = state.pop("lm_head.weight", None)
    if head is not None:
        ours["head.weight"] = head
    return {**ours, **state}


def state_to_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our names to HF's, with `transformer.`; a tied head may be left out."""
    theirs = {
        f"transformer.{name}": state[ours].t().contiguous() if transposed else state[ours]
        for ours, name, transposed in names(config.n_layers)
    }
    if not config.tie_weights:
        theirs["lm_head.weight"] = state["head.weight"]
    return theirs


def config_from_hf(fields: dict[str, Any]) -> GPTConfig:
    """A `GPT2Config` as a dict (its config.json) to ours.

    Raises:
        ValueError: an activation or a variant of attention that this model does not have.
    """
    activation = fields.get("activation_function", "gelu_new")
    if activation not in _GELU:
        raise ValueError(f"GPT-2 config: activation_function={activation!r}; this model has {sorted(_GELU)}")
    for name, wanted in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if fields.get(name, wanted) != wanted:
            raise ValueError(f"GPT-2 config: {name}={fields[name]} is not supported, only {wanted}")
    dropouts = {name: fields.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(set(dropouts.values())) > 1:
        log.warning("GPT-2 config: one dropout for all places, resid_pdrop, replaces %s", dropouts)
    return GPTConfig(
        vocab_size=fields.get("vocab_size", 50257),
        max_len=fields.get("n_positions", 1024),
        n_layers=fields.get("n_layer", 12),
        n_heads=fields.get("n_head", 12),
        d_model=fields.get("n_embd", 768),
        d_ff=fields.get("n_inner"),
        dropout=dropouts["resid_pdrop"],
        tie_weights=fields.get("tie_word_embeddings", True),
        gelu=_GELU[activation],
        layer_norm_eps=fields.get("layer_norm_epsilon", 1e-5),
    )


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Our config to the fields of a `GPT2Config`.

    Raises:
        ValueError: grouped-query attention or a model without biases, which GPT-2 does not have.
    """
    if config.n_kv_heads != config.n_heads:
        raise ValueError(
            f"Hugging Face's GPT-2 has no grouped-query attention (n_kv_heads={config.n_kv_heads}, "
            f'n_heads={config.n_heads}); save with format="fastgpt"'
        )
    if not config.bias:
        raise ValueError('Hugging Face\'s GPT-2 has biases, and this model does not; save with format="fastgpt"')
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_len,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "activation_function": "gelu_new" if config.gelu == "tanh" else "gelu",
        "layer_norm_epsilon": config.layer_norm_eps,
        "tie_word_embeddings": config.tie_weights,
    }
