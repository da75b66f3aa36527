"""The faults: mistakes that are easy to make in such kernels and hard to see in a loss curve."""

from __future__ import annotations

from . import attention, ffn, layer_norm, linear_cross_entropy, shared

MUTANTS = (
    *attention.MUTANTS,
    *layer_norm.MUTANTS,
    *ffn.MUTANTS,
    *linear_cross_entropy.MUTANTS,
    *shared.MUTANTS,
)
