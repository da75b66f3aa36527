"""`fastgpt plan --gpus`: what is counted of a rank is what ranks of gloo hold and send."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgpt import GPT, GPTConfig
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.model.remat import MODES, apply
from fastgpt.parallel.ring import use
from fastgpt.parallel.strategy import DataParallel, HybridSharded, Sharded, Strategy
from fastgpt.parallel.world import World
from fastgpt.tools.placement import Placement, place
from fastgpt.tools.rank_memory import part, rank_memory
from fastgpt.tools.rank_traffic import messages
from tests.support.ranks import run_ranks

pytest.importorskip("triton")
REFERENCE = IMPLEMENTATION_SETS["reference"]
BATCH, SEQ_LEN, MICRO_BATCHES = 2, 6, 2
# No size but n_layers that 4 divides, and some smaller than 4.
CONFIGS = [
    GPTConfig(29, 7, 3, 2, 10, d_ff=14, **REFERENCE),
    GPTConfig(3, 7, 2, 3, 9, n_kv_heads=1, d_ff=15, bias=False, tie_weights=False, **REFERENCE),
]
RING = GPTConfig(29, 16, 3, 4, 16, n_kv_heads=2, **REFERENCE)
PEAK = GPTConfig(256, 32, 6, 2, 64, **IMPLEMENTATION_SETS["torch"])
HOW = {2: [("ddp", None), ("fsdp", None)], 4: [("ddp", None), ("fsdp", None), ("hsdp", 2)]}
CASES = [(size, number, *way) for size, ways in HOW.items() for number in range(len(CONFIGS)) for way in ways]


class Sent(TorchDispatchMode):
    """Bytes that this rank sends: each collective's, round a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            name = func._opname
            if name == "_allgather_base_":
                sent = args[0].nbytes - args[1].nbytes
            elif name == "_reduce_scatter_base_":
                sent = args[1].nbytes - args[0].nbytes
            elif name in ("send", "recv_any_source_", "recv_"):
                sent = sum(t.nbytes for t in args[0]) if name == "send" else 0
            elif name == "allreduce_":
                size = torch.distributed.ProcessGroup.unbox(args[1]).size()
                sent = 2 * (size - 1) * sum(t.nbytes for t in args[0]) // size
            else:
                raise AssertionError(f"{name} is not counted")
            if sent:
                self.bytes[name] = self.bytes.get(name, 0) + sent
        return func(*args, **(kwargs or {}))


def measured(rank: int, size: int) -> list[Any]:
    return [peak(rank, size), {mode: around_the_ring(size, mode) for mode in MODES}] + [
        _step(rank, size, CONFIGS[number], strategy, shards)
        for number in range(len(CONFIGS))
        for strategy, shards in HOW[size]
    ]


def _placed(config: GPTConfig, rank: int, size: int, strategy: str, shards: int | None, dtype: torch.dtype) -> Strategy:
    torch.manual_seed(0)
    world, model = World(rank, size, rank, size), GPT(config)
    if strategy == "ddp":
        return DataParallel(model, world)
    if shards is None:
        return Sharded(model, world, compute=dtype)
    return HybridSharded(model, world, compute=dtype, shard_ranks=shards)


def _step(rank: int, size: int, config: GPTConfig, strategy: str, shards: int | None) -> dict[str, Any]:
    """A step of AdamW: what this rank holds after it, and what it has sent."""
    placed = _placed(config, rank, size, strategy, shards, torch.bfloat16)
    optimizer = torch.optim.AdamW(placed.model.parameters())
    idx = torch.randint(config.vocab_size, (BATCH, SEQ_LEN))

    def update() -> None:
        for number in range(MICRO_BATCHES):
            with placed.accumulating(last=number + 1 == MICRO_BATCHES):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = placed.forward(idx, idx).loss
                loss.backward()

    for _ in range(2):  # DDP lays its buckets anew after the first
        update()
        optimizer.zero_grad()
    with Sent() as sent:
        update()
    optimizer.step()
    parameters = list(placed.model.parameters())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "parameters": _bytes(parameters), "gradients": _bytes([p.grad for p in parameters]),
        "optimizer": _bytes(moments), "sent": sent.bytes,
    }  # fmt: skip


class Held(TorchDispatchMode):
    """Bytes of every storage that an operation inside has seen, and the most at one time: `peak`. FSDP2 empties and
    fills the storages of gathered parameters, so all are asked for their size again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: Any = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.look_at(args, kwargs, out)
        return out

    def look_at(self, *trees: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]
        self._storages.update(getattr(t, "_local_tensor", t).untyped_storage() for t in tensors)
        self.peak = max(self.peak, sum(storage.nbytes() for storage in list(self._storages)))


def around_the_ring(size: int, remat: str) -> int:
    """Bytes that this rank sends to the next one in a micro-batch."""
    torch.manual_seed(0)
    model = apply(GPT(RING), remat)
    ring = use(model)
    idx = ring.part(torch.randint(RING.vocab_size, (BATCH, RING.max_len)))
    with Sent() as sent:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(idx, idx).loss
        loss.backward()
    return sent.bytes.pop("send") + sum(sent.bytes.values())


def peak(rank: int, size: int) -> int:
    """Of a step's second micro-batch, when all gradients have their place, in float32."""
    placed = _placed(PEAK, rank, size, "fsdp", None, torch.float32)
    parameters = list(placed.model.parameters())
    optimizer = torch.optim.AdamW(parameters)
    idx = torch.randint(PEAK.vocab_size, (4, 32))

    def micro_batch() -> None:
        placed.forward(idx, idx, return_logits=False).loss.backward()

    micro_batch()
    optimizer.step()
    with Held() as held:
        held.look_at(idx, [(p, p.grad) for p in parameters], [list(s.values()) for s in optimizer.state.values()])
        micro_batch()
    return held.peak


def _bytes(tensors: list[Any]) -> int:
    """Of what is here of them."""
    return sum(getattr(t, "_local_tensor", t).nbytes for t in tensors)


@pytest.fixture(scope="module")
def found():
    """{(size, config, strategy, shards): [of each rank]}, and what `peak` and `around_the_ring` give"""
    by_case = {}
    for size in HOW:
        cases = [case for case in CASES if case[0] == size]
        for case, *of_ranks in zip(
            [("peak", size), ("ring", size), *cases], *run_ranks(measured, size, size), strict=True
        ):
            by_case[case] = of_ranks
    return by_case


def placed(size: int, strategy: str, shards: int | None) -> Placement:
    return place(CONFIGS[0], size, 2**30, strategy=strategy, shard_ranks=shards)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_rank_holds(case, found):
    """To the byte: of the largest rank, which is the first."""
    size, number, strategy, shards = case
    of_ranks = found[case]
    counted = rank_memory(CONFIGS[number], placed(size, strategy, shards), BATCH, SEQ_LEN)
    for what in ("parameters", "gradients", "optimizer"):
        assert getattr(counted, what) == of_ranks[0][what] == max(one[what] for one in of_ranks), what
    copies = size // (size if strategy == "fsdp" else shards or 1)
    with torch.device("meta"):
        whole = 4 * sum(p.numel() for p in GPT(CONFIGS[number]).parameters())
    assert sum(one["parameters"] for one in of_ranks) == copies * whole  # the parts are all, and no part is there twice


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_rank_sends(case, found):
    size, number, strategy, shards = case
    sent = messages(CONFIGS[number], placed(size, strategy, shards), BATCH, SEQ_LEN, MICRO_BATCHES)
    counted = {"_allgather_base_": 0, "_reduce_scatter_base_": 0, "allreduce_": 0}
    for message in sent:
        name = "allreduce_" if strategy == "ddp" or "between" in message.what else "_reduce_scatter_base_"
        counted["_allgather_base_" if "parameters" in message.what else name] += message.sent
    for rank in range(size):
        assert {name: n for name, n in counted.items() if n} == found[case][rank]["sent"]


@pytest.mark.parametrize("size", HOW)
def test_the_peak_is_that_of_a_real_step(size, found):
    """But for one of the two blocks that are counted as gathered: in the loss there is but one."""
    counted = rank_memory(PEAK, placed(size, "fsdp", None), 4, 32, bfloat16=False)
    (whole_block,) = {sum(p.nbytes for p in block.parameters()) for block in GPT(PEAK).blocks}
    assert all(0 <= counted.peak - peak <= whole_block for peak in found["peak", size])
    assert whole_block < 0.05 * counted.peak


@pytest.mark.parametrize("size", HOW)
def test_what_goes_round_the_ring(size, found):
    placement = place(RING, size, 2**30, strategy="ddp", context_parallel=size)
    for mode in MODES:
        _, *ring = messages(RING, placement, BATCH, RING.max_len, 1, remat=mode)
        assert [sent[mode] for sent in found["ring", size]] == [sum(message.sent for message in ring)] * size, mode


def test_a_part_is_a_number_of_rows_rounded_up():
    assert part([(10, 3), (7,), (2, 5)], 4) == 3 * 3 + 2 + 1 * 5
    assert part([(10, 3)], 1) == 30
    assert math.ceil(50257 / 256) * 8 == part([(50257, 8)], 256)
