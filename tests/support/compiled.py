"""Whether the tests' kernels are compiled, for a GPU that is there or simulated, or go through the interpreter."""

import os

import torch

COMPILED = torch.cuda.is_available() or bool(os.environ.get("FASTGPT_DEVICE"))
