"""The whole cost study as one record of plain values: what `fastgpt study cost` prints, writes and draws."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...base import files
from ...pages.provenance import environment, made_by
from .config import CostConfig
from .counting import Paper, _silent, left_out, memory_cost
from .growth import BYTES, TIMES, exponents, joint
from .limits import memory_limits
from .timing import ON_A_CPU, step_times

KIND, VERSION = "cost", 1


def cost_study(
    config: CostConfig, *, time_on: str | None = None, time_limit: float = 60.0, say: Callable[[str], None] = _silent
) -> dict[str, Any]:
    """Count the bytes, find where the GPU is full, and time steps on the device `time_on` ("cuda", "cpu"; None: not).

    Returns:
        {"study": "cost", "version": 1, "config": fields of CostConfig, "dtype", "gpu": {"name", "memory", "arch"},
        "room": bytes that a step may take, "rows": as of `memory_cost`, "limits": as of `memory_limits`, "times": as
        of `step_times`, or None, "exponents" and "joint": as of `exponents` and `joint`, of bytes and of seconds,
        "left_out": {implementation: why}, "seconds": that all of it took, "environment", "made_by"}

    Raises:
        SettingError, SettingTypeError: as these.
    """
    began = time.perf_counter()
    paper = Paper.of(config)
    rows = memory_cost(config, say=say)
    times = None if time_on is None else step_times(config, time_on, limit=time_limit, say=say)
    limits = memory_limits(config, say=say)
    timed = times.rows if times is not None else []
    without = left_out(config, paper)
    if times is not None and not times.device.startswith("cuda") and "fastgpt" not in without:
        without = {"fastgpt, in time": ON_A_CPU}
    return {
        "study": KIND, "version": VERSION, "config": dataclasses.asdict(config), "dtype": paper.dtype,
        "gpu": dataclasses.asdict(paper.gpu), "room": paper.room(config), "rows": rows, "limits": limits,
        "times": None if times is None else dataclasses.asdict(times),
        "exponents": [*exponents(config, rows, BYTES), *exponents(config, timed, TIMES)],
        "joint": [*joint(config, rows, BYTES), *joint(config, timed, TIMES)],
        "left_out": without, "seconds": time.perf_counter() - began,
        "environment": environment(), "made_by": made_by(),
    }  # fmt: skip


def config_of(record: Mapping[str, Any]) -> CostConfig:
    """The grid of a record."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in record["config"].items()
    }
    return CostConfig(**fields)


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a record of this study that `write_record` wrote."""
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("study") == KIND
