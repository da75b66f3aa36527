"""`Trainer`: one GPT, one token stream, one device.

    trainer = Trainer(model, train_data, TrainConfig(name="mine", steps=1000), val_data=val_data)
    result = trainer.fit()                    # or trainer.fit(resume=True)

The step itself is in `updates.py`, what follows it in `training_loop.py`. What a step depends on, the sampler's
position and the random state, is in the checkpoint; so an interrupted and resumed run ends with the same bits as an
uninterrupted one.

Updates come before reports: a step is saved before it is validated, what an error interrupts is saved first, and
where a measurement cannot be written, training goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base.settings import SettingTypeError
from ..data import TokenDataset
from ..data.tokenizer import Tokenizer
from ..parallel.world import World
from . import checkpoint, elastic, overwritten, run_folder, run_report
from .arguments import check_arguments, check_settings
from .devices import autocast, resolve_device, resolve_dtype
from .evaluation import Validation, evaluate
from .owed import Owed
from .run_folder import SettingsChanged
from .saver import Saver
from .stopping import StopSignals
from .train_config import TrainConfig
from .training_loop import Loop, TrainResult
from .training_state import begin_rng
from .updates import Updates

__all__ = [
    "SettingsChanged", "TrainConfig", "TrainResult", "Trainer", "Validation", "autocast", "evaluate", "resolve_device",
    "resolve_dtype",
]  # fmt: skip

_log = logging.getLogger("fastgpt")


class Trainer(Updates):
    """Trains `model` on `train_data`; see the module's docstring.

    Args:
        model: fastgpt.GPT, or any module with `forward(idx, targets) -> .loss` (mean over targets that are not -100)
            and `save_pretrained(folder)`.
        val_data: tokens of the same tokenizer, for `validate`.
        tokenizer: saved with every checkpoint, and needed for bits per byte.
        settings: written to <run>/settings.json beside the config, for people and for `fastgpt train`. What is no table
            in it is compared on resume, as the config and the model's are.
        world: the ranks that train together (`fastgpt.parallel.launch.world`), each of which makes a Trainer and calls
            its methods alike; those of torch.distributed if it is initialised, else this process alone.
        fill: gives a model on the meta device its values, once it is on the ranks' devices; its own `init_weights` if
            not given.
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
        world: World | None = None,
        fill: Callable[[nn.Module], object] | None = None,
    ) -> None:
        config = TrainConfig() if config is None else config
        check_arguments(model, train_data, config, val_data, tokenizer)
        check_settings(settings)
        super().__init__(model, train_data, config, world=world, fill=fill)
        self.train_data, self.val_data, self.tokenizer = train_data, val_data, tokenizer
        self.settings = {"train": dataclasses.asdict(config)} | ({} if settings is None else settings)
        self.show_progress = show_progress

    # ---- what is measured ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, *, whole: bool = False, interruptible: bool = False) -> Validation | None:
        """Loss over `eval_batches` of the validation data (`whole`: over all of it, every token once).

        None without such data; also, if `interruptible`, when a signal has arrived.
        """
        if self.val_data is None:
            return None
        most = None if whole else self.config.eval_batches
        if most is not None:  # each of as many sequences as an update, however ranks and micro-batches share it
            most *= self.config.grad_accum * self.sampler.world_size
        stop = (lambda: self._signals.stopped_by is not None) if interruptible else None
        if self.world.size > 1 and self._signals.stopped_by is None:
            stop = (
                None  # ranks agree on a signal between steps only: to ask at each batch would be a message for nothing
            )
        return evaluate(
            self.model, self.val_data, batch_size=self.config.batch_size, seq_len=self.seq_len, device=self.device,
            dtype=self.dtype, max_batches=most, tokenizer=self.tokenizer, world=self.world,
            stop=stop,
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
            overwrite: start over where a run of this name exists. Where torch elastic has restarted the job, neither
                counts once the job has saved: it goes on from there.
            allow_changes: resume with other settings than the run was trained with.

        Raises:
            ValueError: a rank has other data or settings than rank 0; or `overwrite`, or all steps are made, and this
                trainer's model is no longer the one it began with.
            FileExistsError: the run exists, and neither `resume` nor `overwrite`; or another process trains there.
            FileNotFoundError: `resume`, and there is no checkpoint.
            SettingsChanged: `resume` with settings that change what is computed, without `allow_changes`.
            checkpoint.CheckpointError: a checkpoint that cannot be written or read.
            FloatingPointError: the third step in a row whose loss or gradient is not finite (each is skipped), a
                validation loss that is not, or weights; the message says what was kept.
            KeyboardInterrupt: a second SIGINT; likewise.
        """
        root = self.config.folder / "checkpoints"
        resume, overwrite = elastic.resume_of(self.config, resume, overwrite, self.world)
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
        run_folder.check_alike(self.world.objects(self._record()))
        try:
            self._check_folder(resume, overwrite)  # before the folder is made
            signals, folder = StopSignals(alone=self.world.size == 1), run_folder.held(self.config, self.world)
            with signals as self._signals, folder, self._batches:
                newest = self._check_folder(resume, overwrite)
                if resume is not False:
                    assert newest is not None  # else `check` has raised
                    self._resume(newest if resume is True else Path(resume), allow_changes=allow_changes)
                    owed = self.owed.left(self.config.folder)
                    if self.step >= self.config.steps and not owed:
                        _log.warning(
                            "%s: %d of %d steps are done, so there is nothing to do; more steps need steps=N, "
                            "allow_changes=True (--steps N --allow-changes)",
                            self.config.folder, self.step, self.config.steps,
                        )  # fmt: skip
                        newest = checkpoint.folder_of(root, self.step)
                        self.saver.prune(root, self.config.keep, newest)
                        if self.world.is_first:
                            run_report.write_missing(self)
                        return TrainResult(self.step, [], None, None, newest)
                else:
                    self._start()
                    owed = Owed()
                with self.world.together():
                    if self.world.is_first:
                        run_folder.write_settings(self.config.folder, self.settings, resume=resume is not False)
                return Loop(self, self._signals).run(owed)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{checkpoint.kept(root)}; go on with resume=True (--resume)") from None

    def _check_folder(self, resume: bool | str | Path, overwrite: bool) -> Path | None:
        return self.world.by_first(
            lambda: run_folder.check(self.config, resume=resume is not False, overwrite=overwrite)
        )

    def _start(self) -> None:
        self.world.by_first(lambda: overwritten.set_aside(self.config.folder))
        begin_rng(self.config.seed, self.world.rank)

    def _resume(self, folder: Path, *, allow_changes: bool) -> None:
        root = self.config.folder / "checkpoints"
        # A link to a checkpoint that is kept elsewhere is one of `root`, as is what a link to `root` leads to.
        if root.resolve() not in (folder.resolve().parent, Path(os.path.abspath(folder)).parent.resolve()):
            raise ValueError(
                f"{folder} is no checkpoint of {self.config.folder}; give one of {root}, or start a new run from its "
                "weights: GPT.from_pretrained (--init-from)"
            )
        self.load(folder, allow_changes=allow_changes)
        for path in self.world.by_first(lambda: list(checkpoint.set_aside_after(root, self.step))):
            _log.warning("a checkpoint after step %d is now %s", self.step, path)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def saver(self) -> Saver:
        """Writes this run's checkpoints."""
        return Saver(self.world, strategy=self.strategy.name, timeout=self.config.timeout)

    def save(self) -> Path:
        """Write a checkpoint of this step, then drop old ones. Returns its folder.

        Raises:
            checkpoint.CheckpointError: it cannot be written. FloatingPointError: weights that are not finite.
        """
        path = self.write()
        self.saver.prune(path.parent, self.config.keep, path)
        self.saver.wait()
        return path

    def write(self) -> Path:
        """As `save`, and drop none. Where many ranks train it is whole later: `saver.wait`.

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
        self.saver.save(path, self.model, self.optimizer, state, self.tokenizer)
        return path

    def load(self, folder: Path, *, allow_changes: bool = False) -> None:
        """Restore everything from a checkpoint's folder.

        Raises:
            checkpoint.CheckpointError: corrupted, of another shape, or made with another tokenizer.
            SettingsChanged: made with other settings, without `allow_changes`.
            OtherRankError: one of these, of another rank.
        """
        with self.world.together():
            self._load(folder, allow_changes)

    def _load(self, folder: Path, allow_changes: bool) -> None:
        """On each rank alone, so that whatever fails on one of them ends all."""
        state = checkpoint.read_state(folder, self.world)
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
        checkpoint.restore(folder, self.model, self.optimizer, self.world)
        self.sampler.load_state_dict(state["sampler"], allow_changes=allow_changes)
        self.step, self.owed = state["step"], Owed.of(state)
        self.owed.validation &= self.val_data is not None
        self._start_afresh()

    def _record(self) -> dict[str, Any]:
        """All that was asked for, by name, as it is compared on resume."""
        others = {k: v for k, v in self.settings.items() if not isinstance(v, dict)}
        data = {
            "seq_len": self.seq_len,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_tokens": len(self.train_data),
            "train_sha256": self.train_data.sha256,
        }
        if self.sampler.world_size > 1:
            data["ranks"] = self.sampler.world_size  # that see other sequences
        if self.val_data is not None:
            data["val_sha256"] = self.val_data.sha256
        return others | run_folder.model_record(self.model) | dataclasses.asdict(self.config) | data
