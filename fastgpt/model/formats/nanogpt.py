"""nanoGPT checkpoints (the dict that its train.py saves as ckpt.pt) <-> our state dict and config.

Its names are HF's GPT-2's with nn.Linear layouts, its GELU is exact (erf), and a compiled model's names start with
`_orig_mod.`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..config import GPTConfig
from ..size import check_enough_weights
from .hf_gpt2 import _BUFFER, names

_ARGUMENTS = {
    "vocab_size": "vocab_size",
    "max_len": "block_size",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "dropout": "dropout",
    "bias": "bias",
}  # ours: nanoGPT's


def from_checkpoint(checkpoint: dict[str, Any], *, source: str = "checkpoint") -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and state dict (our names) of a checkpoint as `torch.load(..., weights_only=True)` returns it.

    Raises:
        ValueError: not a nanoGPT checkpoint; the message says what is missing.
    """
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= set(checkpoint):
        found = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"{source}: a nanoGPT checkpoint is a dict with 'model' and 'model_args', this has {found}")
    arguments = checkpoint["model_args"]
    for name in ("model", "model_args"):
        if not isinstance(checkpoint[name], dict):
            raise ValueError(f"{source}: {name!r} is a {type(checkpoint[name]).__name__}, in nanoGPT's a dict")
    missing = [
        theirs for theirs in _ARGUMENTS.values() if theirs not in arguments and theirs not in ("dropout", "bias")
    ]
    if missing:
        raise ValueError(f"{source}: model_args lacks {missing}")
    theirs = {
        name.removeprefix("_orig_mod.").removeprefix("transformer."): tensor
        for name, tensor in checkpoint["model"].items()
    }
    theirs = {name: tensor for name, tensor in theirs.items() if not _BUFFER.search(name)}
    fields = {ours: arguments[name] for ours, name in _ARGUMENTS.items() if name in arguments}
    fields.setdefault("bias", "ln_f.bias" in theirs)
    try:
        config = GPTConfig(**fields, gelu="none", tie_weights=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: model_args: {error}") from error
    check_enough_weights(config, theirs, source)
    state = {ours: theirs.pop(name) for ours, name, _ in names(config.n_layers) if name in theirs}
    head = theirs.pop("lm_head.weight", None)
    if head is not None:
        state["head.weight"] = head
    return config, {**state, **theirs}


def to_checkpoint(config: GPTConfig, state: dict[str, Tensor]) -> dict[str, Any]:
    """The dict that nanoGPT's train.py and sample.py resume from.

    Raises:
        ValueError: a model that nanoGPT cannot express; the message names the field.
    """
    for field, wanted in (
        ("gelu", "none"),
        ("tie_weights", True),
        ("n_kv_heads", config.n_heads),
        ("d_ff", 4 * config.d_model),
    ):
        if getattr(config, field) != wanted:
            raise ValueError(
                f"nanoGPT has {field}={wanted!r} only, and this model has {getattr(config, field)!r}; "
                'save with format="fastgpt"'
            )
    model = {f"transformer.{theirs}": state[ours] for ours, theirs, _ in names(config.n_layers) if ours in state}
    model["lm_head.weight"] = state["head.weight"]
    return {"model": model, "model_args": {theirs: getattr(config, ours) for ours, theirs in _ARGUMENTS.items()}}
