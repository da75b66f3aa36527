"""Grids of calls that a GPU has the memory for and a test has not: shapes on paper, and what would be launched."""

import pytest
import torch

from fastgpt.kernels._runtime import KNOWN_TARGETS, pretend


@pytest.fixture
def grids(monkeypatch):
    """[(kernel, grid)] of what would have been launched."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    from triton.runtime.jit import JITFunction

    found = []
    for kind in (JITFunction, interpreter.InterpretedFunction):
        monkeypatch.setattr(kind, "run", lambda kernel, *a, grid, **k: found.append((kernel.fn.__name__, grid)))
    with pretend(KNOWN_TARGETS["sm_90"]):
        yield found


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("path", ["triton", "cublas"])
@pytest.mark.parametrize("wide", ["tokens", "hidden", "out"])
def test_within_what_cuda_launches(grids, wide, path):
    """x of 0.4 GB, results of 1 GB: 2^31 - 1 programs in the first dimension of a grid, 65535 in the others."""
    from fastgpt.kernels.ffn import launch

    tokens, hidden, out = (9_000_000 if wide == name else 64 for name in ("tokens", "hidden", "out"))
    x, w1, b1, w2, b2 = meta(tokens, 16), meta(hidden, 16), meta(hidden), meta(out, hidden), meta(out)
    residual, seed = meta(tokens, out), meta(2, dtype=torch.int64)
    _, pre = launch.linear_gelu_forward(x, w1, b1, "none", True, path)
    launch.linear_gelu_backward(pre, x, w1, b1, pre, "none", [True] * 3)
    _, pre = launch.gelu_ffn_forward(x, w1, b1, w2, b2, residual, seed, 0.1, "none", True, path)
    launch.gelu_ffn_backward(residual, x, w1, b1, w2, pre, seed, 0.1, "none", [True] * 5, path)
    passes = {"gelu_kernel", "finish_kernel", "dgelu_pass_kernel", "prepare_grad_kernel", "sum_partials_kernel"}
    expected = passes if path == "cublas" else passes - {"gelu_kernel"} | {"up_kernel", "dgelu_kernel"}
    assert {name for name, _ in grids} == expected
    for name, grid in grids:
        first, *others = grid
        assert 0 < first < 2**31, (name, grid)
        assert all(0 < n <= 65535 for n in others), (name, grid)
