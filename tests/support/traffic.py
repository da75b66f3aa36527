"""How often kernels read and write each element of a tensor; `fastgpt show ladder` counts by the same class."""

from fastgpt.kernels.interpreter.traffic import Traffic

__all__ = ["Traffic"]
