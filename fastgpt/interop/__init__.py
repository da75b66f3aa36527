"""Models from elsewhere: `open_model` whatever a path holds, `patch` a model where it stands.

fastgpt            config.json with "model_type": "fastgpt", model.safetensors
fastgpt-one-head   the same of a OneHeadLM
hf                 what transformers' GPT2LMHeadModel.save_pretrained writes
nanogpt            ckpt.pt: a dict with "model" and "model_args"
"""

import warnings
from importlib import import_module
from typing import Any

from .any_model import open_config, open_model

__all__ = ["open_config", "open_model"]

_MOVED = dict.fromkeys(("filled", "load", "model_type", "read_config", "save", "skeleton"), "folder")
_MOVED |= dict.fromkeys(("load_one_head", "save_one_head"), "one_head")


def __getattr__(name: str) -> Any:
    """The functions that version 0.1 had here."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"fastgpt.model.formats.{_MOVED[name]}"
    warnings.warn(f"{__name__}.{name} is now {home}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(import_module(home), name)
