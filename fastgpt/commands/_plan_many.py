"""What `fastgpt plan` prints of many GPUs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ._table import note, side_by_side

if TYPE_CHECKING:
    from ..tools.gpus import GPU

PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "AdamW's state",
    "activations": "activations",
    "gathered": "gathered layers",
    "loss": "logits and loss",
    "block": "one block's own",
    "peak": "peak",
}
HELD = (
    "The peak takes the larger of `logits and loss` and `one block's own`, which are not held together. gathered "
    "layers: two blocks, the one that computes and the next, and all outside of blocks, whole. one block's own: "
    "workspaces, and gradients on their way to the other ranks. Of each parameter a rank holds ceil(rows / ranks) rows."
)
SENT = (
    "A ring of N ranks sends (N - 1)/N of the bytes for a gather or a reduce-scatter, 2 (N - 1)/N for an all-reduce "
    "(Patarasu & Yuan 2009); what is shared and when: ZeRO, arXiv 1910.02054; FSDP, arXiv 2304.11277."
)
TIME = (
    "Counted, not measured: no GPU reaches its peak, no link its speed. Products: 6 FLOPs a parameter that multiplies "
    "and token, and the causal half of attention. Speeds are a GPU's, in one direction; those of a machine share its "
    "network adapters, one for each."
)


def text(record: dict[str, Any], gpu: GPU, dtype: str) -> str:
    """`record`: as --json has it. At most 100 columns, but for names that are longer."""
    placed, found = record["placement"], record["implementations"]
    gpus, nodes = placed["gpus"], math.ceil(placed["gpus"] / placed["gpus_per_node"])
    where = f"{nodes:,} machines of {placed['gpus_per_node']}" if nodes > 1 else "one machine"
    room = (gpu.memory - record["margin"]) / 2**30
    kept = "" if record["remat"] == "none" else f", remat {record['remat']}"
    lines = [
        f"{record['model']}: {record['n_parameters']:,} parameters on {gpus:,} GPUs ({where})",
        f"{placed['strategy']}: {_shared(placed)}",
        *([note(placed["why"])] if placed["why"] else []),
        f"an update: {_batch(record)}, {dtype}{kept}",
        f"{gpu.name}: {gpu.memory / 2**30:,.1f} GiB, less a margin of {record['margin'] / 2**30:g}: {room:,.1f} GiB",
        "",
        side_by_side(list(found), _held(found), title="a rank holds, MiB"),
        "",
        _sent(record),
        "",
        *_times(record),
        "",
        *(note(part) for part in (HELD, SENT, TIME)),
    ]
    if not gpu.runs_kernels:
        lines.append(note(f"{gpu.name} is {gpu.arch}: fastgpt's kernels need sm_75 or newer and do not run there."))
    return "\n".join(lines)


def _shared(placed: dict[str, Any]) -> str:
    gpus, shards = placed["gpus"], placed["shard_ranks"]
    if placed["strategy"] == "ddp":
        said = f"each of {gpus:,} ranks holds a whole copy"
    else:
        copies = gpus // shards
        said = f"{shards:,} ranks share {'the model' if copies == 1 else f'each of {copies:,} copies'}"
    cp = placed["context_parallel"]
    return said + (f"; {cp} ranks share each sequence" if cp > 1 else "")


def _batch(record: dict[str, Any]) -> str:
    ranks = record["placement"]["gpus"] // record["placement"]["context_parallel"]
    what = "ranks" if record["placement"]["context_parallel"] == 1 else "groups"
    return (
        f"{ranks:,} {what} x {record['accumulation']} x {record['batch_size']} sequences of {record['seq_len']:,} = "
        f"{record['tokens_per_update']:,} tokens"
    )


def _held(found: dict[str, Any]) -> dict[str, list[str]]:
    rows = {name: [f"{_mib(one[key]):,}" for one in found.values()] for key, name in PARTS.items()}
    rows["fits, with margin"] = ["yes" if one["fits"] else "no" for one in found.values()]
    rows["largest batch"] = [f"{one['largest_batch']:,}" for one in found.values()]
    return rows


def _sent(record: dict[str, Any]) -> str:
    rows = {
        message["what"]: [
            f"{message['times']:,}", f"{_mib(message['bytes']):,}", f"{_mib(message['times'] * message['bytes']):,}",
            f"{message['ranks']:,}", f"{1e3 * message['seconds']:,.1f}",
        ]
        for message in record["sent"]
    }  # fmt: skip
    columns = ("times", "MiB each", "MiB", "ranks", "ms, at least")
    return side_by_side(columns, rows, title="a rank sends in an update")


def _times(record: dict[str, Any]) -> list[str]:
    time, link, network = record["time"], record["link"], record["network"]
    speeds = _speed(link)
    if any(message["crosses_nodes"] for message in record["sent"]):
        speeds += f"; between machines {_speed(network)}"
    lines = [f"an update takes, at least: {_seconds(time['sending'])} to send ({speeds})"]
    if time["computing"] is None:
        return [*lines, f"{time['flops']:.3g} FLOPs a rank; how many a second is not known of this GPU and dtype"]
    compute = f"{time['flops']:.3g} FLOPs a rank at {time['peak_flops'] / 1e12:,.1f} TFLOP/s"
    tokens = record["tokens_per_update"]
    return [
        *lines,
        f"{' ' * 27}{_seconds(time['computing'])} to compute ({compute})",
        *(
            f"{name}: {_seconds(time[key])}, {tokens / time[key]:,.0f} tokens/s of all GPUs"
            for name, key in (("all overlaps", "all_overlaps"), ("nothing overlaps", "nothing_overlaps"))
        ),
    ]


def _speed(link: dict[str, Any]) -> str:
    speed = f"{link['bytes_per_second'] / 1e9:g} GB/s"
    return speed if link["name"] == speed else f"{link['name']}, {speed}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:,.1f} ms"


def _mib(n_bytes: int) -> int:
    return round(n_bytes / 2**20)
