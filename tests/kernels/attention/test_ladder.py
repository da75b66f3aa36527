"""The kernel ladder: each rung against the one before, within the budget of float64; what it moves through memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from fastgpt.kernels import reference
from fastgpt.kernels.attention import ladder
from fastgpt.kernels.attention.ladder import RUNGS, attention_of
from fastgpt.tools.memory import peak_bytes
from fastgpt.tools.traffic import OperationTraffic
from tests.support.budget import assert_within_budget, exactly
from tests.support.traffic import Traffic

pytest.importorskip("triton")

PAIRS = [*itertools.pairwise(RUNGS), (RUNGS[-1], "flash_attention")]
KERNELS = RUNGS[-2:]


def of(rung):
    if rung != "flash_attention":
        return attention_of(rung)
    from fastgpt.kernels import flash_attention

    return lambda q, k, v: flash_attention(q, k, v, causal=True)


def truth(q, k, v):
    return reference.flash_attention(q, k, v, causal=True)


def qkv(device, T, D=16, *, B=1, H=1, dtype=torch.float32):
    return [torch.randn(B, H, T, D).to(device, dtype) for _ in "qkv"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("T", [1, 7, 33, 65])
@pytest.mark.parametrize(("before", "rung"), PAIRS)
def test_each_rung_is_the_one_before(device, seed, before, rung, T, dtype):
    inputs = qkv(device, T, dtype=dtype)
    out = of(rung)(*inputs)
    assert (out.shape, out.dtype, out.device.type) == (inputs[0].shape, dtype, inputs[0].device.type)
    exact = exactly(truth, *(x.cpu() for x in inputs))[0]
    assert_within_budget(rung, out.cpu(), of(before)(*inputs).cpu(), exact)


@pytest.mark.parametrize("rung", RUNGS)
def test_batches_heads_and_layouts(device, seed, rung):
    """Heads side by side in memory, as a model's are; three row blocks, the last one ragged."""
    q, k, v = (torch.randn(2, 130, 3, 32).to(device).transpose(1, 2) for _ in "qkv")
    if rung == "three_loops":
        q, k, v = (x[:, :, :20] for x in (q, k, v))
    out = attention_of(rung)(q, k, v)
    torch_s = truth(*(x.cpu() for x in (q, k, v)))
    assert_within_budget(rung, out.cpu(), torch_s, exactly(truth, *(x.cpu() for x in (q, k, v)))[0])


@pytest.mark.parametrize("rung", RUNGS)
def test_large_scores_and_rows_that_grow(device, rung):
    """Scores of some hundreds, each key's larger than those before: every block rescales all that came before it."""
    T = 130 if rung != "three_loops" else 40
    q = torch.ones(1, 1, T, 16, device=device)
    k = torch.arange(T, device=device).view(1, 1, T, 1).expand(1, 1, T, 16).float() * 10
    v = torch.randn(1, 1, T, 16).to(device)
    out = attention_of(rung)(q, k, v)
    torch.testing.assert_close(out, v, rtol=0, atol=1e-6)  # exp(-40) of what came before is nothing


@pytest.mark.parametrize("D", [16, 128])
@pytest.mark.parametrize("rung", KERNELS)
def test_head_dimensions_of_the_kernels(device, seed, rung, D):
    """float32 of 128 takes the smaller tile."""
    inputs = qkv(device, 70, D)
    out = attention_of(rung)(*inputs)
    on_cpu = [x.cpu() for x in inputs]
    assert_within_budget(rung, out.cpu(), truth(*on_cpu), exactly(truth, *on_cpu)[0])


# --- memory traffic: the formulas of docs/ladder/, in bytes, of one head ---

T, D, BLOCK, E = 150, 32, 64, 4
ROWS = [min(BLOCK, T - row) for row in range(0, T, BLOCK)]
MASK = T * T + 2 * 8 * T  # of bool, and two reads of T positions


def expected(rung):
    """(bytes read, bytes written)"""
    return {
        "naive": (E * (3 * T * D + 4 * T * T) + MASK, E * (T * D + 4 * T * T) + T * T + 8 * T),
        "tiled": (
            E * (2 * T * D + 2 * len(ROWS) * T * D + 4 * T * T) + T * T + 8 * T + 8 * len(ROWS) * T,
            E * (2 * T * D + 4 * T * T) + T * T + 8 * T,
        ),
        "triton_forward": (E * (T * D + 2 * len(ROWS) * T * D), E * T * D),
        "tile_skipping": (E * (T * D + 2 * D * sum(min(row + BLOCK, T) for row in range(0, T, BLOCK))), E * T * D),
    }[rung]


@pytest.mark.parametrize("rung", ["naive", "tiled"])
def test_traffic_of_operations(rung):
    inputs = qkv("cpu", T, D)
    with OperationTraffic() as traffic:
        attention_of(rung)(*inputs)
    assert (traffic.read_bytes, traffic.written_bytes) == expected(rung)


@pytest.mark.parametrize("rung", KERNELS)
def test_traffic_of_kernels(interpreter, rung):
    q, k, v = qkv(interpreter, T, D)
    with Traffic() as traffic:
        out = attention_of(rung)(q, k, v)
    assert (traffic.read_bytes, traffic.written_bytes) == expected(rung)
    assert (traffic.reads(q) == 1).all()
    assert (traffic.writes(out) == 1).all()
    block = torch.arange(T) // BLOCK
    visits = len(ROWS) - block if rung == "tile_skipping" else torch.full((T,), len(ROWS))
    for x in (k, v):
        assert (traffic.reads(x)[0, 0] == visits[:, None]).all()


def test_the_matrix_is_never_whole_from_the_third_rung_on():
    """Bytes at the peak: T x T, T x BLOCK, BLOCK x BLOCK, and at last nothing but the output."""
    T = 1024
    inputs = qkv("cpu", T, 16)
    peaks = {rung: peak_bytes(attention_of(rung), inputs, backward=False) for rung in RUNGS[1:]}
    assert peaks["naive"] >= 2 * T * T * E
    assert peaks["tiled"] < 4 * BLOCK * T * E
    assert peaks["online_softmax"] < 8 * BLOCK * BLOCK * E + T * 16 * E
    assert peaks["triton_forward"] == peaks["tile_skipping"] == T * 16 * E


# --- mistakes ---


def bad(q, k, v):
    """(k and v as they were, but one thing; what the message says)"""
    return [
        ((q[0], k, v), ValueError, r"q has shape \(2, 5, 16\), expected \(B, H, T, D\)"),
        ((q[:, :, :0], k, v), ValueError, "each at least 1"),
        ((q, k[:, :, :3], v), ValueError, r"k has shape \(1, 2, 3, 16\), expected that of q, \(1, 2, 5, 16\)"),
        ((q, k, v[:, :1]), ValueError, "v has shape .* no grouped heads"),
        ((q, k, v.double()), TypeError, "v is torch.float64 and q torch.float32; convert one by .to()"),
        ((q, k, v.to("meta")), ValueError, "v is on meta and q on cpu; move them together"),
        ((q, k.tolist(), v), TypeError, "k must be a torch.Tensor, got list"),
        ((q.to_sparse(), k, v), TypeError, "q is a sparse_coo tensor"),
    ]


@pytest.mark.parametrize("rung", RUNGS)
def test_bad_input_is_one_clear_line(rung):
    for inputs, kind, message in bad(*qkv("cpu", 5, H=2)):
        with pytest.raises(kind, match=f"^{rung}: .*{message}") as caught:
            attention_of(rung)(*inputs)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rung", KERNELS)
def test_what_only_the_kernels_refuse(rung):
    q, k, v = qkv("cpu", 5)
    with pytest.raises(
        ValueError, match=rf"^{rung}: q has head dimension 10, the ladder's kernels take 16, 32, 64, 128"
    ):
        attention_of(rung)(q[..., :10], k[..., :10], v[..., :10])
    with pytest.raises(TypeError, match="float64, and the kernels take float32"):
        attention_of(rung)(q.double(), k.double(), v.double())
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=f"{rung}: .*interpret"):
            attention_of(rung)(q, k, v)


def test_a_rung_that_is_none():
    with pytest.raises(ValueError, match="attention_of: there is no rung 'seventh'; choose from three_loops, naive"):
        attention_of("seventh")


def test_every_file_of_the_ladder_is_short():
    """One can be read aloud."""
    folder = Path(ladder.__file__).parent
    lengths = {rung: len((folder / f"{rung}.py").read_text().splitlines()) for rung in RUNGS}
    assert all(30 < length <= 110 for length in lengths.values()), lengths
