"""A training step on many GPUs, on paper: bytes of a rank, bytes that it sends, and a bound on the update's time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ..base.settings import SettingError, check_integer
from ..model.config import IMPLEMENTATION_SETS, GPTConfig
from ..model.size import count_parameters
from ..train.metrics import peak_flops
from .gpus import GPU
from .links import Link
from .placement import Placement
from .rank_memory import largest_batch, rank_memory
from .rank_traffic import Message, messages, update_flops


def micro_batches(global_batch_size: int | None, batch: int, placement: Placement) -> int:
    """How many an update has, of `batch` sequences on each rank; 1 if nobody says how many sequences an update has.

    Raises:
        SettingError, SettingTypeError: below 1, or no multiple of what one micro-batch of all ranks has.
    """
    if global_batch_size is None:
        return 1
    check_integer("plan", "global_batch_size", global_batch_size, least=1)
    each = batch * placement.data_ranks
    if global_batch_size % each:
        low = global_batch_size - global_batch_size % each
        near = " or ".join(f"{n:,}".replace(",", "") for n in (low, low + each) if n)
        ranks = f"{batch} (--batch-size) x {placement.data_ranks} ranks"
        if placement.context_parallel > 1:
            ranks += f" of {placement.context_parallel} GPUs"
        need = f"must be a multiple of {each}, {ranks}; take {near}"
        raise SettingError("plan", "global_batch_size", global_batch_size, need)
    return global_batch_size // each


def step(
    config: GPTConfig, placement: Placement, gpu: GPU, *, batch: int, seq_len: int, room: int, link: Link,
    network: Link, accumulation: int = 1, bfloat16: bool = True, remat: str = "none",
    implementations: tuple[str, ...] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything as JSON has it, in bytes and seconds.

    room: bytes of a GPU that may be used. accumulation: micro-batches of an update. link, network: see
    `Message.seconds`. time: at least; null where the GPU's peak is not known (`train.metrics.PEAK_BF16`).

    Raises:
        SettingError, SettingTypeError: as `rank_memory`.
    """
    arch = gpu.arch if gpu.runs_kernels else "sm_90"
    how: dict[str, Any] = {"bfloat16": bfloat16, "arch": arch, "remat": remat}
    found = {}
    for name in implementations or tuple(IMPLEMENTATION_SETS):
        chosen = config.replace(**IMPLEMENTATION_SETS[name])
        try:
            held = rank_memory(chosen, placement, batch, seq_len, **how)
        except SettingError:
            raise
        except (ValueError, RuntimeError) as error:  # more than a launch, or an address, can count
            raise SettingError("plan", "batch_size", batch, f"is too large: {error}") from None
        most = largest_batch(chosen, placement, seq_len, room, **how)
        found[name] = asdict(held) | {"fits": held.peak <= room, "largest_batch": most}
    sent = messages(config, placement, batch, seq_len, accumulation, bfloat16=bfloat16, remat=remat)
    sequences = batch * accumulation * placement.data_ranks
    flops = update_flops(config, placement, sequences, seq_len, remat=remat)
    peak = peak_of(gpu, bfloat16=bfloat16)
    return {
        "n_parameters": count_parameters(config.to_dict()),
        "placement": asdict(placement),
        "accumulation": accumulation,
        "global_batch_size": sequences,
        "tokens_per_update": sequences * seq_len,
        "implementations": found,
        "sent": [_sent(message, link, network) for message in sent],
        "sent_bytes": sum(message.sent for message in sent),
        "link": asdict(link),
        "network": asdict(network),
        "time": _time(flops, peak, sum(message.seconds(link, network) for message in sent)),
    }


def _sent(message: Message, link: Link, network: Link) -> dict[str, Any]:
    return {
        "what": message.what, "times": message.times, "bytes": message.n_bytes, "ranks": message.group.size,
        "crosses_nodes": message.group.crosses, "seconds": message.seconds(link, network),
    }  # fmt: skip


def _time(flops: int, peak: float | None, sending: float) -> dict[str, float | int | None]:
    computing = None if peak is None else flops / peak
    return {
        "flops": flops, "peak_flops": peak, "computing": computing, "sending": sending,
        "all_overlaps": None if computing is None else max(computing, sending),
        "nothing_overlaps": None if computing is None else computing + sending,
    }  # fmt: skip


def peak_of(gpu: GPU, *, bfloat16: bool = True) -> float | None:
    """Dense FLOP/s of a GPU, found by the name that data sheets give it ("RTX 4090", "H100 NVL"); None: unknown."""
    name = gpu.name.upper().replace("-", " ").replace("RTX", "RTX ")
    name = "RTX A6000" if name == "A6000" else name
    return peak_flops(name, torch.bfloat16 if bfloat16 else torch.float32)
