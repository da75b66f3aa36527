"""Bytes of a training step at each point of the grid, on paper: no memory is taken, and no GPU needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ...base.settings import SettingError, check_integer, check_number
from ...kernels import support
from ...model.config import IMPLEMENTATION_SETS
from ...tools import memory
from ...tools.gpus import GPU, find_gpu
from .config import GRIDS, CostConfig, Point

_OWNER = "CostConfig"
_BLAMED = {"n_layers": "layers", "max_len": "seq_lens", "seq_len": "seq_lens", "d_model": "widths", "n_heads": "heads"}


def _silent(text: str) -> None:
    pass


class Paper(NamedTuple):
    """What counting goes by: the GPU, and the keyword arguments of `fastgpt.tools.memory` that it means."""

    gpu: GPU
    dtype: str
    options: dict[str, Any]

    @classmethod
    def of(cls, config: CostConfig) -> Paper:
        """Raises SettingError for a GPU that is none, or a margin that leaves nothing of it."""
        gpu = find_gpu(config.gpu, _OWNER)
        check_number(_OWNER, "margin", config.margin, least=0, below=gpu.memory / 2**30, hint=f", what {gpu.name} has")
        dtype = config.dtype if config.dtype != "auto" else "bfloat16" if gpu.has_bfloat16 else "float32"
        arch = gpu.arch if gpu.runs_kernels else "sm_90"
        return cls(gpu, dtype, {"autocast": dtype == "bfloat16", "arch": arch})

    def room(self, config: CostConfig) -> int:
        """Bytes that a training step may take."""
        return self.gpu.memory - int(config.margin * 2**30)


def left_out(config: CostConfig, paper: Paper) -> dict[str, str]:
    """{implementation: why it is not counted}."""
    widest = max(point.width for point in config.points()) // config.heads
    if not support.has_triton():
        return {"fastgpt": "Triton is not installed, and it lays the kernels out"}
    if not paper.gpu.runs_kernels:
        return {"fastgpt": f"{paper.gpu.name} is {paper.gpu.arch}: the kernels need sm_75 or newer"}
    if widest > support.MAX_HEAD_DIM:
        need = f"a head of {widest} is wider than the kernels take, {support.MAX_HEAD_DIM}; give more heads"
        return {"fastgpt": need}
    return {}


def memory_cost(config: CostConfig, *, say: Callable[[str], None] = _silent) -> list[dict[str, Any]]:
    """Bytes of a training step of AdamW for each implementation and point, laid out on paper.

    Returns:
        Rows {"implementation", "layers", "seq_len", "width", ...bytes...}:

        activations  what the blocks keep from forward to backward of the batch: O(L·T·D) in the papers. Without what
                     does not grow with the batch (bfloat16 copies of weights), and without head and loss
        working      activations and transient tensors (logits, workspaces) at the moment when most is held
        weights      float32 weights, their gradients and AdamW's two moments
        peak         all that is held at that moment

    Raises:
        SettingError, SettingTypeError: an unknown GPU; sizes beyond what can be counted.
    """
    paper = Paper.of(config)
    check_integer(_OWNER, "layers", max(p.layers for p in config.points()), least=1, most=memory.MOST_LAYERS,
                  hint=" to be counted: each layer is laid out on paper")  # fmt: skip
    points, without = config.points(), left_out(config, paper)
    sets = {name: parts for name, parts in IMPLEMENTATION_SETS.items() if name not in without}
    rows: list[dict[str, Any]] = []
    for name, parts in sets.items():
        for point in points:
            say(f"counting bytes, {len(rows) + 1} of {len(sets) * len(points)}: {name}, {point}")
            rows.append({"implementation": name, **point._asdict(), **_counted(config, point, parts, paper)})
    return rows


def _counted(config: CostConfig, point: Point, parts: dict[str, str], paper: Paper) -> dict[str, int]:
    try:
        model = config.model(point, parts)
        step = memory.training_step(model, config.batch_size, point.seq_len, **paper.options)
        once, twice = (
            memory.kept_activations(model, n * config.batch_size, point.seq_len, **paper.options) for n in (1, 2)
        )
    except SettingError as error:
        name = _BLAMED.get(error.name, error.name)
        axis = next((axis for axis, grid in GRIDS.items() if grid == name), None)
        value = error.value if axis is None else getattr(point, axis)
        raise SettingError(_OWNER, name, value, error.need) from None
    except (ValueError, RuntimeError) as error:  # more than a launch, or an address, can count
        raise SettingError(_OWNER, "batch_size", config.batch_size, f"is too large for {point}: {error}") from None
    return {
        "activations": twice - once,
        "working": step.activations + step.transient,
        "weights": 2 * step.parameters + step.optimizer,  # gradients: as large as the weights when all are there
        "peak": step.peak,
    }
