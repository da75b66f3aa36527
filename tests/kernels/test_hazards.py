"""No kernel that works in place, or reads what it has written, leaves the order of two threads to chance."""

import pytest
import torch

from fastgpt.kernels import (
    _runtime,
    add_layer_norm,
    cross_entropy,
    flash_attention,
    gelu_ffn,
    layer_norm,
    linear_cross_entropy,
    linear_gelu,
)
from tests.support.hazards import Hazards

triton = pytest.importorskip("triton")
tl = triton.language

bf16, fp32 = torch.bfloat16, torch.float32


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> None:
    torch.autograd.grad(loss, leaves, torch.randn_like(loss))


def leaf(*shape: int, dtype: torch.dtype = fp32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


@pytest.mark.parametrize("V", [7, 300, 9000])
@pytest.mark.parametrize("dtype", [fp32, bf16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_in_place(interpreter, seed, V, dtype, reduction):
    target = torch.tensor([0, V - 1, V // 2])
    settings = {"reduction": reduction, "label_smoothing": 0.1, "softcap": 20.0, "z_loss": 0.1}
    logits = leaf(3, V, dtype=dtype)
    x, weight, bias = leaf(3, 4, dtype=dtype), leaf(V, 4, dtype=dtype), leaf(V, dtype=dtype)
    with Hazards() as hazards:
        gradients(cross_entropy(logits * 1, target, inplace=True, **settings), logits)
        gradients(linear_cross_entropy(x, weight, target, bias, num_chunks=2, **settings), x, weight, bias)
    assert hazards.found == []


@pytest.mark.parametrize("itemsize", [2, 4])
def test_losses_of_rows_that_are_read_twice(interpreter, seed, itemsize):
    V, dtype = 70_000 // itemsize, fp32 if itemsize == 4 else bf16
    x, weight = leaf(2, 3, dtype=dtype), leaf(V, 3, dtype=dtype)
    with Hazards() as hazards:
        gradients(linear_cross_entropy(x, weight, torch.tensor([5, V - 1])), x, weight)
    assert hazards.found == []


@pytest.mark.parametrize("path", ["triton", "cublas"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_ffn_over_its_pre_activation(interpreter, seed, path, approximate):
    tensors = [leaf(*s, dtype=bf16) for s in ((70, 24), (72, 24), (72,), (24, 72), (24,), (70, 24))]
    with Hazards() as hazards:
        y = gelu_ffn(*tensors[:5], approximate, residual=tensors[5], dropout_p=0.2, path=path)
        gradients(y, *tensors)
        gradients(linear_gelu(*tensors[:3], approximate, path=path), *tensors[:3])
    assert hazards.found == []


def test_the_ffn_by_descriptors(interpreter, seed):
    """The path that the shapes above do not take: TMA on sm_90."""
    halves = [leaf(*s, dtype=bf16) for s in ((70, 24), (72, 24), (72,), (24, 72), (24,))]
    with Hazards() as hazards, _runtime.pretend(_runtime.KNOWN_TARGETS["sm_90"]):
        gradients(gelu_ffn(*halves, path="triton"), *halves)
    assert hazards.found == []


@pytest.mark.parametrize(
    ("N", "residual"), [(17, None), (17, fp32), (768, bf16), (33000, None), (66000, None), (66000, fp32)]
)
def test_layer_norm_and_the_residual_that_it_reads_again(interpreter, seed, N, residual):
    x, weight, bias = leaf(2, N, dtype=bf16), torch.randn(N), torch.randn(N)
    summed = [t.requires_grad_() for t in (weight, bias) if N < 20000]  # else a thousand programs, each on its own
    with Hazards() as hazards:
        if residual is None:
            gradients(layer_norm(x, N, weight, bias), x, *summed)
        else:
            stream = leaf(2, N, dtype=residual)
            y, new = add_layer_norm(x, stream, weight, bias, dropout_p=0.1)
            gradients(torch.cat([y.float(), new.float()]), x, stream, *summed)
    assert hazards.found == []


def test_attention(interpreter, seed):
    q, k, v = (leaf(1, 2, 70, 16, dtype=bf16) for _ in range(3))
    with Hazards() as hazards:
        gradients(flash_attention(q, k, v, dropout_p=0.1), q, k, v)
    assert hazards.found == []


# What it finds: each of these has cost somebody a wrong gradient.


@triton.jit
def subtract_first(X, barrier: tl.constexpr):
    """x -= x[0], in place: every thread reads x[0], and one of them writes it."""
    offs = tl.arange(0, 16)
    first, x = tl.load(X), tl.load(X + offs)
    if barrier:
        tl.debug_barrier()
    tl.store(X + offs, x - first)


@triton.jit
def shift(X, Out, n: tl.constexpr):
    """Out[i + n] = x[i]."""
    offs = tl.arange(0, 16)
    tl.store(Out + offs + n, tl.load(X + offs))


@triton.jit
def write_and_read(X, Out, barrier: tl.constexpr):
    offs = tl.arange(0, 16)
    tl.store(Out + offs, tl.load(X + offs))
    if barrier:
        tl.debug_barrier()
    tl.store(X + offs, tl.load(Out + 15 - offs))


@triton.jit
def read_the_next_program(X):
    """X[program] = X[program + 1], in place."""
    tl.store(X + tl.program_id(0), tl.load(X + tl.program_id(0) + 1))


@pytest.mark.parametrize("barrier", [False, True])
def test_a_scalar_that_a_tile_overwrites_is_found(interpreter, barrier):
    x = torch.arange(16.0)
    with Hazards() as hazards:
        subtract_first[(1,)](x, barrier)
    assert [f.split(": ")[1][:17] for f in hazards.found] == ([] if barrier else ["store after load "])


def test_a_tile_over_itself_is_none_and_shifted_it_is_one(interpreter):
    x = torch.zeros(32)
    with Hazards() as hazards:
        shift[(1,)](x, x, 0)
        shift[(1,)](x, x, 16)
        assert hazards.found == []
        shift[(1,)](x, x, 1)
    assert len(hazards.found) == 1


@pytest.mark.parametrize("barrier", [False, True])
def test_reading_what_was_written_needs_a_barrier(interpreter, barrier):
    with Hazards() as hazards:
        write_and_read[(1,)](torch.zeros(16), torch.zeros(16), barrier)
    assert [f.split(": ")[1][:17] for f in hazards.found] == ([] if barrier else ["load after store "])


def test_programs_do_not_wait_for_each_other_but_launches_do(interpreter):
    x = torch.zeros(4)
    with Hazards() as hazards:
        read_the_next_program[(3,)](x)
    assert len(hazards.found) == 2
    assert "another program's load" in hazards.found[0]
    with Hazards() as hazards:
        for _ in range(3):
            read_the_next_program[(1,)](x)
    assert hazards.found == []
