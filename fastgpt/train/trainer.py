"""`Trainer`: one GPT, one token stream, one device.

    trainer = Trainer(model, train_data, TrainConfig(name="mine", steps=1000), val_data=val_data)
    result = trainer.fit()                    # or trainer.fit(resume=True)

A step is the same whoever runs it: the batch depends on the sampler's position, dropout on the random state, and both
are in the checkpoint; so an interrupted and resumed run ends with the same bits as an uninterrupted one.

Updates come before reports: a step is saved before it is validated, what an error interrupts is saved first, and
where a measurement cannot be written, training goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.settings import SettingError, SettingTypeError
from ..data import TokenDataset
from ..data.sampler import IGNORED, BatchSampler, check_dataset
from ..data.tokenizer import Tokenizer
from . import checkpoint, metrics, overwritten, run_folder
from .devices import autocast, resolve_device, resolve_dtype
from .evaluation import Validation, evaluate, fitting_seq_len
from .optim import build_adamw, learning_rate
from .run_folder import SettingsChanged
from .stopping import StopSignals
from .train_config import TrainConfig
from .training_loop import Loop, Owed, TrainResult

__all__ = [
    "SettingsChanged", "TrainConfig", "TrainResult", "Trainer", "Validation", "autocast", "evaluate", "resolve_device",
    "resolve_dtype",
]  # fmt: skip

_log = logging.getLogger("fastgpt")


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
        _check_settings(settings)
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
        self.owed = Owed()  # of `step`
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
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.owed = Owed()
        self._in_update = False
        return loss, norm, lr

    def _gradient(self) -> tuple[float, float]:
        """The gradient of the next batches, clipped. Returns (loss, norm before clipping)."""
        batches = [self.sampler.next_batch() for _ in range(self.config.grad_accum)]
        counts = [_count(targets) for _, targets in batches]
        self.optimizer.zero_grad(set_to_none=True)  # those that others left are not this step's
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
        """Train to `config.steps`, or until SIGINT, SIGTERM or SIGHUP, which save first; a second SIGINT stops at once.

        Args:
            resume: go on from the run's newest checkpoint, or from the one in this folder (those of later steps are
                then set aside). A validation that was due and did not end is made up, the last one too; a run that is
                finished stays as it is.
            overwrite: start over where a run of this name exists.
            allow_changes: resume with other settings than the run was trained with.

        Raises:
            ValueError: `overwrite`, or all steps are made, and this trainer's model is no longer the one it began with.
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
        if resume is False and self.step > 0 and (overwrite or self.step >= self.config.steps):
            raise ValueError(
                f"Trainer: this model has {self.step} updates behind it, so it cannot start over; make a new model and "
                "a new Trainer, or go on with resume=True"
            )
        try:
            run_folder.check(self.config, resume=resume is not False, overwrite=overwrite)  # before the folder is made
            with StopSignals() as self._signals, run_folder.alone(self.config):
                newest = run_folder.check(self.config, resume=resume is not False, overwrite=overwrite)
                if resume is not False:
                    self._resume(newest if resume is True else Path(resume), allow_changes=allow_changes)
                    owed = self.owed.left(self.config.folder)
                    if self.step >= self.config.steps and not owed:
                        _log.warning(
                            "%s: %d of %d steps are done, so there is nothing to do; more steps need steps=N, "
                            "allow_changes=True (--steps N --allow-changes)",
                            self.config.folder, self.step, self.config.steps,
                        )  # fmt: skip
                        newest = checkpoint.folder_of(root, self.step)
                        checkpoint.prune(root, self.config.keep, newest)
                        return TrainResult(self.step, [], None, None, newest)
                else:
                    self._start()
                    owed = Owed()
                run_folder.write_settings(self.config.folder, self.settings, resume=resume is not False)
                return Loop(self, self._signals).run(owed)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{checkpoint.kept(root)}; go on with resume=True (--resume)") from None

    def _start(self) -> None:
        overwritten.set_aside(self.config.folder)
        torch.manual_seed(self.config.seed)

    def _resume(self, folder: Path, *, allow_changes: bool) -> None:
        root = self.config.folder / "checkpoints"
        # A link to a checkpoint that is kept elsewhere is one of `root`, as is what a link to `root` leads to.
        if root.resolve() not in (folder.resolve().parent, Path(os.path.abspath(folder)).parent.resolve()):
            raise ValueError(
                f"{folder} is no checkpoint of {self.config.folder}; give one of {root}, or start a new run from its "
                "weights: GPT.from_pretrained (--init-from)"
            )
        self.load(folder, allow_changes=allow_changes)
        for path in checkpoint.set_aside_after(root, self.step):
            _log.warning("a checkpoint after step %d is now %s", self.step, path)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of this step, then drop old ones. Returns its folder.

        Raises:
            checkpoint.CheckpointError: it cannot be written. FloatingPointError: weights that are not finite.
        """
        path = self.write()
        checkpoint.prune(path.parent, self.config.keep, path)
        return path

    def write(self) -> Path:
        """As `save`, and drop none.

        Raises:
            checkpoint.CheckpointError, FloatingPointError: as `save`.
        """
        if not self._is_finite():
            raise FloatingPointError(
                f"Trainer: the weights, or the optimizer's moments, are not finite after step {self.step}, so they are "
                f"not saved; lower lr ({self.config.lr}), or set grad_clip"
            )
        state = {
            "step": self.step, "sampler": self.sampler.state_dict(), "settings": self._record(),
            "tokenizer_sha256": self.train_data.tokenizer_sha256, "owed": self.owed.state(),
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
        self.step, self.owed = state["step"], Owed.of(state)
        self.owed.validation &= self.val_data is not None
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

    def is_whole(self) -> bool:
        """Whether the parameters are those after `step` updates, and they and their moments finite."""
        return not self._in_update and self._is_finite()

    def _is_finite(self) -> bool:
        # The moments too: a gradient whose square overflows leaves finite weights, and a checkpoint of no use.
        updated = [p for p in self._trained if p in self.optimizer.state]
        moments = [m for p in updated for kind, m in self.optimizer.state[p].items() if kind != "step"]
        return not updated or bool(torch.stack([t.detach().isfinite().all() for t in updated + moments]).all())

    def _random_state(self) -> dict[str, Tensor]:
        state = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            number = torch.cuda.current_device() if self.device.index is None else self.device.index
            state[f"rng/cuda/{number}"] = torch.cuda.get_rng_state(number)
        return state

    # ---- speed and batches ------------------------------------------------------------------------------------------

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation (see `fastgpt.train.metrics`), or None where it is not known."""
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
    _check_data(model, train_data, val_data)
    if tokenizer is not None and tokenizer.sha256 != train_data.tokenizer_sha256:
        need = (
            f"({tokenizer.sha256[:12]}...) is not the one that train_data was made with "
            f"({train_data.tokenizer_sha256[:12]}...); give that one, or tokenize the data again"
        )
        raise SettingError("Trainer", "tokenizer", tokenizer.name, need)


def _check_settings(settings: dict[str, Any] | None) -> None:
    """Before a run begins, or an old one is set aside for it: what JSON cannot hold, or makes another thing of."""
    if settings is not None and not isinstance(settings, dict):
        raise SettingTypeError("Trainer", "settings", settings, "must be a dict, or None")
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        need = f"must be what JSON holds, numbers, strings, lists and dicts ({error})"
        raise SettingTypeError("Trainer", "settings", settings, need) from None


def _check_data(model: nn.Module, train_data: TokenDataset, val_data: TokenDataset | None) -> None:
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
    if val_data is not None and len(val_data) == len(train_data) and val_data.sha256 == train_data.sha256:
        _log.warning(
            "the validation data is the training data, %s: its loss does not tell what the model makes of other texts",
            val_data.name,
        )
