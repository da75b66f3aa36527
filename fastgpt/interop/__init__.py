"""Models from elsewhere: `open_model` whatever a path holds, `patch` a model where it stands.

fastgpt            config.json with "model_type": "fastgpt", model.safetensors
fastgpt-one-head   the same of a OneHeadLM
hf                 what transformers' GPT2LMHeadModel.save_pretrained writes
nanogpt            ckpt.pt: a dict with "model" and "model_args"

A stack of `nn.TransformerEncoderLayer`s has no folder of its own: `fastgpt.model.formats.transformer_encoder` renames
its state dict to our blocks', and back.
"""

from typing import Any

from .. import _moved
from .any_model import open_config, open_model

__all__ = ["open_config", "open_model"]


def __getattr__(name: str) -> Any:
    return _moved.old_name(__name__, name)
