"""What one rank of many sends in an update, and a bound on the update's time: arithmetic, nothing measured.

Messages go round a ring of N ranks (Patarasu & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations"): for S bytes in all, a rank sends

    all-gather, reduce-scatter   (N - 1) / N · S
    all-reduce                   2 (N - 1) / N · S

of which the strategies use, P being the bytes of the parameters in a dtype, filled up as `rank_memory.py` says:

    ddp    one all-reduce of the gradients an update, float32
    fsdp   each micro-batch: P gathered for the forward, of the blocks once more for the backward, in the dtype of the
           products; gradients reduce-scattered in float32 (ZeRO, arXiv 1910.02054, section 7.2; FSDP, arXiv 2304.11277)
    hsdp   the same within a copy, and an all-reduce of a rank's part of the gradients between copies an update
    ring   context parallel, each block and micro-batch: keys and values N - 1 times in the forward (once more where
           remat computes it again) and as often in the backward, their gradients in float32 N times (Liu et al. 2023,
           arXiv 2310.01889)

Left out: what is a number or a few (the gradient's norm, losses).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model.config import GPTConfig
from ..model.size import parameter_shapes
from .links import Link
from .placement import Group, Placement
from .rank_memory import FLOAT32, part, tokens_each


@dataclass(frozen=True)
class Message:
    """what   in words
    times     an update
    n_bytes   that one rank sends each time
    group     between whom
    is_ring   from each rank to the next one only: nobody else's adapters help at the border of a machine
    """

    what: str
    times: int
    n_bytes: int
    group: Group
    is_ring: bool = False

    @property
    def sent(self) -> int:
        """Bytes that one rank sends in an update."""
        return self.times * self.n_bytes

    def seconds(self, link: Link, network: Link) -> float:
        """Of an update, at least: the slower of a machine's own links and its network.

        A ring enters a machine and leaves it once. The rings of the ranks there, and the several rings that NCCL lays
        for one group, one an adapter, share the adapters, of which each GPU has one.
        """
        times = [self.sent / link.bytes_per_second] if self.group.per_node > 1 else []
        if self.group.crosses:
            sharing = 1 if self.is_ring else self.group.per_node
            times.append(self.sent / sharing / network.bytes_per_second)
        return max(times, default=0.0)


def messages(
    config: GPTConfig, placement: Placement, batch: int, seq_len: int, micro_batches: int, *, bfloat16: bool = True,
    remat: str = "none",
) -> list[Message]:  # fmt: skip
    """Of an update of so many micro-batches, each of `batch` sequences of seq_len tokens."""
    itemsize, name = (2, "bfloat16") if bfloat16 else (FLOAT32, "float32")
    root, block = parameter_shapes(config.to_dict())
    n, n_layers = placement.shard_ranks, config.n_layers
    outside, inside = part(root, n), n_layers * part(block, n)
    shards, found = placement.shards(), []
    if n > 1:
        gathered = (n - 1) * itemsize
        found += [
            Message(f"parameters, forward, {name}", micro_batches, gathered * (outside + inside), shards),
            Message(f"blocks' parameters, backward, {name}", micro_batches, gathered * inside, shards),
            Message("gradients, float32", micro_batches, (n - 1) * FLOAT32 * (outside + inside), shards),
        ]
    if placement.copies > 1:
        what = "gradients, float32" if n == 1 else "gradients between copies, float32"
        copies, reduced = placement.copies, FLOAT32 * (outside + inside)
        found.append(Message(what, 1, 2 * (copies - 1) * reduced // copies, placement.replicas()))
    ring = placement.sequence()
    if ring.size > 1:
        assert config.n_kv_heads is not None  # a config has seen to it
        numbers = 2 * batch * tokens_each(seq_len, placement) * config.n_kv_heads * config.head_dim
        each = n_layers * micro_batches
        forwards = 1 if remat == "none" else 2
        found += [
            Message(
                f"keys, values, forward, {name}", forwards * each, (ring.size - 1) * itemsize * numbers, ring, True
            ),
            Message(f"keys, values, backward, {name}", each, (ring.size - 1) * itemsize * numbers, ring, True),
            Message("their gradients, float32", each, ring.size * FLOAT32 * numbers, ring, True),
        ]
    return found


def update_flops(config: GPTConfig, placement: Placement, sequences: int, seq_len: int, *, remat: str = "none") -> int:
    """Floating-point operations of one rank in an update of `sequences` sequences in all, at least.

    As `GPT.flops_per_token(causal=True)` counts them: 2 a parameter that multiplies and token in the forward and 4 in
    the backward, and of attention the half that a causal mask leaves. remat "full" computes the blocks' forward once
    more, up to the FFN's second product, whose result no backward needs; "selective" no product, but the
    attention of ranks that share sequences.
    """
    _, block = parameter_shapes(config.to_dict())
    products = config.n_layers * sum(shape[0] * shape[1] for shape in block if len(shape) > 1)
    attention = config.n_layers * config.d_model * seq_len
    each = 6 * (products + attention + config.vocab_size * config.d_model)
    if remat == "full":
        assert config.d_ff is not None  # a config has seen to it
        each += 2 * (products - config.n_layers * config.d_model * config.d_ff + attention)
    elif remat == "selective" and placement.context_parallel > 1:
        each += 2 * attention
    return each * sequences * seq_len // placement.gpus
