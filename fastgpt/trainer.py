"""`Trainer`: one GPT, one token stream, one device.

    trainer = Trainer(model, train_data, TrainConfig(name="mine", steps=1000), val_data=val_data)
    result = trainer.fit()                    # or trainer.fit(resume=True)

A step is the same whoever runs it: the batch depends on the sampler's position, dropout on the random state, and both
are in the checkpoint; so an interrupted and resumed run ends with the same bits as an uninterrupted one.

Updates come before reports: a step is saved before it is validated, what an error interrupts is saved first, and
where a measurement cannot be written, training goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, metrics, run_folder
from .data import TokenDataset
from .devices import autocast, resolve_device, resolve_dtype
from .evaluation import Validation, evaluate, fitting_seq_len
from .optim import build_adamw, learning_rate
from .progress import Show, progress
from .reports import reports
from .run_folder import SettingsChanged
from .sampler import IGNORED, BatchSampler, check_dataset
from .settings import SettingError, SettingTypeError
from .stopping import StopSignals
from .tokenizer import Tokenizer
from .train_config import TrainConfig

__all__ = [
    "SettingsChanged", "TrainConfig", "TrainResult", "Trainer", "Validation", "autocast", "evaluate", "resolve_device",
    "resolve_dtype",
]  # fmt: skip

_log = logging.getLogger("fastgpt")


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.fit` did.

    step        updates made so far
    losses      of the updates of this call, nats per token
    validation  the newest of this call
    stopped_by  "SIGINT", "SIGTERM" or None (finished)
    checkpoint  the folder of the newest
    """

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
        val_data: tokens of the same tokenizer, for `validate`.
        tokenizer: saved with every checkpoint, and needed for bits per byte.
        settings: written to <run>/settings.json beside the config, for people and for `fastgpt train`. What is no table
            in it is compared on resume, as the config and the model's are.
        show_progress: a progress bar on a terminal, or in a log file a line every `log_every` steps; "lines": those
            everywhere; False: nothing.

    Raises:
        ValueError, TypeError: an argument that is none; data that does not fit the model or is too small; a device that
            is not here.
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
        show_progress: bool | str = True,
    ) -> None:
        self.config = config = TrainConfig() if config is None else config
        _check_arguments(model, train_data, config, val_data, tokenizer)
        self.device = resolve_device(config.device, owner="Trainer")
        self.dtype = resolve_dtype(config.dtype, self.device, owner="Trainer")
        self.model = model.to(self.device)
        self.seq_len = fitting_seq_len("Trainer", model, config.seq_len)
        self.train_data, self.val_data, self.tokenizer = train_data, val_data, tokenizer
        self.settings = {"train": dataclasses.asdict(config)} | ({} if settings is None else settings)
        self.show_progress = show_progress
        self.sampler = BatchSampler(train_data, config.batch_size, self.seq_len, seed=config.seed)
        self.optimizer = build_adamw(
            model, config.lr, weight_decay=config.weight_decay, betas=(config.beta1, config.beta2)
        )
        owned = {p for group in self.optimizer.param_groups for p in group["params"]}
        self._trained = [p for p in model.parameters() if p in owned]
        self.step = 0
        self._forward: Callable[..., Any] = torch.compile(model) if config.compile else model
        self._signals = StopSignals()
        self._in_update = False

    # ---- one step -------------------------------------------------------------------------------------------------

    def train_step(self) -> tuple[float, float, float]:
        """One update. Returns (loss: mean over the step's tokens, norm of the gradient, learning rate).

        An error before the parameters change leaves the trainer as it was, position and random state included.

        Raises:
            FloatingPointError: the loss or the gradient is not finite.
            RuntimeError: an error has ended the update before this one when it had changed some of the parameters.
        """
        if self._in_update:
            raise RuntimeError(
                f"Trainer: update {self.step + 1} was broken off half-way, so the weights are of no step; go on from a "
                "checkpoint: fit(resume=True) or load(folder)"
            )
        config = self.config
        lr = learning_rate(
            self.step, steps=config.steps, peak=config.lr, warmup_fraction=config.warmup_fraction,
            final_fraction=config.final_lr_fraction,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        position, random_state = self.sampler.position, self._random_state()
        try:
            loss, norm = self._gradient()
        except BaseException:
            self.sampler.position = position
            checkpoint.set_rng(random_state)
            raise
        self._in_update = True  # until the step is counted, an error leaves weights of no step
        self.optimizer.step()
        self._drop_gradients()
        self.step += 1
        self._in_update = False
        return loss, norm, lr

    def _gradient(self) -> tuple[float, float]:
        """The gradient of the next batches, clipped. Returns (loss, norm before clipping)."""
        batches = [self.sampler.next_batch() for _ in range(self.config.grad_accum)]
        counts = [_count(targets) for _, targets in batches]
        self._drop_gradients()  # those that others left are not this step's
        if not self.model.training:  # who has put parts of a model in eval mode, to freeze them, finds them so
            self.model.train()
        shares = []
        for (idx, targets), count in zip(batches, counts):
            with autocast(self.device, self.dtype):
                loss = self._forward(self._move(idx), self._move(targets)).loss
            # Each micro-batch weighs as its tokens do: accumulating equals one large batch.
            share = loss * (count / sum(counts))
            share.backward()
            shares.append(share.detach())
        clip = math.inf if self.config.grad_clip == 0 else self.config.grad_clip
        # Only what is trained: a gradient that someone left on a frozen parameter is not cleared, and does not count.
        norm = torch.nn.utils.clip_grad_norm_(self._trained, clip)
        loss, norm = torch.stack([sum(shares), norm.to(shares[0])]).tolist()  # the step's only wait for the device
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"Trainer: loss {loss}, gradient norm {norm} at step {self.step + 1}; lower lr ({self.config.lr}), or "
                "set grad_clip, and go on from a checkpoint with allow_changes=True (--allow-changes)"
            )
        return loss, norm

    def _drop_gradients(self) -> None:
        for p in self._trained:
            p.grad = None

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
            stop=(lambda: self._signals.stopped_by is not None) if interruptible else None,
        )  # fmt: skip

    # ---- the loop -------------------------------------------------------------------------------------------------

    def fit(
        self, *, resume: bool | str | Path = False, overwrite: bool = False, allow_changes: bool = False
    ) -> TrainResult:
        """Train to `config.steps`, or until SIGINT or SIGTERM, which save first; a second SIGINT stops at once.

        Args:
            resume: go on from the run's newest checkpoint, or from the one in this folder (those of later steps are
                then set aside). A run that is finished stays as it is.
            overwrite: start over where a run of this name exists.
            allow_changes: resume with other settings than the run was trained with.

        Raises:
            FileExistsError: the run exists, and neither `resume` nor `overwrite`; or another process trains there.
            FileNotFoundError: `resume`, and there is no checkpoint.
            SettingsChanged: `resume` with settings that change what is computed, without `allow_changes`.
            checkpoint.CheckpointError: a checkpoint that cannot be written or read.
            FloatingPointError: a loss or a gradient that is not finite; the message says what was kept.
            KeyboardInterrupt: a second SIGINT; likewise.
        """
        root = self.config.folder / "checkpoints"
        if not isinstance(resume, (bool, str, os.PathLike)):
            raise SettingTypeError("Trainer", "resume", resume, "must be True, False or the folder of a checkpoint")
        if not callable(getattr(self.model, "save_pretrained", None)):
            need = "has no method save_pretrained(folder), by which checkpoints are written; give it one"
            raise SettingTypeError("Trainer", "model", type(self.model).__name__, need)
        try:
            run_folder.check(self.config, resume=resume is not False, overwrite=overwrite)  # before the folder is made
            with StopSignals() as self._signals, run_folder.alone(self.config):
                newest = run_folder.check(self.config, resume=resume is not False, overwrite=overwrite)
                if resume is not False:
                    self._resume(newest if resume is True else Path(resume), allow_changes=allow_changes)
                    if self.step >= self.config.steps:
                        _log.warning(
                            "%s: %d of %d steps are done, so there is nothing to do; more steps need steps=N, "
                            "allow_changes=True (--steps N --allow-changes)",
                            self.config.folder, self.step, self.config.steps,
                        )  # fmt: skip
                        return TrainResult(self.step, [], None, None, checkpoint.folder_of(root, self.step))
                else:
                    self._start()
                run_folder.write_settings(self.config.folder, self.settings, resume=resume is not False)
                return self._train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{checkpoint.kept(root)}; go on with resume=True (--resume)") from None

    def _start(self) -> None:
        run_folder.clear(self.config.folder)
        torch.manual_seed(self.config.seed)

    def _resume(self, folder: Path, *, allow_changes: bool) -> None:
        root = self.config.folder / "checkpoints"
        if folder.resolve().parent != root.resolve():
            raise ValueError(
                f"{folder} is no checkpoint of {self.config.folder}; give one of {root}, or start a new run from its "
                "weights: GPT.from_pretrained (--init-from)"
            )
        self.load(folder, allow_changes=allow_changes)
        for path in checkpoint.set_aside_after(root, self.step):
            _log.warning("a checkpoint after step %d is now %s", self.step, path)

    def _train(self) -> TrainResult:
        losses: list[float] = []
        validation = None
        with self._reports() as report:
            try:
                while self.step < self.config.steps and self._signals.stopped_by is None:
                    line = self._measured_step()
                    losses.append(line["loss"])
                    try:
                        saved, found = self._save_and_validate()
                        if found is not None:
                            validation = found
                            values = dataclasses.asdict(found).items()
                            line |= {f"val_{name}": value for name, value in values if name != "tokens"}
                    finally:
                        report(line)
                    self._check_validation(found)
                    if saved is not None:
                        checkpoint.prune(saved.parent, self.config.keep, saved)
                path = checkpoint.folder_of(self.config.folder / "checkpoints", self.step)
                if not path.exists():
                    path = self.save()
            except Exception as error:
                kept = self._rescue(error)
                if isinstance(error, FloatingPointError):
                    raise FloatingPointError(f"{error}; {kept}") from error
                if isinstance(error, checkpoint.CheckpointError):  # says so itself
                    raise
                if self.step == 0:  # nothing was there to lose
                    raise
                is_saved = checkpoint.latest(self.config.folder / "checkpoints") is not None
                then = "go on with resume=True (--resume)" if is_saved else "start again"
                _log.warning("Trainer: an error ends the run at step %d; %s; %s", self.step, kept, then)
                raise
        stopped_by = self._signals.stopped_by
        if stopped_by is not None:
            then = "go on with resume=True (--resume)" if self.step < self.config.steps else "it was the last one"
            _log.warning("%s: step %d is saved in %s; %s", stopped_by, self.step, path, then)
        return TrainResult(self.step, losses, validation, stopped_by, path)

    def _measured_step(self) -> dict[str, Any]:
        """One update. Returns its line for metrics.jsonl."""
        tokens = self.config.batch_size * self.config.grad_accum * self.seq_len
        began = time.perf_counter()
        loss, norm, lr = self.train_step()
        seconds = time.perf_counter() - began
        return {
            "step": self.step, "loss": loss, "lr": lr, "grad_norm": norm, "epoch": self.sampler.epoch,
            "tokens_per_second": tokens / seconds, "mfu": self._mfu(tokens / seconds),
            "memory_bytes": metrics.memory_bytes(self.device),
        }  # fmt: skip

    def _save_and_validate(self) -> tuple[Path | None, Validation | None]:
        """What is due after this step. Old checkpoints stay until the new one's validation is seen to be a number."""
        is_last = self.step == self.config.steps
        saved = self._write() if is_last or _due(self.step, self.config.save_every) else None
        if is_last or _due(self.step, self.config.eval_every):
            return saved, self.validate(interruptible=True)
        return saved, None

    def _check_validation(self, found: Validation | None) -> None:
        if found is not None and not found.is_finite:
            raise FloatingPointError(
                f"Trainer: the validation loss is {found.loss} at step {self.step}; lower lr ({self.config.lr}) and go "
                "on from a checkpoint before it (--resume-from), with allow_changes=True (--allow-changes)"
            )

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of this step, then drop old ones. Returns its folder.

        Raises:
            checkpoint.CheckpointError: it cannot be written. FloatingPointError: weights that are not finite.
        """
        path = self._write()
        checkpoint.prune(path.parent, self.config.keep, path)
        return path

    def _write(self) -> Path:
        if not self._is_finite():
            raise FloatingPointError(
                f"Trainer: the weights are not finite after step {self.step}, so they are not saved; lower lr "
                f"({self.config.lr})"
            )
        state = {
            "step": self.step, "sampler": self.sampler.state_dict(), "settings": self._record(),
            "tokenizer_sha256": self.train_data.tokenizer_sha256,
        }  # fmt: skip
        path = checkpoint.folder_of(self.config.folder / "checkpoints", self.step)
        checkpoint.save(path, self.model, self.optimizer, state, self.tokenizer)
        return path

    def load(self, folder: Path, *, allow_changes: bool = False) -> None:
        """Restore everything from a checkpoint's folder.

        Raises:
            checkpoint.CheckpointError: corrupted, of another shape, or made with another tokenizer.
            SettingsChanged: made with other settings, without `allow_changes`.
        """
        state = checkpoint.read_state(folder)
        if state["tokenizer_sha256"] != self.train_data.tokenizer_sha256:
            raise checkpoint.CheckpointError(
                f"{folder}: trained with the tokenizer {state['tokenizer_sha256'][:12]}..., the data was made with "
                f"{self.train_data.tokenizer_sha256[:12]}...; tokenize the data with the checkpoint's tokenizer"
            )
        checkpoint.check_fits(folder, self.model)
        changed = run_folder.differences(run_folder.saved_record(state), self._record())
        if changed:
            error = SettingsChanged(self.config.folder, changed)
            if not allow_changes:
                raise error
            _log.warning("going on with changes: %s", error.words())
        checkpoint.restore(folder, self.model, self.optimizer)
        self.sampler.load_state_dict(state["sampler"], allow_changes=allow_changes)
        self.step = state["step"]
        self._in_update = False

    def _record(self) -> dict[str, Any]:
        """All that was asked for, by name, as it is compared on resume."""
        others = {k: v for k, v in self.settings.items() if not isinstance(v, dict)}
        data = {
            "seq_len": self.seq_len,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_tokens": len(self.train_data),
            "train_sha256": self.train_data.sha256,
        }
        if self.val_data is not None:
            data["val_sha256"] = self.val_data.sha256
        return others | run_folder.model_record(self.model) | dataclasses.asdict(self.config) | data

    def _rescue(self, error: Exception) -> str:
        """After an error: save the updates that no checkpoint holds, if they are whole. Says what is kept."""
        root = self.config.folder / "checkpoints"
        newest = checkpoint.latest(root)
        if self.step == 0 or isinstance(error, checkpoint.CheckpointError):
            return checkpoint.kept(root)
        if newest is None or checkpoint.step_of(newest) < self.step:
            if self._in_update or not self._is_finite():
                return f"{checkpoint.kept(root)}, what follows it is lost"
            try:
                newest = self._write()
            except checkpoint.CheckpointError as failed:
                return str(failed)
        others = ", ".join(path.name for path in checkpoint.all_checkpoints(root) if path != newest)
        return f"{newest} is kept{f', and before it {others}' if others else ''}"

    def _is_finite(self) -> bool:
        updated = [p for p in self._trained if p in self.optimizer.state]
        return not updated or bool(torch.stack([p.detach().isfinite().all() for p in updated]).all())

    def _random_state(self) -> dict[str, Tensor]:
        state = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            number = torch.cuda.current_device() if self.device.index is None else self.device.index
            state[f"rng/cuda/{number}"] = torch.cuda.get_rng_state(number)
        return state

    # ---- reports and batches --------------------------------------------------------------------------------------

    def _reports(self) -> contextlib.AbstractContextManager[Show]:
        shown = progress(
            self.show_progress, done=self.step, total=self.config.steps, log_every=self.config.log_every
        )  # fmt: skip
        return reports(self.config.folder, shown, first=self.step, tensorboard=self.config.tensorboard)

    def _mfu(self, tokens_per_second: float) -> float | None:
        if self._flops_per_token is None:
            return None
        return metrics.mfu(tokens_per_second, self._flops_per_token, self.device, self.dtype)

    @functools.cached_property
    def _flops_per_token(self) -> float | None:
        of_length = getattr(self.model, "flops_per_token", None)
        return None if of_length is None else of_length(self.seq_len)

    def _move(self, batch: Tensor) -> Tensor:
        return batch.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else batch


def _count(targets: Tensor) -> int:
    return int((targets != IGNORED).sum())


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_arguments(
    model: nn.Module,
    train_data: TokenDataset,
    config: TrainConfig,
    val_data: TokenDataset | None,
    tokenizer: Tokenizer | None,
) -> None:
    if not isinstance(model, nn.Module):
        need = 'must be a torch.nn.Module, e.g. GPT(GPTConfig.preset("gpt2"))'
        raise SettingTypeError("Trainer", "model", model, need)
    if not isinstance(config, TrainConfig):
        raise SettingTypeError("Trainer", "config", config, "must be a TrainConfig, e.g. TrainConfig(steps=1000)")
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        need = 'must be a Tokenizer, e.g. Tokenizer.named("gpt2")'
        raise SettingTypeError("Trainer", "tokenizer", tokenizer, need)
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    for name, data in (("train_data", train_data), ("val_data", val_data)):
        if data is None and name == "val_data":
            continue
        check_dataset("Trainer", name, data)
        if vocab_size is not None and data.vocab_size > vocab_size:
            raise ValueError(
                f"Trainer: {data.name} has token ids up to {data.vocab_size - 1}, the model's vocab_size is "
                f"{vocab_size}; build the model with vocab_size={data.vocab_size}"
            )
        if data.tokenizer_sha256 != train_data.tokenizer_sha256:
            need = (
                f"was made with another tokenizer ({data.tokenizer_sha256[:12]}...) than train_data "
                f"({train_data.tokenizer_sha256[:12]}...); tokenize both with the same"
            )
            raise SettingError("Trainer", name, data.name, need)
