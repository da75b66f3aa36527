"""What one rank of many holds in a training step, in bytes, counted from the model's sizes.

What is shared, is shared as FSDP2 does it: the rows (dimension 0) of each parameter in parts of one length, the last
filled up. A rank's part of a parameter (r, c) is ceil(r / ranks) x c numbers; counted is the largest rank's, the first.
Zero-stage 3: Rajbhandari et al. 2020, "ZeRO", arXiv 1910.02054, section 5; Zhao et al. 2023, "PyTorch FSDP", arXiv
2304.11277.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..model.config import GPTConfig
from ..model.size import parameter_shapes
from ..parallel.ring_layout import local_length
from .memory import largest_batch_of
from .moments import moments
from .placement import Placement

FLOAT32 = 4


def part(shapes: Iterable[tuple[int, ...]], ranks: int) -> int:
    """Numbers that the first of `ranks` ranks holds of parameters of these shapes."""
    return sum(math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in shapes)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, largest of all.

    parameters, gradients   float32, its part of them; gradients as long as training lasts (DDP's buckets)
    optimizer               AdamW's two moments, likewise
    activations             kept from forward to backward, of its own tokens
    gathered                whole parameters in the dtype of the products: two blocks, the one that computes and the
                            one that is fetched meanwhile, and what is outside of blocks; 0 where nothing is shared
    loss                    what head and loss need beside the activations: logits, or chunks of them, and gradients
    block                   what a block needs while it computes, its gradients in the dtype of the products and, on
                            their way to the other ranks, in float32
    peak                    most at one time; loss and block never are together
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int
    loss: int
    block: int
    peak: int


def rank_memory(
    config: GPTConfig, placement: Placement, batch: int, seq_len: int, *, bfloat16: bool = True,
    remat: str = "none", arch: str = "sm_90",
) -> RankMemory:  # fmt: skip
    """Of a step with `batch` sequences of seq_len tokens on each rank (of each group that shares its sequences).

    Raises:
        SettingError, SettingTypeError: as `moments.moments`; a seq_len that cannot be shared.
    """
    tokens = tokens_each(seq_len, placement)
    root, block = parameter_shapes(config.to_dict())
    mine = part(root, placement.shard_ranks) + config.n_layers * part(block, placement.shard_ranks)
    fixed = 4 * FLOAT32 * mine
    is_shared = placement.strategy != "ddp"
    products = "float32" if not bfloat16 else "bfloat16" if is_shared else "autocast"
    held = moments(
        config, batch, tokens, products=products, by_block=is_shared, arch=arch, remat=remat,
        ranks=placement.context_parallel,
    )  # fmt: skip
    gathered = of_block = end = 0
    if is_shared:
        whole = [placement.shard_ranks * part(shapes, placement.shard_ranks) for shapes in (root, block)]
        itemsize = 2 if bfloat16 else FLOAT32
        gathered = itemsize * (whole[0] + min(2, config.n_layers) * whole[1])
        of_block = FLOAT32 * whole[1]  # what is reduced, while the block before it computes
        end = itemsize * whole[0] + FLOAT32 * whole[0]
    of_block += held.of_block
    peak = fixed + max(held.activations + gathered + max(held.of_loss, of_block), held.end + end)
    return RankMemory(
        parameters=FLOAT32 * mine, gradients=FLOAT32 * mine, optimizer=2 * FLOAT32 * mine,
        activations=held.activations, gathered=gathered, loss=held.of_loss, block=of_block, peak=peak,
    )  # fmt: skip


def largest_batch(
    config: GPTConfig, placement: Placement, seq_len: int, most_bytes: int, *, bfloat16: bool, remat: str, arch: str
) -> int:
    """The most sequences of a rank whose step takes at most `most_bytes`; 0 if none fits."""

    @functools.cache
    def peak(batch: int) -> float:
        try:
            return rank_memory(config, placement, batch, seq_len, bfloat16=bfloat16, remat=remat, arch=arch).peak
        except (ValueError, RuntimeError):
            if batch == 1:
                raise
            return math.inf  # more than a launch, or an address, can count

    return largest_batch_of(peak, tokens_each(seq_len, placement), most_bytes)


def tokens_each(seq_len: int, placement: Placement) -> int:
    """Tokens of a sequence on each of the ranks that share it: two pieces, one early and one late.

    Raises:
        SettingError: seq_len is no multiple of twice their number.
    """
    return local_length("plan", seq_len, placement.context_parallel)
