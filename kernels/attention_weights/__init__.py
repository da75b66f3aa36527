"""Attention's weights, of chosen heads and rows, rebuilt from the log-sum-exp."""

from .op import attention_weights

__all__ = ["attention_weights"]
