"""A ring of 2 and of 4 gloo ranks beside one process: attention by the error budget, and a whole GPT in float64."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

import fastgpt
from fastgpt import GPT, GPTConfig
from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.kernels import reference
from fastgpt.parallel import ring as rings
from fastgpt.parallel import ring_layout, ring_pieces
from fastgpt.parallel.ring import Ring, ring_attention
from tests.support.budget import GRADIENT, assert_all_within_budget, exactly
from tests.support.ranks import run_ranks


class Case(NamedTuple):
    """An attention over T = 2 n · chunk tokens."""

    impl: str
    B: int
    H: int
    H_kv: int
    chunk: int
    D: int
    dtype: torch.dtype = torch.float32


CASES = (
    Case("reference", 2, 4, 2, 13, 7),
    Case("sdpa", 1, 3, 1, 1, 5),
    Case("reference", 1, 2, 2, 9, 16, torch.bfloat16),
    Case("reference", 1, 1, 1, 150, 4),  # more than a block of queries
    Case("triton", 1, 2, 1, 8, 16),
    Case("triton", 1, 1, 1, 9, 24, torch.bfloat16),
)


def inputs(case: Case, n: int) -> list[torch.Tensor]:
    """q, k, v, dout, dlse of the whole sequence."""
    torch.manual_seed(CASES.index(case))
    B, H, H_kv, T, D = case.B, case.H, case.H_kv, 2 * n * case.chunk, case.D
    shapes = (B, H, T, D), (B, H_kv, T, D), (B, H_kv, T, D), (B, H, T, D)
    return [torch.randn(shape).to(case.dtype) for shape in shapes] + [torch.randn(B, H, T)]


@pytest.fixture(scope="module")
def two() -> list[Any]:
    """What `_rank` returned, by rank."""
    return run_ranks(_rank, 2)


@pytest.fixture(scope="module")
def four() -> list[Any]:
    return run_ranks(_rank, 4)


@pytest.fixture(params=["two", "four"])
def results(request: pytest.FixtureRequest) -> list[Any]:
    return request.getfixturevalue(request.param)


def _rank(rank: int) -> dict[str, Any]:
    ring = Ring()
    torch._C._set_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN; the public way imports inductor
    return {
        "attention": [_attention(ring, case) for case in CASES], "gpt": _gpt(ring), "misuse": _misuse(ring),
        "order": _order(ring), "table": _table(ring), "copies": _copies(ring),
    }  # fmt: skip


def _attention(ring: Ring, case: Case) -> list[torch.Tensor]:
    *qkv, dout, dlse = (ring.part(x, 2) for x in inputs(case, ring.size))
    q, k, v = (x.requires_grad_() for x in qkv)
    with fastgpt.kernels.interpret() if case.impl == "triton" else contextlib.nullcontext():
        out, lse = ring_attention(q, k, v, ring, impl=case.impl)
        gradients = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse))
    return [x.detach() for x in (out, lse, *gradients)]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_attention_and_its_gradients_are_those_of_one_process(results, number):
    case = CASES[number]
    given = inputs(case, len(results))
    parts = [result["attention"][number] for result in results]
    whole = [_whole(list(of_ranks), 2) for of_ranks in zip(*parts)]
    assert parts[0][0].transpose(1, 2).is_contiguous()

    def plain(q, k, v, dout, dlse):
        out, lse = reference.flash_attention(q, k, v, return_lse=True)
        return out, lse, *torch.autograd.grad((out, lse), (q, k, v), (dout.to(out), dlse.to(lse)))

    leaves = [x.requires_grad_() for x in given[:3]] + given[3:]
    torchs, exact = plain(*leaves), exactly(plain, *leaves)
    assert_all_within_budget(("out", "lse"), whole[:2], torchs[:2], exact[:2])
    assert_all_within_budget(("dq", "dk", "dv"), whole[2:], torchs[2:], exact[2:], factor=GRADIENT)


def _whole(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """The ranks' tokens in the order of the sequence."""
    together, n = torch.cat(parts, dim), len(parts)
    at = torch.cat([ring_layout.positions(together.shape[dim], rank, n) for rank in range(n)])
    return together.index_select(dim, at.argsort())


# ---- a whole model ----

T, V = 24, 50


def model(**fields: Any) -> GPT:
    torch.manual_seed(0)
    settings = {"vocab_size": V, "max_len": T, "n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 2}
    return GPT(GPTConfig(**settings | fields)).double()  # type: ignore[arg-type]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """idx, targets (3, T); of the first sequence, half of the targets do not count."""
    idx, targets = torch.randint(V, (2, 3, T), generator=torch.Generator().manual_seed(1))
    targets[0, T // 2 :] = -100
    return idx, targets


def loss_and_gradients(gpt: GPT, idx: torch.Tensor, targets: torch.Tensor, **arguments: Any) -> list[torch.Tensor]:
    gpt.zero_grad()
    loss = gpt(idx, targets, reduction="sum", **arguments).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in gpt.parameters())]


def summed(values: list[torch.Tensor]) -> list[torch.Tensor]:
    for value in values:
        dist.all_reduce(value)
    return values


def _gpt(ring: Ring) -> dict[str, Any]:
    gpt = model()
    rings.use(gpt)
    idx, targets = (ring.part(x) for x in batch())
    found = {"default": summed(loss_and_gradients(gpt, idx, targets))}
    mine = ring.positions(idx.shape[1], T)
    found["positions"] = summed(loss_and_gradients(gpt, idx, targets, positions=mine.expand(3, -1)))
    again = model()
    rings.use(again)
    for block in again.blocks:
        block.forward = functools.partial(_checkpointed, block.forward)
    found["recomputed"] = summed(loss_and_gradients(again, idx, targets))
    with torch.no_grad():
        found["logits"] = gpt(idx).logits
        rings.release(gpt)
        found["released"] = gpt(batch()[0]).logits
    return found


def _checkpointed(forward: Any, *args: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False)


def test_a_gpt_is_that_of_one_process(results):
    gpt = model()
    expected = loss_and_gradients(gpt, *batch())
    for result in results:
        for how in ("default", "positions", "recomputed"):
            torch.testing.assert_close(result["gpt"][how], expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        logits = gpt(batch()[0]).logits
    whole = _whole([result["gpt"]["logits"] for result in results], 1)
    torch.testing.assert_close(whole, logits, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(results[0]["gpt"]["released"], logits, rtol=1e-12, atol=1e-12)


# ---- what goes on inside, and what cannot be ----


def _order(ring: Ring) -> list[str]:
    """What happens in a forward, and in its backward, in this order."""
    happened: list[str] = []

    def told(what: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            happened.append(what)
            result = function(*args, **kwargs)
            return told("arrives", result) if what == "send" else result

        return call

    watched = Ring()
    watched.pass_on = told("send", ring.pass_on)  # type: ignore[method-assign]
    saved = ring_pieces.forward, ring_pieces.backward
    ring_pieces.forward, ring_pieces.backward = (told("compute", function) for function in saved)
    try:
        q = torch.randn(1, 1, 4, 2, requires_grad=True)
        ring_attention(q, q, q, watched, impl="reference")[0].sum().backward()
    finally:
        ring_pieces.forward, ring_pieces.backward = saved
    return happened


def test_the_next_keys_travel_while_these_are_computed_with(results):
    n = len(results)
    forward = ["send", "compute", "arrives"] * (n - 1) + ["compute"]
    keys, gradients = ["send", "compute"], ["send", "arrives"]  # keys go on; then the gradients of those at hand
    backward = [*keys, *gradients, *([*keys, "arrives", *gradients] * (n - 2)), "compute", "arrives", "send", "arrives"]
    for result in results:
        assert result["order"] == forward + backward


def _table(ring: Ring) -> list[tuple[str, str]]:
    rows = []
    for impl in ("auto", "reference", "triton"):
        gpt = model(attn_impl=impl)
        rings.use(gpt)
        with fastgpt.kernels.interpret():
            rows += [(row.used, row.why) for row in fastgpt.implementations(gpt.float()) if row.part == "attn"]
    return rows


def test_the_table_of_implementations_says_so(two):
    table = two[0]["table"]
    assert [used for used, _ in table] == ["torch", "torch", "triton"]
    assert all("in a ring of 2 ranks" in why for _, why in table)


def _copies(ring: Ring) -> list[bool]:
    gpt = model()
    used = rings.use(gpt)
    copied, pickled = copy.deepcopy(gpt), pickle.loads(pickle.dumps(gpt))
    attentions = [gpt.blocks[0].attn, copied.blocks[1].attn, pickled.blocks[0].attn]
    return [attention.ring is used for attention in attentions] + [pickled.ring is None]


def test_a_copy_has_the_ring_and_a_pickle_has_none(two):
    assert two[1]["copies"] == [True, True, False, True]


def _misuse(ring: Ring) -> dict[str, str]:
    gpt = model()
    rings.use(gpt)
    idx = batch()[0]
    dropping = model(dropout=0.1)
    dropping.eval()
    only_others = model()
    only_others.blocks[1].attn = torch.nn.Identity()
    late = model().train()
    rings.use(late)
    late.blocks[0].attn.dropout = 0.5
    tries = {
        "generate": lambda: gpt.generate(idx[:1, :4], 2),
        "generate without a cache": lambda: gpt.generate(idx[:1, :4], 2, use_cache=False),
        "maps": lambda: gpt.attention_maps(idx),
        "too long": lambda: gpt(idx),
        "odd": lambda: gpt(idx[:, :3]),
        "dropout": lambda: rings.use(dropping),
        "late dropout": lambda: late(ring.part(idx)),
        "no GPT": lambda: rings.use(torch.nn.Linear(2, 2)),
        "others": lambda: rings.use(only_others),
        "no model": lambda: rings.use("model"),
        "shapes": lambda: ring_attention(
            *torch.randn(3, 1, 2, 4, 8).unbind()[:2], torch.randn(1, 2, 6, 8), ring, impl="sdpa"
        ),
        "odd tokens": lambda: ring_attention(*torch.randn(3, 1, 2, 5, 8), ring, impl="sdpa"),
        "part": lambda: ring.part(torch.zeros(1, 7)),
    }
    told = {}
    for name, attempt in tries.items():
        try:
            told[name] = str(attempt())
        except (SettingError, SettingTypeError, ValueError, RuntimeError) as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def test_what_cannot_be_is_said(two):
    told = two[0]["misuse"]
    for name in ("generate", "generate without a cache", "maps"):
        assert told[name].startswith("RuntimeError: GPT: 2 ranks share each sequence, and "), told[name]
        assert "ring.release(model)" in told[name]
    assert "2 ranks with 24 tokens each share a sequence of 48, and max_len is 24" in told["too long"]
    assert "seq_len=6 must be a multiple of 4" in told["odd"]
    for name, owner in (("dropout", "ring.use: dropout=0.1"), ("late dropout", "ring_attention: dropout=0.5")):
        assert f"SettingError: {owner} must be 0 where ranks share a sequence" in told[name]
    for name, kind in (("no GPT", "'Linear'"), ("others", "'GPT'")):
        assert f"SettingTypeError: ring.use: model={kind} must be a fastgpt.GPT whose blocks have" in told[name]
    assert "must be a fastgpt.GPT, or a module with one inside" in told["no model"]
    assert "v (1, 2, 6, 8) must be (B, H, T, D)" in told["shapes"]
    assert "T is 5, and each rank holds two chunks" in told["odd tokens"]
    assert "Ring.part: seq_len=7 must be a multiple of 4: " in told["part"]


def test_compiled_blocks_leave_the_ring_alone():
    """Of one rank, which sends nothing: what would be sent is inside of what torch.compile does not look into."""
    alone = Ring.__new__(Ring)
    alone.group, alone.rank, alone.size = None, 0, 1
    gpt = model()
    expected = loss_and_gradients(gpt, *batch())
    for module in (gpt, *(block.attn for block in gpt.blocks)):
        module.ring = alone
    watched: list[bool] = []
    alone.pass_on = lambda x: (watched.append(torch.compiler.is_compiling()), lambda: x)[1]  # type: ignore[method-assign]
    for block in gpt.blocks:
        block.compile(backend="eager")
    torch.testing.assert_close(loss_and_gradients(gpt, *batch()), expected, rtol=1e-10, atol=1e-12)
    assert watched == [False] * len(gpt.blocks)
