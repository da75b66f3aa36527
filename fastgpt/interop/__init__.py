"""Reading and writing checkpoints, ours and others', and the one-call patch of foreign models.

fastgpt   config.json with "model_type": "fastgpt", model.safetensors
hf        what transformers' GPT2LMHeadModel.save_pretrained writes
nanogpt   ckpt.pt: a dict with "model" and "model_args"
"""

from .folder import load, model_type, read_config, save, skeleton

__all__ = ["load", "model_type", "read_config", "save", "skeleton"]
