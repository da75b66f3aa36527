"""Linear + cross-entropy in chunks of rows, and cross-entropy of given logits."""

from .logits_op import cross_entropy
from .op import linear_cross_entropy

__all__ = ["cross_entropy", "linear_cross_entropy"]
