"""`fastgpt plan`: what a training step of a model needs, before anyone rents a GPU."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tyro.conf import Positional

from ..settings import SettingError

# Device memory as nvidia-smi reports it, in MiB (the board's nominal size less what the driver keeps).
GPUS = {
    "a100-40gb": 40960,
    "a100-80gb": 81920,
    "h100": 81559,
    "h200": 143771,
    "l4": 23034,
    "rtx4090": 24564,
    "t4": 15360,
}


@dataclass
class Command:
    """Memory of one training step for each implementation, and the largest batch that fits a GPU.

    Counted, not measured: tensors are laid out on paper and no memory is taken, so this runs anywhere. On top of it a
    GPU needs some 0.5 to 1.5 GiB for the CUDA context, library workspaces and the allocator's rounding.
    """

    model: Positional[str] = "gpt2-124m"
    """A preset, or a folder with a model's config.json."""
    batch_size: int = 8
    """Sequences per step on one GPU."""
    seq_len: int | None = None
    """Tokens per sequence; the model's max_len if not given."""
    dtype: str = "bfloat16"
    """"bfloat16" (autocast; weights stay float32) or "float32"."""
    gpu: str = "h200"
    """The GPU to fill: "a100-40gb", "a100-80gb", "h100", "h200", "l4", "rtx4090", "t4", or a number of GiB."""

    def run(self) -> int:
        from rich.console import Console
        from rich.table import Table

        from .. import memory
        from ..config import IMPLEMENTATION_SETS

        config = read_config(self.model)
        seq_len = self.seq_len or config.max_len
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f'plan: dtype must be "bfloat16" or "float32", got {self.dtype!r}')
        if self.batch_size < 1:
            raise ValueError(f"plan: batch_size must be at least 1, got {self.batch_size}")
        capacity = gpu_bytes(self.gpu)
        table = Table(title=f"{self.model}: {self.batch_size} x {seq_len} tokens, {self.dtype}, MiB")
        names = [f.name for f in fields(memory.StepMemory)]
        for column in ("implementation", *names, f"largest batch on {self.gpu}"):
            table.add_column(column, justify="left" if column == "implementation" else "right")
        for implementation, parts in IMPLEMENTATION_SETS.items():
            candidate = config.replace(**parts)
            autocast = self.dtype == "bfloat16"
            step = memory.training_step(candidate, self.batch_size, seq_len, autocast=autocast)
            most = memory.largest_batch(candidate, seq_len, capacity, autocast=autocast)
            table.add_row(implementation, *(f"{getattr(step, n) / 2**20:,.0f}" for n in names), f"{most:,}")
        Console().print(table)
        return 0


def read_config(model: str):
    """The configuration of a preset or of a saved model.

    Raises:
        ValueError: neither a preset nor a folder with a config.json.
    """
    from pathlib import Path

    from ..config import GPTConfig
    from ..presets import names

    if model.lower() in names():
        return GPTConfig.preset(model)
    if (Path(model) / "config.json").is_file():
        return GPTConfig.from_json(Path(model) / "config.json")
    raise ValueError(
        f"plan: {model!r} is neither a folder with a config.json nor a preset; presets: {', '.join(names())}"
    )


def gpu_bytes(gpu: str) -> int:
    """Bytes of a GPU by name, or of a number of GiB.

    Raises:
        ValueError: neither.
    """
    if gpu.lower() in GPUS:
        return GPUS[gpu.lower()] * 2**20
    try:
        size = float(gpu)
    except ValueError:
        size = 0.0
    if size <= 0:
        raise SettingError("plan", "gpu", gpu, f"must be one of {', '.join(GPUS)}, or a positive number of GiB")
    return int(size * 2**30)
