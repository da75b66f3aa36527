"""`fastgpt plan`: what a training step of a model needs, before anyone rents a GPU."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..base.settings import SettingError, check_choice, check_integer, check_number

if TYPE_CHECKING:
    from ..model.config import GPTConfig
    from ..tools.gpus import GPU

PARTS = {
    "parameters": "parameters",
    "optimizer": "AdamW's state",
    "gradients": "gradients",
    "activations": "activations",
    "transient": "transient",
    "peak": "peak, their sum",
}
EXPLAINED = (
    "The parts are those of the moment when most is held, so they add up to the peak. gradients: as many as there are "
    "by then (all of them, as large as the parameters, when the backward is done, and activations are gone). "
    "activations: kept from forward to backward. transient: what the operation of that moment needs while it runs "
    "(logits, workspaces). Counted, not measured: on top of the peak a GPU needs some 0.5 to 1.5 GiB for the CUDA "
    "context, library workspaces and the allocator's rounding, for which the largest batch leaves the margin free."
)


@dataclass
class Command:
    """Memory of one training step for each implementation, and the largest batch that fits a GPU.

    Counted, not measured: tensors are laid out on paper and no memory is taken, so this runs anywhere. The peak is the
    sum of the parts at the moment when most is held. On top of it a GPU needs some 0.5 to 1.5 GiB for the CUDA context,
    library workspaces and the allocator's rounding: --margin.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]] = "gpt2-124m"
    """A preset, a run (runs/<name>), or a model's folder, transformers' GPT-2 too."""
    batch_size: int = 8
    """Sequences per step on one GPU."""
    seq_len: int | None = None
    """Tokens per sequence; the model's max_len if not given."""
    dtype: str = "auto"
    """"bfloat16" (autocast; weights stay float32), "float32", or "auto": bfloat16 on GPUs that have it."""
    gpu: str = "h200"
    """The GPU to fill: "h100", "a100-80gb", "rtx4090", "t4", ... (a wrong name lists all), or a number of GiB."""
    margin: float = 1.5
    """GiB of the GPU that the largest batch leaves free."""
    json: bool = False
    """Print one JSON object; sizes in bytes."""

    def run(self) -> int:
        import json

        from ..tools.gpus import find_gpu
        from ..train.devices import DTYPES
        from ._inputs import blamed_on, read_config

        check_integer("plan", "batch_size", self.batch_size, least=1, most=2**62)  # torch counts in 64 bits
        check_choice("plan", "dtype", self.dtype, DTYPES)
        gpu = find_gpu(self.gpu, "plan")
        check_number("plan", "margin", self.margin, least=0, below=gpu.memory / 2**30, hint=f", what {gpu.name} has")
        config = read_config(self.model)
        seq_len = config.max_len if self.seq_len is None else self.seq_len
        check_integer("plan", "seq_len", seq_len, least=1, most=config.max_len, hint=", the model's max_len")
        dtype = self.dtype if self.dtype != "auto" else "bfloat16" if gpu.has_bfloat16 else "float32"
        with blamed_on("model", self.model):
            found = self._count(config, seq_len, dtype, gpu)
        record = {
            "model": self.model, "batch_size": self.batch_size, "seq_len": seq_len, "dtype": dtype,
            "gpu": asdict(gpu), "margin": int(self.margin * 2**30), "implementations": found,
        }  # fmt: skip
        print(json.dumps(record, allow_nan=False) if self.json else self._text(record, gpu))
        return 0

    def _count(self, config: GPTConfig, seq_len: int, dtype: str, gpu: GPU) -> dict[str, dict[str, Any]]:
        from ..model.config import IMPLEMENTATION_SETS
        from ..tools import memory
        from ._status import status

        options: dict[str, Any] = {"autocast": dtype == "bfloat16", "arch": gpu.arch if gpu.runs_kernels else "sm_90"}
        room = gpu.memory - int(self.margin * 2**30)
        found = {}
        with status() as say:
            for implementation, parts in IMPLEMENTATION_SETS.items():
                if implementation == "fastgpt" and not gpu.runs_kernels:
                    continue
                say(f"counting {implementation}")
                try:
                    step = memory.training_step(config.replace(**parts), self.batch_size, seq_len, **options)
                except SettingError:  # of the model
                    raise
                except (ValueError, RuntimeError) as error:  # more than a launch, or an address, can count
                    raise SettingError("plan", "batch_size", self.batch_size, f"is too large: {error}") from None
                most = memory.largest_batch(config.replace(**parts), seq_len, room, **options)
                found[implementation] = asdict(step) | {
                    "peak": step.peak, "fits": step.peak <= room, "largest_batch": most
                }  # fmt: skip
        return found

    def _text(self, record: dict[str, Any], gpu: GPU) -> str:
        from ._table import note, side_by_side

        found = record["implementations"]
        sizes = [_rounded(one) for one in found.values()]
        rows = {name: [f"{one[key]:,}" for one in sizes] for key, name in PARTS.items()}
        rows["fits, with margin"] = ["yes" if one["fits"] else "no" for one in found.values()]
        rows["largest batch"] = [f"{one['largest_batch']:,}" for one in found.values()]
        size, room = gpu.memory / 2**30, gpu.memory / 2**30 - self.margin
        lines = [
            f"{self.model}: {self.batch_size} x {record['seq_len']:,} tokens, {record['dtype']}; in MiB",
            f"{gpu.name}: {size:,.1f} GiB, less a margin of {self.margin:g}: {room:,.1f} GiB",
            "",
            side_by_side(list(found), rows),
            "",
            note(EXPLAINED),
        ]
        if not gpu.runs_kernels:
            lines.append(note(f"{gpu.name} is {gpu.arch}: fastgpt's kernels need sm_75 or newer and do not run there."))
        return "\n".join(lines)


def _rounded(step: dict[str, int]) -> dict[str, int]:
    """Each part in MiB, rounded so that they still add up to the peak."""
    ends = itertools.accumulate((step[key] for key in PARTS if key != "peak"), initial=0)
    parts = (round(b / 2**20) - round(a / 2**20) for a, b in itertools.pairwise(ends))
    return dict(zip(PARTS, parts)) | {"peak": round(step["peak"] / 2**20)}
