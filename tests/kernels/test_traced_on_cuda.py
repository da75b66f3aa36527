"""Every kernel traced as on a GPU, where there is none: Python that only runs for CUDA tensors must be traceable.

The tensors are fake: no kernel is launched, and which graph came out is not looked at, only that one did, whole.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastgpt import kernels
from tests.kernels.calls import CALLS, DROPOUT
from tests.support.traced import CUDA, TRACERS, fake_cuda, skip_where_torch_cannot

ALL = CALLS | DROPOUT


@pytest.mark.parametrize("name", ALL)
def test_traces_whole(name):
    """No graph break, no warning, and results on the GPU."""
    mode = FakeTensorMode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        fakes = {n: fake_cuda(mode, x) for n, x in ALL[name].inputs(torch.device("cpu")).items()}
    call = lambda *args: ALL[name].run(kernels, dict(zip(fakes, args)))  # noqa: E731
    for tracer in TRACERS.values():
        with mode, warnings.catch_warnings(), skip_where_torch_cannot():
            warnings.simplefilter("error")
            traced = tracer(call, *fakes.values())
        if isinstance(traced, tuple):
            assert all(t.device == CUDA for t in traced)
