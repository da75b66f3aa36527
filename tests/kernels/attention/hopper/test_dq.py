"""dQ on Hopper, compiled and executed by the simulated GPU: values, races, and keys that are not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.softgpu.driver import simulate
from benchmarks.softgpu.engine import Settings
from fastgpt.kernels import reference
from fastgpt.kernels.attention.hopper.descriptors import descriptors
from fastgpt.kernels.attention.hopper.dq import hopper_dq_kernel
from fastgpt.kernels.attention.hopper.structs import Config
from fastgpt.kernels.attention.host import band, hidden_keys
from fastgpt.kernels.attention.tiles import split_head_dim
from tests.support.budget import GRADIENT, assert_all_within_budget, exactly

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU's driver is in this process")
ADVERSARY = Settings(schedule="worst", landing="random", seed=11)


class Problem(NamedTuple):
    """Tensors (B, heads, T, D) on heads-last memory, and the arguments of flash_attention."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    arguments: dict[str, Any]


def problem(B=1, H=1, H_kv=1, T_q=200, T_k=200, D=64, dtype=torch.bfloat16, causal=False, **arguments) -> Problem:
    shapes = (B, T_q, H, D), (B, T_k, H_kv, D), (B, T_k, H_kv, D), (B, T_q, H, D)
    return Problem(*(torch.randn(s).to(dtype).transpose(1, 2) for s in shapes), {"causal": causal, **arguments})


def with_gradient(q, k, v, dout, arguments):
    """(out, lse, dq) of the reference."""
    out, lse = reference.flash_attention(q, k, v, return_lse=True, **arguments)
    return out, lse, torch.autograd.grad(out, q, dout)[0]


def results(x: Problem):
    """Those of the reference, in the dtype of the inputs and in float64."""
    leaves = [t.clone().requires_grad_() for t in (x.q, x.k, x.v)]
    return with_gradient(*leaves, x.dout, x.arguments), exactly(with_gradient, *leaves, x.dout, x.arguments)


def run(
    x: Problem, exact, settings=ADVERSARY, tile=(64, 4, 2), overlaps=True, apart=True, grid=3, poisoned=()
) -> Tensor:
    """dq of the kernel, on `grid` CTAs."""
    (B, H, T_q, D), T_k = x.q.shape, x.k.shape[2]
    block, _, consumers = tile
    out, lse = exact[0].value, exact[1].value
    delta = (out * x.dout.double()).sum(-1)
    rows = torch.full((2, B, H, T_q + -T_q % 4), torch.nan)  # what lies between T_q and the end is nobody's
    rows[0, ..., :T_q] = torch.where(lse == -torch.inf, torch.inf, lse * 1.4426950408889634)
    rows[1, ..., :T_q] = delta
    causal, window = x.arguments["causal"], x.arguments.get("window")
    left, right = window or (-1, -1)
    lower, upper = band(T_q, T_k, causal, left, right)
    masks = [x.arguments.get(name) for name in ("key_starts", "key_lengths", "document_ids")]
    has_left = lower is not None or masks[0] is not None or masks[2] is not None
    C = Config(D, *split_head_dim(D), *tile, overlaps, apart, has_left, 0)
    dq = torch.empty_like(x.q)
    with simulate(90, settings=settings) as gpu:
        hopper_dq_kernel[(grid,)](
            *(d for t in (x.q, x.dout) for d in descriptors(t, 64)),
            *(d for t in (x.k, x.v) for d in descriptors(t, block)),
            *descriptors(dq, 64), rows[0], rows[1], hidden_keys(*masks, T_q, T_k, 64 * consumers),
            T_q, T_k, H, H // x.k.shape[1], B * H, lower, upper, B * H, rows.stride(2), D**-0.5, C, num_warps=4,
        )  # fmt: skip
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    return dq


DOCUMENTS = torch.arange(2 * 230).reshape(2, 230) // 70
CASES = {
    "causal, three query heads a key head": (
        {"B": 2, "H": 3, "T_q": 161, "T_k": 290, "causal": True},
        {"grid": 4},
    ),
    "more queries than keys, float16": (
        {"T_q": 290, "T_k": 70, "dtype": torch.float16, "causal": True},
        {},
    ),
    "one query": ({"T_q": 1, "T_k": 200, "D": 128}, {"tile": (64, 3, 2)}),
    "window, padding, head_dim in two parts": (
        {
            "B": 2, "T_q": 201, "T_k": 201, "D": 96, "window": (65, 20),
            "key_starts": torch.tensor([0, 37]), "key_lengths": torch.tensor([0, 170]),
        },
        {},
    ),
    "documents, one consumer": (
        {"B": 2, "T_q": 200, "T_k": 230, "causal": True, "document_ids": DOCUMENTS},
        {"tile": (64, 3, 1)},
    ),
    "results staged over q, head_dim 192": (
        {"H": 2, "D": 192, "causal": True},
        {"tile": (64, 2, 2), "overlaps": False, "apart": False},
    ),
    "head_dim 256": ({"D": 256, "T_k": 100}, {"tile": (32, 3, 2), "overlaps": False, "apart": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_queries(seed, name):
    arguments, options = CASES[name]
    x = problem(**arguments)
    torchs, exact = results(x)
    assert_all_within_budget(("dq",), [run(x, exact, **options)], torchs[2:], exact[2:], factor=GRADIENT)


def test_the_same_bits_in_any_order_of_warps_and_on_any_number_of_ctas(seed):
    x = problem(H=2, T_q=150, T_k=333, causal=True)
    exact = results(x)[1]
    first = run(x, exact)
    for settings, grid in ((Settings(schedule="forward"), 1), (Settings(schedule="random", seed=3), 4)):
        assert torch.equal(first, run(x, exact, settings, grid=grid))


@pytest.mark.parametrize(("window", "consumers"), [(None, 1), (None, 2), ((66, 0), 2)])
def test_a_key_that_is_not_finite_reaches_the_queries_that_see_it_alone(seed, window, consumers):
    """Row i sees the keys up to i + 1, in the window those from i - 65.

    So of tile 192 ... 255 row 191 sees the first key alone, and of tile 0 ... 63 row 128 the last one. lse is left as
    it was without NaN: what a row gets, it gets from its tiles.
    """
    x = problem(T_q=300, T_k=301, causal=True, window=window)
    exact = results(x)[1]
    clean = run(x, exact, tile=(64, 4, consumers))
    x.k[0, 0, 63 if window else 192, 3], x.k[0, 0, 140, 60] = torch.nan, torch.inf
    found = run(x, exact, tile=(64, 4, consumers))[0, 0]
    i = torch.arange(300)
    sees_nan = (i >= 62) & (i <= 128) if window else i >= 191
    sees_inf = (i >= 139) & (i <= (205 if window else 300))
    assert found[sees_nan].isnan().any(1).all()
    assert torch.equal(found[~sees_nan & ~sees_inf], clean[0, 0, ~sees_nan & ~sees_inf])


def test_what_hidden_keys_hold_adds_nothing(seed):
    """Their weights are 0 and not nearly so, also where softmax_scale is no power of two, as of head_dim 128."""
    x = problem(T_q=100, T_k=100, D=128, key_lengths=torch.tensor([70]))
    exact = results(x)[1]
    clean = run(x, exact, tile=(64, 3, 2))
    x.k[0, 0, 70:] = 1e20
    assert torch.equal(run(x, exact, tile=(64, 3, 2)), clean)
