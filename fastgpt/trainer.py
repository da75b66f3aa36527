"""`Trainer`: one GPT, one token stream, one device.

    trainer = Trainer(model, train_data, TrainConfig(name="mine", steps=1000), val_data=val_data)
    result = trainer.fit()                    # or trainer.fit(resume=True)

A step is the same whoever runs it: the batch depends on the sampler's position, dropout on the random state, and both
are in the checkpoint; so an interrupted and resumed run ends with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, metrics
from .data import TokenDataset
from .devices import autocast, resolve_device, resolve_dtype
from .optim import build_adamw, learning_rate
from .sampler import IGNORED, BatchSampler, sequential_batches
from .tokenizer import Tokenizer
from .train_config import TrainConfig

__all__ = [
    "TrainConfig", "TrainResult", "Trainer", "Validation", "autocast", "describe", "describe_validation", "evaluate",
    "resolve_device", "resolve_dtype",
]  # fmt: skip

_log = logging.getLogger("fastgpt")


@dataclass(frozen=True)
class Validation:
    """loss (nats per token), perplexity, bits_per_byte (None without a tokenizer), tokens that were scored."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int


@dataclass(frozen=True)
class TrainResult:
    """step: updates made; losses: of the updates of this call; stopped_by: "SIGINT", "SIGTERM" or None (finished)."""

    step: int
    losses: list[float]
    validation: Validation | None
    stopped_by: str | None
    checkpoint: Path


class Trainer:
    """Trains `model` on `train_data`; see the module's docstring.

    Args:
        model: fastgpt.GPT, or any module with `forward(idx, targets) -> .loss` (mean over targets that are not -100)
            and `save_pretrained(folder)`.
        tokenizer: saved with every checkpoint, and needed for bits per byte.
        settings: written to <run>/settings.json, for people and for `fastgpt train --config`; the config if not given.
        show_progress: a progress bar, and a line at every validation.

    Raises:
        ValueError: the data's ids do not fit the model's vocabulary, or seq_len its max_len; a device that is not here.
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: TokenDataset,
        config: TrainConfig | None = None,
        *,
        val_data: TokenDataset | None = None,
        tokenizer: Tokenizer | None = None,
        settings: dict[str, Any] | None = None,
        show_progress: bool = True,
    ) -> None:
        self.config = config = config or TrainConfig()
        self.device = resolve_device(config.device, owner="Trainer")
        self.dtype = resolve_dtype(config.dtype, self.device, owner="Trainer")
        self.model = model.to(self.device)
        self.seq_len = _checked_seq_len(model, config.seq_len)
        for data in (train_data, val_data):
            _check_vocabulary(model, data)
        self.train_data, self.val_data, self.tokenizer = train_data, val_data, tokenizer
        self.settings = settings or {"train": {k: v for k, v in dataclasses.asdict(config).items() if v is not None}}
        self.show_progress = show_progress
        self.sampler = BatchSampler(train_data, config.batch_size, self.seq_len, seed=config.seed)
        self.optimizer = build_adamw(
            model, config.lr, weight_decay=config.weight_decay, betas=(config.beta1, config.beta2)
        )
        self.step = 0
        self._forward: Callable[..., Any] = torch.compile(model) if config.compile else model
        self._stopped_by: str | None = None

    # ---- one step -------------------------------------------------------------------------------------------------

    def train_step(self) -> tuple[float, float, float]:
        """One update. Returns (loss: mean over the step's tokens, norm of the gradient, learning rate).

        Raises:
            FloatingPointError: the loss or the gradient is not finite; the parameters are left as they were.
        """
        config = self.config
        lr = learning_rate(
            self.step, steps=config.steps, peak=config.lr, warmup_fraction=config.warmup_fraction,
            final_fraction=config.final_lr_fraction,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = [self.sampler.next_batch() for _ in range(config.grad_accum)]
        n_targets = sum(_count(targets) for _, targets in batches)
        self.model.train()
        shares = []
        for idx, targets in batches:
            with self._autocast():
                loss = self._forward(self._move(idx), self._move(targets)).loss
            # Each micro-batch weighs as its tokens do: accumulating equals one large batch.
            share = loss * (_count(targets) / n_targets)
            share.backward()
            shares.append(share.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        loss, norm = torch.stack([sum(shares), norm.to(shares[0])]).tolist()  # the step's only wait for the device
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"Trainer: loss {loss}, gradient norm {norm} at step {self.step + 1}; lower lr ({config.lr}), or set "
                "grad_clip, and resume from the last checkpoint"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss, norm, lr

    @torch.no_grad()
    def validate(self, *, whole: bool = False, interruptible: bool = False) -> Validation | None:
        """Loss over `eval_batches` of the validation data (`whole`: over all of it, every token once).

        None without such data; also, if `interruptible`, when a signal has arrived.
        """
        if self.val_data is None:
            return None
        return evaluate(
            self.model, self.val_data, batch_size=self.config.batch_size, seq_len=self.seq_len, device=self.device,
            dtype=self.dtype, max_batches=None if whole else self.config.eval_batches, tokenizer=self.tokenizer,
            stop=(lambda: self._stopped_by is not None) if interruptible else None,
        )  # fmt: skip

    # ---- the loop -------------------------------------------------------------------------------------------------

    def fit(self, *, resume: bool = False, overwrite: bool = False) -> TrainResult:
        """Train to `config.steps`, or until SIGINT or SIGTERM, which save first.

        Raises:
            FileExistsError: the run exists, and neither `resume` nor `overwrite`.
            FileNotFoundError: `resume`, and there is no checkpoint.
            checkpoint.CheckpointError: a checkpoint that cannot be written or read.
        """
        folder = self.config.folder
        self._prepare_folder(folder, resume=resume, overwrite=overwrite)
        log = metrics.MetricsLog(folder / "metrics.jsonl", keep_steps=self.step)
        scalars = metrics.Scalars(folder / "tensorboard", enabled=self.config.tensorboard, first_step=self.step)
        losses: list[float] = []
        validation = None
        with contextlib.closing(log), contextlib.closing(scalars), self._signals(), self._bar() as show:
            while self.step < self.config.steps and self._stopped_by is None:
                line, validation = self._measured_step(validation)
                losses.append(line["loss"])
                log.write(line)
                scalars.write(self.step, {k: v for k, v in line.items() if k != "step"})
                show(line)
                if _due(self.step, self.config.save_every) and self.step < self.config.steps:
                    self.save()
            path = self.save()
        if self._stopped_by is not None:
            _log.warning("%s: saved %s; go on with --resume", self._stopped_by, path)
        return TrainResult(self.step, losses, validation, self._stopped_by, path)

    def _measured_step(self, validation: Validation | None) -> tuple[dict[str, Any], Validation | None]:
        """One update and, when due, a validation: the line for metrics.jsonl, and the newest validation."""
        tokens = self.config.batch_size * self.config.grad_accum * self.seq_len
        began = time.perf_counter()
        loss, norm, lr = self.train_step()
        seconds = time.perf_counter() - began
        line = {
            "step": self.step, "loss": loss, "lr": lr, "grad_norm": norm, "epoch": self.sampler.epoch,
            "tokens_per_second": tokens / seconds, "mfu": self._mfu(tokens / seconds),
            "memory_bytes": metrics.memory_bytes(self.device),
        }  # fmt: skip
        if _due(self.step, self.config.eval_every) or self.step == self.config.steps:
            found = self.validate(interruptible=True)
            if found is not None:
                validation = found
                line |= {f"val_{name}": value for name, value in dataclasses.asdict(found).items() if name != "tokens"}
        return line, validation

    def save(self) -> Path:
        """Write a checkpoint of this step, then drop old ones. Returns its folder."""
        root = self.config.folder / "checkpoints"
        state = {
            "step": self.step, "sampler": self.sampler.state_dict(), "config": dataclasses.asdict(self.config),
            "tokenizer_sha256": self.train_data.tokenizer_sha256,
        }  # fmt: skip
        path = checkpoint.folder_of(root, self.step)
        checkpoint.save(path, self.model, self.optimizer, state, self.tokenizer)
        checkpoint.prune(root, self.config.keep)
        return path

    def load(self, folder: Path) -> None:
        """Restore everything from a checkpoint's folder.

        Raises:
            checkpoint.CheckpointError: corrupted, of another shape, or made with another tokenizer.
            ValueError: the data or the sampler's settings are not the checkpoint's.
        """
        state = checkpoint.load(folder, self.model, self.optimizer)
        if state["tokenizer_sha256"] != self.train_data.tokenizer_sha256:
            raise checkpoint.CheckpointError(
                f"{folder}: trained with the tokenizer {state['tokenizer_sha256'][:12]}..., the data was made with "
                f"{self.train_data.tokenizer_sha256[:12]}...; tokenize the data with the checkpoint's tokenizer"
            )
        self.sampler.load_state_dict(state["sampler"])
        self.step = state["step"]

    def _prepare_folder(self, folder: Path, *, resume: bool, overwrite: bool) -> None:
        newest = checkpoint.latest(folder / "checkpoints")
        if resume:
            if newest is None:
                raise FileNotFoundError(f"{folder / 'checkpoints'}: nothing to resume; leave --resume out")
            self.load(newest)
        else:
            if newest is not None and not overwrite:
                raise FileExistsError(
                    f"{folder} holds a run of {checkpoint.step_of(newest)} steps; go on with --resume, start over with "
                    "--overwrite, or choose another --name"
                )
            for old in ("checkpoints", "tensorboard"):
                shutil.rmtree(folder / old, ignore_errors=True)
            torch.manual_seed(self.config.seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the loop after the current step; a second SIGINT ends the process at once."""

        def stop(number: int, frame: Any) -> None:
            self._stopped_by = signal.Signals(number).name
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self._stopped_by = None
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return
        saved = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in saved.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A progress bar: calling it with a step's line moves it."""
        if not self.show_progress:
            yield lambda line: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            MofNCompleteColumn(), BarColumn(bar_width=12), TextColumn("{task.fields[status]}"), TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
        )  # fmt: skip
        with Progress(*columns) as bar:
            task = bar.add_task("training", total=self.config.steps, completed=self.step, status="")

            def show(line: dict[str, Any]) -> None:
                bar.update(task, completed=line["step"], status=describe(line))
                if "val_loss" in line:
                    bar.console.print(describe_validation(line), highlight=False, soft_wrap=True)

            yield show

    def _mfu(self, tokens_per_second: float) -> float | None:
        flops_per_token = getattr(self.model, "flops_per_token", None)
        if flops_per_token is None:
            return None
        return metrics.mfu(tokens_per_second, flops_per_token(self.seq_len), self.device, self.dtype)

    def _autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.device, self.dtype)

    def _move(self, batch: Tensor) -> Tensor:
        return batch.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else batch


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: TokenDataset,
    *,
    batch_size: int,
    seq_len: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    max_batches: int | None = None,
    tokenizer: Tokenizer | None = None,
    stop: Callable[[], bool] | None = None,
) -> Validation | None:
    """The model's loss over `data`, every token scored once in windows of `seq_len`; None if `stop` said so.

    Bits per byte count the bytes of the scored tokens, and need the tokenizer.
    """
    lengths = None if tokenizer is None else torch.from_numpy(tokenizer.token_bytes())
    nats, tokens, n_bytes = 0.0, 0, 0
    was_training = model.training
    model.eval()
    try:
        for idx, targets in sequential_batches(data, batch_size, seq_len, max_batches):
            if stop is not None and stop():
                return None
            with autocast(device, dtype):
                loss = model(idx.to(device), targets.to(device)).loss
            valid = targets[targets != IGNORED]
            nats += float(loss) * valid.numel()
            tokens += valid.numel()
            n_bytes += 0 if lengths is None else int(lengths[valid].sum())
    finally:
        model.train(was_training)
    loss = nats / tokens
    return Validation(loss, metrics.perplexity(loss), metrics.bits_per_byte(nats, n_bytes), tokens)


def describe(line: dict[str, Any]) -> str:
    """A line of metrics.jsonl for people."""
    utilisation = "MFU n/a" if line["mfu"] is None else f"MFU {line['mfu']:.1%}"
    return (
        f"loss {line['loss']:.3f}  lr {line['lr']:.1e}  {line['tokens_per_second']:,.0f} tokens/s  {utilisation}  "
        f"{line['memory_bytes'] / 1e9:.1f} GB"
    )


def describe_validation(line: dict[str, Any]) -> str:
    """The validation in a line of metrics.jsonl, for people."""
    per_byte = line["val_bits_per_byte"]
    return (
        f"step {line['step']:>6}  validation loss {line['val_loss']:.4f}, perplexity {line['val_perplexity']:.1f}"
        f"{'' if per_byte is None else f', {per_byte:.3f} bits/byte'}"
    )


def _count(targets: Tensor) -> int:
    return int((targets != IGNORED).sum())


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _checked_seq_len(model: nn.Module, seq_len: int | None) -> int:
    max_len = getattr(getattr(model, "config", None), "max_len", None)
    if seq_len is None and max_len is None:
        raise ValueError("Trainer: seq_len is not set and the model has no config.max_len; set TrainConfig.seq_len")
    if seq_len is not None and max_len is not None and seq_len > max_len:
        raise ValueError(f"Trainer: seq_len={seq_len} exceeds the model's max_len={max_len}; lower it or raise max_len")
    return seq_len or max_len


def _check_vocabulary(model: nn.Module, data: TokenDataset | None) -> None:
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    if data is not None and vocab_size is not None and data.vocab_size > vocab_size:
        raise ValueError(
            f"Trainer: {data.name} has token ids up to {data.vocab_size - 1}, the model's vocab_size is {vocab_size}; "
            f"build the model with vocab_size={data.vocab_size}"
        )
