"""LayerNorm, alone and fused with the residual addition and dropout that precede it."""

from .op import add_layer_norm, layer_norm
from .recompute import recompute_normed

__all__ = ["add_layer_norm", "layer_norm", "recompute_normed"]
