"""Faults that only a GPU would show, and that tests show without one."""

from __future__ import annotations

from ..places import condition
from ..plant import Mutant

_TRACED = "tests/kernels/test_traced_on_cuda.py::test_traces_whole"
_MODULES = "tests/fastgpt/nn/test_traced_on_cuda.py::test_"

MUTANTS = (
    # --- what torch's tracers see of a CUDA tensor --------------------------------------------------------------------
    Mutant(
        "gpu-dynamo-is-let-into-the-judge-of-a-launch",
        "support.check_launchable",
        condition("is_compiling").never(),
        _TRACED,
    ),
    Mutant(
        "gpu-dynamo-is-let-into-the-judge-of-torchs-attention",
        "support.why_not",
        condition("is_compiling").always(),
        _TRACED,
    ),
    Mutant(
        "gpu-weights-have-another-dtype-than-torchs-under-autocast",
        "nn.attention._weights",
        condition("is_cuda").always(),
        _MODULES + "weights_are_float32_under_autocast",
    ),
)
