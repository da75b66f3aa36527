"""Fused Triton kernels for GPT training: attention, LayerNorm, GELU-FFN, linear + cross-entropy.

Every function works on CUDA tensors (and on CPU tensors inside `interpret()`), forward and backward, and has a twin of
the same name and signature in `fastgpt.kernels.reference`.
"""

import os as _os

from . import reference
from .attention import flash_attention
from .interpreter import interpret

__all__ = ["flash_attention", "interpret", "reference"]

if _os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"):
    from .interpreter.context import prepare_process as _prepare_process

    _prepare_process()
