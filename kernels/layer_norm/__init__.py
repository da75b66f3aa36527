"""LayerNorm, alone and fused with the residual addition and dropout that precede it."""

from .op import add_layer_norm, layer_norm

__all__ = ["add_layer_norm", "layer_norm"]
