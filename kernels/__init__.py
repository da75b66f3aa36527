"""Fused Triton kernels for GPT training: attention, LayerNorm, GELU-FFN, linear + cross-entropy.

Every function works on CUDA tensors (and on CPU tensors inside `interpret()`), forward and backward, and has a twin of
the same name and signature in `fastgpt.kernels.reference`.
"""

__all__ = [
    "add_layer_norm",
    "attention_weights",
    "cross_entropy",
    "flash_attention",
    "gelu_ffn",
    "interpret",
    "layer_norm",
    "linear_cross_entropy",
    "linear_gelu",
    "reference",
    "scaled_dot_product_attention",
]

# With the root of the source tree on sys.path, this folder is also found as `kernels`, a package of Hugging Face's that
# transformers looks for. Under that name it is empty, and transformers goes on without.
if __name__ != "kernels":
    from . import _runtime, reference
    from .attention import flash_attention
    from .attention.sdpa import scaled_dot_product_attention
    from .attention_weights import attention_weights
    from .ffn.op import gelu_ffn, linear_gelu
    from .interpreter import interpret
    from .layer_norm import add_layer_norm, layer_norm
    from .linear_cross_entropy import cross_entropy, linear_cross_entropy

    if _runtime.INTERPRETED_PROCESS:
        from .interpreter.context import prepare_process as _prepare_process

        _prepare_process()
