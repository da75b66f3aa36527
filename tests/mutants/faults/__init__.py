"""The faults: mistakes that are easy to make and hard to see in a loss curve. A file for each part of the code."""

from __future__ import annotations

from . import attention, ffn, layer_norm, linear_cross_entropy, shared

KERNELS = (
    *attention.MUTANTS,
    *layer_norm.MUTANTS,
    *ffn.MUTANTS,
    *linear_cross_entropy.MUTANTS,
    *shared.MUTANTS,
)
FASTGPT = ()
MUTANTS = (*KERNELS, *FASTGPT)
