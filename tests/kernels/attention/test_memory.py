"""Attention's memory grows with T, not with T²: counted on fake tensors, on skipped launches, and on a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory import slope as growth
from fastgpt.kernels import attention_weights, flash_attention, reference
from fastgpt.tools.memory import PeakMemory
from tests.support.launches import launches_skipped

LENGTHS = [2**i for i in range(8, 18)]  # 256 ... 131072
LINEAR, QUADRATIC = 1.05, 1.9


def _forward_backward(attention, T, *, heads=2, kv_heads=2, head_dim=16, device=None, dtype=torch.float32, **options):
    """Runs both passes; every tensor, inputs included, is made here so that a counter around it sees all of them."""
    q = torch.empty(1, heads, T, head_dim, device=device, dtype=dtype, requires_grad=True)
    k, v = (torch.empty(1, kv_heads, T, head_dim, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    if options.pop("documents", False):
        options["document_ids"] = torch.zeros(1, T, dtype=torch.int32, device=device)
    attention(q, k, v, **options).sum().backward()


def _peaks(attention, mode, **options):
    peaks = []
    for T in LENGTHS:
        with mode(), PeakMemory(launch_code=mode is not FakeTensorMode) as memory:
            _forward_backward(attention, T, **options)
        peaks.append(memory.peak)
    return peaks


def test_peak_on_fake_tensors_is_linear_and_plain_attention_is_not():
    ours = _peaks(flash_attention, FakeTensorMode)
    plain = _peaks(reference.flash_attention, FakeTensorMode)
    assert growth(LENGTHS, ours) <= LINEAR
    assert growth(LENGTHS, plain) >= QUADRATIC
    assert plain[-1] > 1000 * ours[-1]


@pytest.mark.parametrize(
    "options",
    [{}, {"dropout_p": 0.1, "window": 100}, {"documents": True, "heads": 4}],
    ids=["causal", "dropout+window", "documents+gqa"],
)
def test_peak_with_the_launches_own_workspace_is_linear(options):
    peaks = _peaks(flash_attention, launches_skipped, **options)
    assert growth(LENGTHS, peaks) <= LINEAR


def test_forward_and_backward_take_what_they_return_and_little_more():
    """q, k, v, out and their gradients, lse, delta and the lse that the backward reads: no float32 copies."""
    T, H, D, size = 4096, 2, 64, 2
    with launches_skipped(), PeakMemory() as memory:
        _forward_backward(flash_attention, T, heads=H, kv_heads=H, head_dim=D, dtype=torch.bfloat16)
    tensor, row = H * T * D * size, H * T * 4
    assert memory.peak <= 7 * tensor + 3 * row + 4096


def test_weights_of_a_few_rows_cost_a_few_rows():
    T = LENGTHS[-1]
    with launches_skipped():
        q = torch.empty(1, 2, T, 16)
        lse = torch.empty(1, 2, T)
        with PeakMemory() as memory:
            attention_weights(q, q, lse, rows=slice(-3, None))
    assert memory.peak <= 2 * 3 * T * 4 + 4096


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_peak_on_cuda_is_linear(dtype):
    def peak(attention, T):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()  # cuBLAS keeps workspaces, tens of MB that do not grow
        _forward_backward(attention, T, heads=2, head_dim=64, device="cuda", dtype=dtype)
        return torch.cuda.max_memory_allocated() - before

    for attention in (flash_attention, reference.flash_attention):  # compiles, and makes those workspaces
        _forward_backward(attention, 256, head_dim=64, device="cuda", dtype=dtype)
    lengths = [T for T in LENGTHS if T >= 4096]  # below, the allocator's blocks and caches decide
    assert growth(lengths, [peak(flash_attention, T) for T in lengths]) <= LINEAR
    lengths = [4096, 8192]
    assert growth(lengths, [peak(reference.flash_attention, T) for T in lengths]) >= 1.7
