"""`TrainConfig`: everything that decides a training run, checked when it is made."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ..base.implementation_names import REMAT_MODES
from ..base.settings import SettingError, SettingTypeError, check_choice, check_flag, check_integer, check_number
from ..base.strategy_names import STRATEGIES

DTYPES = ("auto", "float32", "bfloat16")

_OWNER = "TrainConfig"
MOST_SEQUENCES = 1 << 20  # a batch of more would only fill the memory, slowly
_MOST_SEED = 2**64 - 1  # what torch's generators take
_MOST_TIMEOUT = 7 * 24 * 3600  # a week


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; everything that is written down with it. Read-only.

    Args:
        name: Name of the run; everything is written to <runs_dir>/<name>.
        runs_dir: Folder of all runs.
        steps: Parameter updates.
        batch_size: Sequences per micro-batch, on each rank.
        grad_accum: Micro-batches per update, on each rank; the loss is the mean over all tokens of all ranks.
        global_batch_size: Sequences per update, on all ranks together; sets grad_accum to global_batch_size /
            (batch_size * ranks / context_parallel), which must be whole.
        seq_len: Tokens per sequence; the model's max_len if not given.
        lr: Peak learning rate.
        warmup_fraction: Fraction of the steps in which the learning rate rises to its peak; a cosine follows.
        final_lr_fraction: Learning rate at the end, as a fraction of the peak.
        weight_decay: AdamW's decay, on matrices only (biases and LayerNorms keep their size).
        beta1: AdamW's decay rate of the mean gradient, below 1.
        beta2: AdamW's decay rate of the mean squared gradient, below 1.
        grad_clip: Largest norm of the gradient over all parameters; 0 = no clipping.
        log_every: Steps between lines of progress where there is no bar, as in a log file; 0 = none.
        eval_every: Steps between validations (one is made at the end in any case); 0 = only at the end.
        eval_batches: Validation batches, each of as many sequences as an update, spread over the validation data; all
            of it if not given.
        save_every: Steps between checkpoints (one is made at the end in any case); 0 = only at the end.
        keep: Checkpoints that are kept.
        spike: A loss this many standard deviations above the mean of the last 200 is told of as a spike; 0 = none is.
        seed: Of the order of the data and of dropout, 0 to 2^64 - 1.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        dtype: "bfloat16" (autocast; weights stay float32), "float32", or "auto": bfloat16 on GPUs that have it.
        strategy: How the model lies on several devices: "ddp" (each has all of it), "fsdp" (each has a part), "hsdp"
            (fsdp within groups of ranks, ddp between them), or "auto": ddp if the model fits one device, else fsdp.
        shard_ranks: Ranks that share one copy of the weights, with hsdp; those of a machine if not given.
        context_parallel: Ranks that share each sequence, for texts too long for one; must divide the ranks, and twice
            it seq_len. They see the same sequences: an update has batch_size * grad_accum * ranks / context_parallel.
        timeout: Seconds that a rank waits for another before all end.
        compile: Compile the model's blocks (a model that has none: the model) by torch.compile.
        remat: What blocks keep for the backward: "none" leaves that as it is, "selective" keeps the outputs of matrix
            products and attention and computes LayerNorm and GELU again, "full" keeps the blocks' inputs only.
        tensorboard: Write TensorBoard scalars to <runs_dir>/<name>/tensorboard.

    Raises:
        SettingError (a ValueError), SettingTypeError (a TypeError): a field that cannot be.
    """

    name: str = "run"
    runs_dir: str = "runs"
    steps: int = 1000
    batch_size: int = 16
    grad_accum: int = 1
    global_batch_size: int | None = None
    seq_len: int | None = None
    lr: float = 1e-3
    warmup_fraction: float = 0.05
    final_lr_fraction: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    log_every: int = 10
    eval_every: int = 100
    eval_batches: int | None = None
    save_every: int = 500
    keep: int = 2
    spike: float = 6.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    strategy: str = "auto"
    shard_ranks: int | None = None
    context_parallel: int = 1
    timeout: int = 600
    compile: bool = False
    remat: str = "none"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name, most in (("steps", None), ("batch_size", MOST_SEQUENCES), ("grad_accum", None), ("keep", None)):
            self._set(name, check_integer(_OWNER, name, getattr(self, name), least=1, most=most))
        self._set("context_parallel", check_integer(_OWNER, "context_parallel", self.context_parallel, least=1))
        self._set("timeout", check_integer(_OWNER, "timeout", self.timeout, least=1, most=_MOST_TIMEOUT))
        for name in ("seq_len", "eval_batches", "global_batch_size", "shard_ranks"):
            if getattr(self, name) is not None:
                self._set(name, check_integer(_OWNER, name, getattr(self, name), least=1))
        for name in ("log_every", "eval_every", "save_every"):
            self._set(name, check_integer(_OWNER, name, getattr(self, name), least=0))
        self._set("seed", check_integer(_OWNER, "seed", self.seed, least=0, most=_MOST_SEED))
        for name in ("lr", "weight_decay", "grad_clip", "spike"):
            self._set(name, check_number(_OWNER, name, getattr(self, name), least=0))
        for name in ("warmup_fraction", "final_lr_fraction"):
            self._set(name, check_number(_OWNER, name, getattr(self, name), least=0, most=1))
        for name in ("beta1", "beta2"):
            self._set(name, check_number(_OWNER, name, getattr(self, name), least=0, below=1))
        for name in ("compile", "tensorboard"):
            check_flag(_OWNER, name, getattr(self, name))
        check_choice(_OWNER, "dtype", self.dtype, DTYPES)
        check_choice(_OWNER, "strategy", self.strategy, STRATEGIES)
        if self.shard_ranks is not None and self.strategy != "hsdp":
            need = f"is for strategy hsdp, this is {self.strategy}; leave it out, or take hsdp (--strategy hsdp)"
            raise SettingError(_OWNER, "shard_ranks", self.shard_ranks, need)
        check_choice(_OWNER, "remat", self.remat, REMAT_MODES)
        if not isinstance(self.device, str):
            raise SettingTypeError(_OWNER, "device", self.device, 'must be a string, e.g. "auto", "cpu" or "cuda:1"')
        self._check_paths()

    def _check_paths(self) -> None:
        if not isinstance(self.name, str):
            raise SettingTypeError(_OWNER, "name", self.name, "must be a string, the name of the run's folder")
        if self.name in ("", ".", "..") or Path(self.name).name != self.name or "\0" in self.name:
            need = "must be the plain name of a folder, without '/'; say where with runs_dir (--runs-dir)"
            raise SettingError(_OWNER, "name", self.name, need)
        if not self.name.isprintable() or self.name.isspace():  # nobody could type what every line of the run prints
            raise SettingError(_OWNER, "name", self.name, 'must be a name that can be printed, e.g. "run"')
        if not isinstance(self.runs_dir, (str, os.PathLike)):
            raise SettingTypeError(_OWNER, "runs_dir", self.runs_dir, "must be the path of a folder")
        self._set("runs_dir", os.fspath(self.runs_dir))
        if not self.runs_dir or "\0" in self.runs_dir:
            raise SettingError(_OWNER, "runs_dir", self.runs_dir, 'must be the path of a folder, e.g. "runs"')

    def on_ranks(self, ranks: int) -> TrainConfig:
        """As it is on so many ranks: with the grad_accum that global_batch_size asks for.

        Raises:
            SettingError: global_batch_size is no multiple of batch_size * ranks / context_parallel, or grad_accum says
                otherwise; context_parallel does not divide the ranks.
        """
        if self.context_parallel > 1:
            from ..parallel.ring import check_size  # which imports torch

            ranks //= check_size(_OWNER, ranks, self.context_parallel)
        total = self.global_batch_size
        if total is None:
            return self
        each = self.batch_size * ranks
        if total % each:
            would = sorted({n for n in (total // each * each, (total // each + 1) * each) if n})
            sizes = (
                [n for n in range(1, total // ranks + 1) if total % (n * ranks) == 0][-3:] if total < 1 << 20 else []
            )
            ways = [f"take {' or '.join(map(str, would))}"]
            ways += [f"or --batch-size {' or '.join(map(str, sizes))}"] * bool(sizes)
            who = "ranks" if self.context_parallel == 1 else f"groups of {self.context_parallel} ranks"
            of = f"batch_size {self.batch_size}" + (f" times {ranks} {who}" if ranks > 1 else "")
            need = f"must be a multiple of {of}, {each}; {', '.join(ways)}"
            raise SettingError(_OWNER, "global_batch_size", total, need)
        if self.grad_accum not in (1, total // each):
            need = f"is not what global_batch_size {total} asks for, {total // each}; leave one of them out"
            raise SettingError(_OWNER, "grad_accum", self.grad_accum, need)
        return dataclasses.replace(self, grad_accum=total // each)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.runs_dir) / self.name
