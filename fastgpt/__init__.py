"""fastgpt: fused Triton kernels for GPT training, and the GPT that they serve."""

from . import kernels
from .config import GPTConfig
from .impl import implementations
from .model import GPT
from .one_head import OneHeadLM

__version__ = "0.1.0"

__all__ = ["GPT", "GPTConfig", "OneHeadLM", "implementations", "kernels"]
