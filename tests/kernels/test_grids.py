"""CUDA's limits on grids: 2^31 - 1 programs in x, 65535 in y and in z. Launches on meta tensors, recorded, not run."""

import pytest
import torch

from fastgpt.kernels import _runtime

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from fastgpt.kernels.layer_norm import launch, tiles

LIMITS = (2**31 - 1, 65535, 65535)
LARGEST_GPU = 288 * 10**9  # bytes: B300
bf16 = torch.bfloat16


@pytest.fixture
def grids(monkeypatch):
    """[(kernel, grid)] of every launch in the test, all on a GPU that is not there."""
    seen = []
    for kind in (JITFunction, InterpretedFunction):
        monkeypatch.setattr(
            kind, "run", lambda kernel, *args, grid, **kwargs: seen.append((kernel.fn.__name__, tuple(grid)))
        )
    with _runtime.pretend(_runtime.KNOWN_TARGETS["sm_90"]):
        yield seen


def most_rows(N):
    """As many bfloat16 rows of N elements as a GPU holds twice, with their statistics."""
    return max(1, LARGEST_GPU // (2 * 2 * N + 2 * 4))


EDGES = (1, 2, 16, 17, 1024, 1025, tiles.LONGEST_SUMMED, tiles.LONGEST_BACKWARD, tiles.LONGEST_FORWARD)
LONG = (tiles.LONGEST_FORWARD + 1, tiles.LONGEST_HELD, tiles.LONGEST_HELD + 1, tiles.LONGEST)


@pytest.mark.parametrize("N", EDGES + LONG)
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(grids, N, residual):
    for M in (1, most_rows(N)):
        x, affine = torch.empty(M, N, dtype=bf16, device="meta"), torch.empty(N, dtype=bf16, device="meta")
        seed = torch.empty(2, dtype=torch.int64, device="meta") if residual else None
        p, stream, dx = (0.1, x, bf16) if residual else (0.0, None, None)
        y, _, stats = launch.forward(x, stream, affine, affine, seed, 1, 1e-5, p, bf16)
        launch.backward(y, stream, x, affine, stats, seed, 1, p, bf16, dx, bf16, bf16)
        launch.backward(y, stream, x, affine, stats, seed, 1, p, None, None, bf16, None)
    assert len(grids) >= 8
    for kernel, grid in grids:
        for size, limit in zip(grid, LIMITS):
            assert 0 < size <= limit, (kernel, grid)
