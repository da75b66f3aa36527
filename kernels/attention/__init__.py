"""Fused attention: flash_attention and what is built on it."""

from .op import flash_attention

__all__ = ["flash_attention"]
