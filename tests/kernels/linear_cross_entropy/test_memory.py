"""Peak memory beyond the inputs, counted on meta tensors at full size: nothing is allocated, and no GPU is needed."""

import pytest
import torch
import torch.nn.functional as F

from fastgpt.kernels import _runtime
from fastgpt.tools.memory import PeakMemory
from tests.support.launches import launches_skipped

pytest.importorskip("triton")
from fastgpt.kernels.linear_cross_entropy import launch, tiles
from fastgpt.kernels.linear_cross_entropy.arguments import Formula, Work

N, D, V = 16384, 768, 50257  # rows, width and vocabulary of GPT-2 at batch 16
MiB = 1 << 20
FORMULA = Formula(-100, 0.0, 0.0, None)


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def eager_peak(dtype=torch.bfloat16) -> int:
    """Bytes that F.cross_entropy(F.linear(x, weight).float(), target) and its backward take, gradients included."""
    x, weight = meta(N, D, dtype=dtype).requires_grad_(), meta(V, D, dtype=dtype).requires_grad_()
    target = meta(N, dtype=torch.int64)
    with PeakMemory() as memory:
        F.cross_entropy(F.linear(x, weight).float(), target).backward()
    return memory.peak


def fused_peak(num_chunks: int, *, rows: int = N, weight_dtype=torch.bfloat16, reduction: str = "mean") -> int:
    """The same for the launches and allocations of linear_cross_entropy's forward and backward, on an H100."""
    x, weight, target = meta(rows, D), meta(V, D, dtype=weight_dtype), meta(rows, dtype=torch.int64)
    upstream = meta(rows, dtype=torch.float32)
    with _runtime.pretend(_runtime.KNOWN_TARGETS["sm_90"]), launches_skipped() as names, PeakMemory() as memory:
        in_forward = reduction != "none"
        made = launch.linear_forward(x, weight, target, None, FORMULA, Work(num_chunks, in_forward, in_forward, False))
        if in_forward:
            dweight = launch.scale(upstream[0], made.counts, made.dweight, weight.dtype)
            dx = launch.scale(upstream[0], made.counts, made.dx, x.dtype)
        else:
            dx, dweight, _ = launch.linear_backward(
                upstream, None, x, weight, target, None, made.stats, FORMULA, Work(num_chunks, True, True, False)
            )
    assert "loss_and_gradient_kernel" in names or "gradient_kernel" in names
    assert (dx.shape, dweight.shape) == (x.shape, weight.shape)
    return memory.peak


def test_at_most_a_sixth_of_eager(seed):
    assert fused_peak(num_chunks=0) <= eager_peak() / 6


def test_falls_as_chunks_rise(seed):
    peaks = [fused_peak(num_chunks=k) for k in (1, 2, 4, 8, 16)]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_chunks", [0, 4, 8])
def test_stays_within_the_documented_bound(num_chunks, weight_dtype, reduction):
    """One chunk's logits, dx and dweight (twice while they are scaled, dweight in float32), the weight padded."""
    rows = tiles.rows_per_chunk(N, V, 2, num_chunks)
    logits = rows * tiles.padded_columns(V, 2) * 2
    dx, dweight, cast = N * D * 2, V * D * (4 + weight_dtype.itemsize), V * D * 2
    assert fused_peak(num_chunks, weight_dtype=weight_dtype, reduction=reduction) <= (
        logits + 2 * dx + dweight + cast + 1 * MiB  # losses, statistics, counts
    )


def test_the_default_grows_in_proportion_to_the_rows_only_up_to_the_largest_chunk():
    assert fused_peak(num_chunks=0, rows=1 << 20) < 2 * (1 << 20) * D * 2 + V * D * 6 + tiles.LARGEST + 64 * MiB


@pytest.mark.parametrize("N", [1, 100, 128, 1000, 4096, 16384, 32768, 131072, 1 << 20])
@pytest.mark.parametrize("V", [99, 8192, 50257, 262144])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_rule_for_chunks(N, V, itemsize):
    rows = tiles.rows_per_chunk(N, V, itemsize, 0)
    row_bytes = tiles.padded_columns(V, itemsize) * itemsize
    chunks, total = -(-N // rows), N * row_bytes
    slack = tiles.ROW_MULTIPLE * row_bytes
    if total <= tiles.SMALL:
        assert chunks == 1
    elif total <= tiles.MOST * tiles.LARGEST:
        assert chunks <= tiles.MOST
        assert rows * row_bytes <= max(tiles.WANTED, total / tiles.FEWEST if total <= 4 * tiles.WANTED else 0,
                                       total / tiles.MOST) + slack  # fmt: skip
    assert rows * row_bytes <= max(tiles.SMALL, tiles.LARGEST + slack)
    assert rows <= N


@pytest.mark.parametrize("num_chunks", [1, 3, 8, 50, 1000])
def test_number_of_chunks_is_kept(num_chunks):
    rows = tiles.rows_per_chunk(100, V, 2, num_chunks)
    assert -(-100 // rows) <= num_chunks
    assert rows == -(-100 // num_chunks)


@pytest.mark.gpu
def test_measured_peak_on_cuda():
    """What torch's allocator saw: at most 1/5 of eager."""
    from fastgpt.kernels import linear_cross_entropy

    x = torch.randn(N, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(V, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(0, V, (N,), device="cuda")

    def eager():
        return F.cross_entropy(F.linear(x, weight).float(), target)

    def peak(loss_of) -> int:
        for _ in range(2):
            x.grad = weight.grad = None
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            loss_of().backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak(lambda: linear_cross_entropy(x, weight, target)) <= peak(eager) / 5


def test_counts_where_torch_has_no_addmm_with_out_dtype_on_meta_tensors(monkeypatch):
    """torch 2.11's decomposition takes the dtype for beta; the count is the same."""
    expected = fused_peak(num_chunks=4)

    def addmm(*args, out_dtype=None, out):
        if out_dtype is not None and out.is_meta:
            raise TypeError("unsupported operand type(s) for *: 'torch.dtype' and 'Tensor'")
        return original(*args, out=out)

    original = torch.addmm
    monkeypatch.setattr(torch, "addmm", addmm)
    assert fused_peak(num_chunks=4) == expected
