"""Run the Triton kernels on CPU tensors, in Triton's own interpreter, with its known faults mended.

    with fastgpt.kernels.interpret():
        y = fastgpt.kernels.layer_norm(x, (768,), weight, bias)

It is slow (milliseconds per program) and meant for tests, for debugging with print and pdb, and for teaching.
"""

from .context import OutOfBounds, interpret

__all__ = ["OutOfBounds", "interpret"]
