"""dK and dV on Hopper, compiled and executed by the simulated GPU: values, races, and what is not finite."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.softgpu.counting import EXECUTED
from benchmarks.softgpu.driver import simulate
from benchmarks.softgpu.engine import Settings
from fastgpt.kernels import reference
from fastgpt.kernels.attention.hopper.descriptors import descriptors, row_descriptor
from fastgpt.kernels.attention.hopper.dkdv import hopper_dkdv_kernel
from fastgpt.kernels.attention.hopper.structs import Config
from fastgpt.kernels.attention.host import band, hidden_keys
from fastgpt.kernels.attention.tiles import split_head_dim
from tests.support.budget import GRADIENT, assert_all_within_budget, exactly

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU's driver is in this process")
BLOCK = 64
ADVERSARY = Settings(schedule="worst", landing="random", seed=5)


class Call(NamedTuple):
    """What is attended to, and how."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    causal: bool = True
    window: tuple[int, int] | None = None
    masks: dict[str, Tensor] = {}  # noqa: RUF012

    @property
    def arguments(self):
        return {"causal": self.causal, "window": self.window, **self.masks}


def call(B=1, H=1, H_kv=1, T_q=150, T_k=150, D=64, dtype=torch.bfloat16, **arguments) -> Call:
    def heads(count, T):
        return torch.randn(B, T, count, D).to(dtype).transpose(1, 2)

    return Call(heads(H, T_q), heads(H_kv, T_k), heads(H_kv, T_k), heads(H, T_q), **arguments)


def gradients(q, k, v, dout, arguments):
    """(out, lse, dk, dv) of the reference."""
    out, lse = reference.flash_attention(q, k, v, return_lse=True, **arguments)
    return out, lse, *torch.autograd.grad(out, (k, v), dout, allow_unused=True)


def expected(x: Call):
    """The reference's results, and those in float64."""
    leaves = [t.clone().requires_grad_() for t in x[:3]]
    return gradients(*leaves, x.dout, x.arguments), exactly(gradients, *leaves, x.dout, x.arguments)


def statistics(x: Call, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """lse2 and delta as attention_delta_kernel writes them, in rows padded by what nobody may read."""
    delta = (out.double() * x.dout.double()).sum(-1)
    lse2 = torch.where(lse == -torch.inf, torch.inf, lse.double() * 1.4426950408889634 + delta * 0.0)
    delta = torch.where(lse == -torch.inf, 0.0, delta)
    padded = [torch.full((*t.shape[:2], t.shape[2] + -t.shape[2] % 4), torch.nan) for t in (lse2, delta)]
    for to, t in zip(padded, (lse2, delta)):
        to[..., : t.shape[2]] = t
    return padded[0], padded[1]


def run(x: Call, lse2: Tensor, delta: Tensor, *arguments, **options):
    """(dk, dv) of the kernel, in which nothing is wrong."""
    dk, dv, gpu = launch(x, lse2, delta, *arguments, **options)
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    return dk, dv


def launch(x: Call, lse2: Tensor, delta: Tensor, settings=ADVERSARY, stages=4, consumers=2, grid=2):
    """dk, dv and the simulated GPU, of which the kernel took `grid` CTAs."""
    (B, H, T_q, D), (H_kv, T_k) = x.q.shape, x.k.shape[1:3]
    dk, dv = torch.empty_like(x.k), torch.empty_like(x.v)
    left, right = x.window or (-1, -1)
    lower, upper = band(T_q, T_k, x.causal, left, right)
    d_low, d_high = split_head_dim(D)
    C = Config(
        head_dim=D, d_low=d_low, d_high=d_high, block=BLOCK, stages=stages, consumers=consumers, overlaps=True,
        out_apart=True, has_left=True, group=H // H_kv,
    )  # fmt: skip
    masks = [x.masks.get(name) for name in ("key_starts", "key_lengths", "document_ids")]
    with simulate(90, settings=settings) as gpu:
        hopper_dkdv_kernel[(grid,)](
            *descriptors(x.q, BLOCK), *descriptors(x.dout, BLOCK),
            *(d for t in (x.k, x.v, dk, dv) for d in descriptors(t, 64)),
            row_descriptor(lse2, T_q, BLOCK), row_descriptor(delta, T_q, BLOCK),
            hidden_keys(*masks, T_q, T_k, 64 * consumers, of_keys=True),
            T_q, T_k, H_kv, B * H_kv, lower, upper, B * H_kv, D**-0.5, C, num_warps=4,
        )  # fmt: skip
    return dk, dv, gpu


CASES = {
    "causal, 3 query heads a key head": ({"B": 2, "H": 3, "T_q": 150, "T_k": 201}, {}),
    "more queries than keys": ({"T_q": 201, "T_k": 100}, {}),
    "one query": ({"T_q": 1, "T_k": 140, "causal": False}, {}),
    "window, two parts of head_dim, float16": (
        {
            "H": 2, "H_kv": 2, "T_q": 130, "T_k": 260, "D": 96, "dtype": torch.float16, "causal": False,
            "window": (30, 100),
        },
        {},
    ),
    "padding, documents": (
        {
            "B": 2, "T_q": 260, "T_k": 260, "D": 128,
            "masks": {
                "key_lengths": torch.tensor([0, 250]),
                "document_ids": torch.arange(520).reshape(2, 260) // 90 << 32,  # the upper halves differ alone
            },
        },
        {"stages": 3},
    ),
    "one consumer": ({"B": 2, "T_q": 90, "T_k": 130}, {"consumers": 1}),
    "two warpgroups for the same keys, documents": (
        {
            "H": 2, "T_q": 130, "T_k": 200, "D": 192,
            "masks": {"document_ids": torch.arange(200, dtype=torch.int32).reshape(1, 200) // 70},
        },
        {"stages": 3, "consumers": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_keys_and_values(name):
    arguments, options = CASES[name]
    x = call(**arguments)
    torchs, exact = expected(x)
    found = run(x, *statistics(x, exact[0].value, exact[1].value), **options)
    assert_all_within_budget(("dk", "dv"), found, torchs[2:], exact[2:], factor=GRADIENT)


def test_the_same_bits_in_any_order_of_warps_and_on_any_number_of_ctas():
    x = call(H=2, H_kv=1, T_q=150, T_k=201, causal=True)
    _, exact = expected(x)
    rows = statistics(x, exact[0].value, exact[1].value)
    first = run(x, *rows)
    for settings, grid in ((Settings(schedule="forward"), 1), (Settings(schedule="random", seed=3), 2)):
        again = run(x, *rows, settings, grid=grid)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_keys_that_are_all_padding_cost_no_product():
    x = call(B=2, T_q=64, T_k=64, masks={"key_lengths": torch.tensor([0, 0])})
    nothing = torch.zeros(2, 1, 64)
    dk, dv, gpu = launch(x, nothing + torch.inf, nothing)
    result = gpu.launches[-1].result
    products = {r.pc for r in result.program.lowered.records if r.key.startswith("wgmma.mma_async")}
    assert products
    assert not any(result.counts[pc][EXECUTED] for pc in products)
    assert not dk.any()
    assert not dv.any()


@pytest.mark.parametrize(
    ("window", "options"),
    [
        ((40, 0), {}),
        (None, {}),
        (None, {"D": 256, "stages": 2, "consumers": 1}),
    ],
)
def test_what_is_not_finite_reaches_the_keys_that_see_it_alone(window, options):
    """Rows 70 of q and 100 of dout hold NaN; those before 50 see no key, and one of them holds inf."""
    options = dict(options)
    x = call(T_q=200, T_k=150, D=options.pop("D", 64), window=window)
    _, exact = expected(x)
    lse2, delta = statistics(x, exact[0].value, exact[1].value)
    clean = run(x, lse2, delta, **options)
    x.q[0, 0, 70, 3] = x.dout[0, 0, 100, 5] = torch.nan
    x.q[0, 0, 20, 1] = x.dout[0, 0, 21, 1] = torch.inf
    delta[0, 0, [70, 100]] = lse2[0, 0, [70, 100]] = torch.nan
    key = torch.arange(150)
    least = -1 if window is None else 20 - window[0]
    hit = (key <= 20) & (key >= least) | (key <= 50) & (key >= (least + 30 if window else least))
    for found, without in zip(run(x, lse2, delta, **options), clean):
        assert found[0, 0, hit].isnan().all()
        # Keys that see none of the bad rows are as before; what the rows before gave them is theirs.
        assert torch.equal(found[0, 0, ~hit], without[0, 0, ~hit])
