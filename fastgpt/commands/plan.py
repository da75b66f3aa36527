"""`fastgpt plan`: what a training step of a model needs, before anyone rents a GPU, or many."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..base.implementation_names import REMAT_MODES
from ..base.settings import SettingError, check_choice, check_integer, check_number

if TYPE_CHECKING:
    from ..model.config import GPTConfig
    from ..tools.gpus import GPU

DEFAULT = "gpt2-124m"
# Sizes by option: a field of GPTConfig each.
SIZES = {
    "layers": "n_layers", "d_model": "d_model", "heads": "n_heads", "n_kv_heads": "n_kv_heads", "d_ff": "d_ff",
    "max_len": "max_len", "vocab_size": "vocab_size",
}  # fmt: skip
MANY = ("strategy", "shard_ranks", "context_parallel", "global_batch_size", "gpus_per_node", "link", "network")

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
    """Memory of one training step for each implementation, and the largest batch that fits a GPU; of --gpus, what each
    holds and sends, and a bound on time.

    Counted, not measured: tensors are laid out on paper and no memory is taken, so this runs anywhere. The peak is the
    sum of the parts at the moment when most is held. On top of it a GPU needs some 0.5 to 1.5 GiB for the CUDA context,
    library workspaces and the allocator's rounding: --margin.
    """

    model: Positional[Annotated[str | None, arg(metavar="MODEL")]] = None
    """A preset, a run (runs/<name>), or a model's folder, transformers' GPT-2 too; gpt2-124m if not given."""
    layers: int | None = None
    """Blocks; this and the other sizes are MODEL's if not given. With --d-model and --heads no MODEL is needed."""
    d_model: int | None = None
    """Width of the residual stream."""
    heads: int | None = None
    """Query heads."""
    n_kv_heads: int | None = None
    """Key/value heads (fewer than heads: grouped-query attention)."""
    d_ff: int | None = None
    """Hidden width of the FFN."""
    max_len: int | None = None
    """Longest context, tokens."""
    vocab_size: int | None = None
    """Token ids (50304 pads GPT-2's to a multiple of 64)."""
    batch_size: int = 8
    """Sequences per step on one GPU (of many: and micro-batch)."""
    seq_len: int | None = None
    """Tokens per sequence; the model's max_len if not given."""
    dtype: str = "auto"
    """"bfloat16" (autocast; weights stay float32), "float32", or "auto": bfloat16 on GPUs that have it."""
    remat: str = "none"
    """What blocks keep for the backward: "none", "selective" or "full", as `fastgpt train` has it."""
    gpu: str = "h200"
    """The GPU to fill: "h100", "a100-80gb", "rtx4090", "t4", ... (a wrong name lists all), or a number of GiB."""
    margin: float = 1.5
    """GiB of the GPU that the largest batch leaves free."""
    gpus: int = 1
    """How many train together, a rank on each: bytes that each holds and sends, and a bound on time."""
    strategy: str | None = None
    """"ddp" (a whole copy each), "fsdp" (all share one), "hsdp" (groups share one); if not given: ddp where parameters,
    gradients and optimizer fit one GPU, else fsdp."""
    shard_ranks: int | None = None
    """GPUs that share one copy, of hsdp; those of a machine if not given."""
    context_parallel: int | None = None
    """GPUs that share each sequence."""
    global_batch_size: int | None = None
    """Sequences per update on all GPUs; it sets how many micro-batches each has. One if not given."""
    gpus_per_node: int | None = None
    """GPUs of one machine; 8 if not given."""
    link: str | None = None
    """Between the GPUs of a machine: "nvlink4", "pcie5", ... (a wrong name lists all), or GB/s of one GPU in one
    direction; as --gpu is sold if not given."""
    network: str | None = None
    """Between machines, of one GPU, likewise; "ndr" (400 Gb/s) if not given."""
    json: bool = False
    """Print one JSON object; sizes in bytes."""

    def run(self) -> int:
        import json

        from ..tools.gpus import find_gpu
        from ..train.devices import DTYPES
        from ._inputs import blamed_on, renamed

        check_integer("plan", "batch_size", self.batch_size, least=1, most=2**62)  # torch counts in 64 bits
        check_choice("plan", "dtype", self.dtype, DTYPES)
        check_choice("plan", "remat", self.remat, REMAT_MODES)
        gpu = find_gpu(self.gpu, "plan")
        check_number("plan", "margin", self.margin, least=0, below=gpu.memory / 2**30, hint=f", what {gpu.name} has")
        check_integer("plan", "gpus", self.gpus, least=1)
        self._check_alone()
        dtype = self.dtype if self.dtype != "auto" else "bfloat16" if gpu.has_bfloat16 else "float32"
        typed = [field for option, field in SIZES.items() if getattr(self, option) is not None]
        given = {field: option for option, field in SIZES.items()}
        with renamed(**given), blamed_on("model", self.model or DEFAULT, typed):
            config = self._config()
            seq_len = config.max_len if self.seq_len is None else self.seq_len
            check_integer("plan", "seq_len", seq_len, least=1, most=config.max_len, hint=", the model's max_len")
            record = {
                "model": self._named(config), "batch_size": self.batch_size, "seq_len": seq_len, "dtype": dtype,
                "remat": self.remat, "gpu": asdict(gpu), "margin": int(self.margin * 2**30),
            }  # fmt: skip
            if self.gpus > 1:
                record |= self._count_many(config, seq_len, dtype, gpu)
            else:
                record["implementations"] = self._count(config, seq_len, dtype, gpu)
        if self.json:
            print(json.dumps(record, allow_nan=False))
        elif self.gpus > 1:
            from ._plan_many import text

            print(text(record, gpu, dtype))
        else:
            print(self._text(record, gpu))
        return 0

    def _check_alone(self) -> None:
        """Raise SettingError for what only many GPUs have."""
        for name in MANY if self.gpus == 1 else ():
            if (value := getattr(self, name)) is not None:
                raise SettingError("plan", name, value, "is of many GPUs; say how many: --gpus 8, or leave it out")

    def _config(self) -> GPTConfig:
        from ..model import preset_sizes
        from ..model.config import GPTConfig
        from ._inputs import read_config

        sizes = {field: value for option, field in SIZES.items() if (value := getattr(self, option)) is not None}
        if self.model is None and {"n_layers", "d_model", "n_heads"} <= sizes.keys():
            large = {"vocab_size": preset_sizes.GPT2_VOCAB_SIZE, "max_len": preset_sizes.LARGE_MAX_LEN}
            return GPTConfig(**large | {"gelu": "tanh"} | sizes)
        config = read_config(self.model or DEFAULT)
        return config.replace(**sizes) if sizes else config

    def _named(self, config: GPTConfig) -> str:
        """MODEL, with the sizes that are not its own."""
        typed = {option: value for option in SIZES if (value := getattr(self, option)) is not None}
        name = self.model or DEFAULT
        if self.model is None and {"layers", "d_model", "heads"} <= typed.keys():
            name = f"gpt-{typed.pop('layers')}x{typed.pop('d_model')}x{typed.pop('heads')}"
        return ", ".join([name, *(f"{option.replace('_', '-')} {value}" for option, value in typed.items())])

    def _count_many(self, config: GPTConfig, seq_len: int, dtype: str, gpu: GPU) -> dict[str, Any]:
        from ..model.config import IMPLEMENTATION_SETS
        from ..tools import many_gpus
        from ..tools.links import find_link, link_of
        from ..tools.placement import place
        from ._status import status

        link = link_of(gpu.name) if self.link is None else find_link(self.link, "link", "plan")
        network = find_link("ndr" if self.network is None else self.network, "network", "plan")
        placement = place(
            config, self.gpus, gpu.memory, strategy=self.strategy or "auto", shard_ranks=self.shard_ranks, owner="plan",
            context_parallel=1 if self.context_parallel is None else self.context_parallel,
            gpus_per_node=8 if self.gpus_per_node is None else self.gpus_per_node,
        )  # fmt: skip
        accumulation = many_gpus.micro_batches(self.global_batch_size, self.batch_size, placement)
        room = gpu.memory - int(self.margin * 2**30)
        with status() as say:
            say("counting")
            return many_gpus.step(
                config, placement, gpu, batch=self.batch_size, seq_len=seq_len, room=room, link=link, network=network,
                accumulation=accumulation, bfloat16=dtype == "bfloat16", remat=self.remat,
                implementations=tuple(name for name in IMPLEMENTATION_SETS if name != "fastgpt" or gpu.runs_kernels),
            )  # fmt: skip

    def _count(self, config: GPTConfig, seq_len: int, dtype: str, gpu: GPU) -> dict[str, dict[str, Any]]:
        from ..model.config import IMPLEMENTATION_SETS
        from ..tools import memory
        from ._status import status

        options: dict[str, Any] = {
            "autocast": dtype == "bfloat16", "arch": gpu.arch if gpu.runs_kernels else "sm_90", "remat": self.remat
        }  # fmt: skip
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
        kept = "" if record["remat"] == "none" else f", remat {record['remat']}"
        lines = [
            f"{record['model']}: {self.batch_size} x {record['seq_len']:,} tokens, {record['dtype']}{kept}; in MiB",
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
