"""Reading and writing checkpoints, ours and others', and the one-call patch of foreign models.

fastgpt            config.json with "model_type": "fastgpt", model.safetensors
fastgpt-one-head   the same of a OneHeadLM
hf                 what transformers' GPT2LMHeadModel.save_pretrained writes
nanogpt            ckpt.pt: a dict with "model" and "model_args"
"""

from ..model.formats.folder import filled, load, model_type, read_config, save, skeleton
from ..model.formats.one_head import load_one_head, save_one_head
from .any_model import open_config, open_model

__all__ = [
    "filled",
    "load",
    "load_one_head",
    "model_type",
    "open_config",
    "open_model",
    "read_config",
    "save",
    "save_one_head",
    "skeleton",
]
