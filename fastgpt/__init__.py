"""fastgpt: fused Triton kernels for GPT training, and the GPT that they serve."""

__version__ = "0.1.0"
