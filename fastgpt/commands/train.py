"""`fastgpt train`: train a GPT."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..base.settings import SettingError, check_integer, check_number, shown
from ..model import presets
from ..model.config import GPTConfig, may_change
from ..train.train_config import TrainConfig
from ._signals import STATUS

if TYPE_CHECKING:
    from ..data import TokenDataset
    from ..data.tokenizer import Tokenizer
    from ..model.gpt import GPT
    from ..model.one_head import OneHeadLM
    from ..model.one_head_config import OneHeadConfig
    from ..parallel.world import World
    from ..train.trainer import TrainResult

DEFAULT_PRESET = "depth-4x256x4"
DEFAULT_TOKENIZER = "gpt2"


@dataclass
class ModelOptions:
    """Shape of the model. What is not given is the preset's."""

    preset: str | None = None
    """GPT-2 sizes: gpt2 (124M), gpt2-medium, gpt2-large, gpt2-xl; for many GPUs:
    gpt-{32,64,96}x{4096x32,6144x48,8192x64} (layers x width x heads); depth study: depth-{2,4,8,12}x{256,512}x{4,8};
    one-head: OneHeadLM, with --d-model and --max-len only. If not given: depth-4x256x4."""
    n_layers: int | None = None
    """Blocks."""
    n_heads: int | None = None
    """Query heads."""
    n_kv_heads: int | None = None
    """Key/value heads (fewer than n_heads: grouped-query attention)."""
    d_model: int | None = None
    """Width of the residual stream."""
    d_ff: int | None = None
    """Hidden width of the FFN."""
    max_len: int | None = None
    """Longest context, tokens."""
    vocab_size: int | None = None
    """Token ids; the tokenizer's number if not given (50304 pads GPT-2's to a multiple of 64)."""
    dropout: float | None = None
    """Probability, on embeddings, attention weights and sub-layer outputs."""
    bias: bool | None = None
    """Biases in projections, FFN and LayerNorms."""
    tie_weights: bool | None = None
    """The head is the token embedding."""
    gelu: str | None = None
    """"none" (exact, erf) or "tanh"."""
    attn_impl: str | None = None
    """"auto", "triton", "sdpa" or "reference"."""
    norm_impl: str | None = None
    """"auto", "triton", "torch" or "reference"."""
    ffn_impl: str | None = None
    """"auto", "triton", "torch" or "reference"."""
    loss_impl: str | None = None
    """"auto", "triton", "torch" or "reference"."""

    def given(self) -> dict[str, Any]:
        """The fields of the model's config that were asked for."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k != "preset"}

    def config(self, vocab_size: int) -> GPTConfig | OneHeadConfig:
        """What `presets.make` makes the model from."""
        preset = DEFAULT_PRESET if self.preset is None else self.preset
        return presets.config(preset, **{"vocab_size": vocab_size} | self.given())

    def check_fits(self, config: GPTConfig | OneHeadConfig, path: str) -> None:
        """Raise SettingError where what was asked for is not what the model in `path` has."""
        if self.preset is not None:
            preset = presets.config(self.preset, vocab_size=config.vocab_size)
            asked = {k: v for k, v in preset.to_dict().items() if not may_change(k)}
            differ = [f"{k} {v} (the model: {_has(config, k)})" for k, v in asked.items() if v != _has(config, k)]
            if type(preset) is not type(config):
                differ.insert(0, f"a {_kind(preset)} (the model: {_kind(config)})")
            if differ:
                need = f"has {', '.join(differ)}: the model in {path} decides its shape; leave --preset out"
                raise SettingError("train", "preset", self.preset, need)
        for name, value in self.given().items():
            if not may_change(name) and value != _has(config, name):
                need = f"is not what the model in {path} has ({_has(config, name)}), which decides; leave it out"
                raise SettingError("train", name, value, need)


def _has(config: GPTConfig | OneHeadConfig, name: str) -> Any:
    return getattr(config, name, "no such setting")


def _kind(config: GPTConfig | OneHeadConfig) -> str:
    return type(config).__name__.removesuffix("Config")


def _check_same_model(asked: GPTConfig | OneHeadConfig, saved: GPTConfig | OneHeadConfig, start: Path) -> None:
    """Raise SettingError where a run is to be resumed by another model than it has."""
    for name in asked.to_dict():
        if may_change(name):
            continue
        value, has = (getattr(config, name, None) for config in (asked, saved))
        if value != has:
            need = f"is not what the model in {start} has ({has}), which is gone on with; leave it out"
            raise SettingError("train", name, value, need)


class _Made(NamedTuple):
    """make: the model; without values, on the meta device, where each rank is to hold a part of it: then `fill` gives
    them, or the model's own `init_weights`."""

    make: Callable[[], GPT | OneHeadLM]
    fill: Callable[[Any], object] | None = None


@dataclass
class Command:
    """Train a GPT on texts or token shards. Everything is written to <runs-dir>/<name>; Ctrl-C saves first."""

    data: tuple[str, ...] = ("shakespeare",)
    """Training data: "shakespeare" (embedded), a folder of `fastgpt prepare`, or text files and folders."""
    val_data: tuple[str, ...] = ()
    """Validation data, named likewise; if not given, the last part of the training data (of "shakespeare": its own)."""
    val_fraction: float = 0.01
    """Fraction of the training tokens that is held out when there is no validation data."""
    verify: bool = False
    """Hash every file of the data and of --init-from's checkpoint, those too that are not read here or look
    untouched."""
    tokenizer: str | None = None
    """"gpt2" (50,257 ids), "shakespeare" (4,096 ids), or a .tiktoken file; if not given, --init-from's, or gpt2."""
    init_from: str | None = None
    """Start from this model's weights (a run or a model's folder) in place of random ones; its shape and its tokenizer
    come with them."""
    resume: bool = False
    """Go on from the newest checkpoint of the run (--name, --runs-dir), with the settings that it was started with."""
    resume_from: str | None = None
    """Go on from this checkpoint, e.g. runs/run/checkpoints/step-00000500, when the newest is damaged or no good. Later
    ones are set aside."""
    allow_changes: bool = False
    """Resume with other settings than the run was trained with."""
    overwrite: bool = False
    """Start again where a run of this name exists."""
    threads: int | None = None
    """CPU threads that torch computes with; its own choice if not given."""
    progress: bool = True
    """Show progress bars (in a log file, and with --no-progress: lines, see --log-every)."""
    config: str | None = None
    """TOML, YAML or JSON file with these settings, in tables [model] and [train]; options override it. Every run
    leaves such a file: <runs-dir>/<name>/settings.json."""
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def settings_file(cls, values: dict[str, Any]) -> Path | None:
        """The settings of the run that is resumed. Puts into `values`, what was typed, the run's name and place, and
        what another strategy and a batch of all ranks leave out.

        Raises:
            FileNotFoundError: no such run.
        """
        from ..train import run_folder

        if values.get("overwrite"):  # which `_check` refuses beside --resume
            return None
        if values.get("resume_from") is not None:
            path = Path(values["resume_from"])
            folder = (path if len(path.parts) > 3 else Path(os.path.abspath(path))).parent.parent
            for name, found in (("name", folder.name), ("runs_dir", str(folder.parent))):
                if Path(values.setdefault(name, found)) != Path(found):
                    option = f"--{name.replace('_', '-')} {shown(values[name])}"
                    raise ValueError(f"{option} is not where --resume-from {path} lies ({found}); leave it out")
        elif not values.get("resume"):
            return None
        if values.get("strategy") not in (None, "hsdp"):  # by which a run of hsdp goes on
            values.setdefault("shard_ranks", None)
        if values.get("global_batch_size") is not None:  # which sets it anew
            values.setdefault("grad_accum", TrainConfig.grad_accum)
        folder = Path(values.setdefault("runs_dir", TrainConfig.runs_dir), values.setdefault("name", TrainConfig.name))
        run_folder.settle(folder)
        path = folder / "settings.json"
        if not os.path.isfile(path):  # False also where the name is too long
            if values.get("resume_from") is not None:
                what = f"is no checkpoint of a run, so nothing to resume (no {path})"
                need = f"{what}; give runs/<name>/checkpoints/step-<number>"
                raise SettingError("train", "resume_from", values["resume_from"], need)
            raise FileNotFoundError(
                f"{path}: no such file, so nothing to resume; name the run with --name (here: {shown(folder.name)}) "
                f"and --runs-dir (here: {shown(str(folder.parent))}), or leave --resume out"
            )
        return path

    def run(self) -> int:
        from ..parallel import launch
        from ._ranks import quiet

        is_grouped = self.train.strategy != "auto"
        with launch.world(self.train.device, timeout=self.train.timeout, group=is_grouped) as world, quiet(world):
            return self._answer(world)

    def _answer(self, world: World) -> int:
        from ..train.run_folder import SettingsChanged

        try:
            return self._run(world)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._kept()) from None
        except SettingsChanged as error:
            names = {f.name for group in (self, self.model, self.train) for f in dataclasses.fields(group)}
            words = error.words(lambda name: f"--{name.replace('_', '-')}" if name in names else name, " ")
            then = "leave that out" if names & set(error.differences) else "give it the same"
            raise ValueError(
                f"{error.folder} was trained with {words}; {then}, or go on with the new by --allow-changes"
            ) from None
        except FloatingPointError as error:
            from ._mistakes import describe

            if world.is_first:
                print(f"fastgpt train: error: {describe(error, None)}", file=sys.stderr)
            return 1

    def _run(self, world: World) -> int:
        import torch

        from ..train import metrics
        from ..train.devices import threads_hint
        from ..train.trainer import Trainer

        self._take_up(world)
        start = self._check(world)
        with world.together():
            tokenizer, made = self._model(start, world)
        train_data, val_data = self._data(tokenizer, world)
        torch.manual_seed(self.train.seed)
        with world.together():
            model = made.make()
        trainer = Trainer(
            model, train_data, self.train, val_data=val_data, tokenizer=tokenizer, settings=self._settings(),
            show_progress=self.progress or "lines", world=world, fill=made.fill,
        )  # fmt: skip
        print(
            f"{model.num_parameters():,} parameters, {len(train_data):,} training and {len(val_data):,} validation "
            f"tokens, {str(trainer.dtype).removeprefix('torch.')} on {trainer.device}; writing {self.train.folder}",
            flush=True,
        )
        if trainer.chosen.name != "single":
            n = self.train.context_parallel
            shared = f", each sequence on {n} of them" if n > 1 else ""
            print(f"{world.size} rank{'s' * (world.size > 1)}, strategy {trainer.chosen}{shared}", flush=True)
        if trainer.device.type == "cuda":
            peak = metrics.peak_flops(torch.cuda.get_device_name(trainer.device), trainer.dtype)
            print(f"{metrics.MFU_FORMULA} = {'unknown, so n/a' if peak is None else f'{peak:.4g} FLOP/s'}")
        # A mistake is told in one line, so this comes when there is none; who goes on has read it.
        if (
            start is None
            and self.threads is None
            and world.size == 1
            and trainer.device.type == "cpu"
            and (hint := threads_hint())
        ):
            print(hint, file=sys.stderr)
        resume = self.resume if self.resume_from is None else self.resume_from
        result = trainer.fit(resume=resume, overwrite=self.overwrite, allow_changes=self.allow_changes)
        is_stopped = result.stopped_by is not None
        with contextlib.suppress(*[OSError] * is_stopped):  # after a hang-up there is no terminal any more
            self._say(result)
        return 0 if result.stopped_by is None else STATUS[signal.Signals[result.stopped_by]]

    def _take_up(self, world: World) -> None:
        """After a restart by torch elastic: go on where this job was, whatever was typed."""
        from ..train import elastic

        resume: bool | str | Path = self.resume if self.resume_from is None else self.resume_from
        resume, self.overwrite = elastic.resume_of(self.train, resume, self.overwrite, world)
        if resume is True:
            self.resume, self.resume_from = True, None

    def _say(self, result: TrainResult) -> None:
        print(f"step {result.step}: {'saved' if result.losses else 'already saved:'} {result.checkpoint}")
        if result.stopped_by is None:
            return
        if result.step < self.train.steps:
            print(f"stopped by {result.stopped_by}; {self._kept()}")
        elif result.validation is None:
            print(f"stopped by {result.stopped_by}: all steps are done and saved, the last validation is not")
        else:
            print(f"stopped by {result.stopped_by}: all is done and saved")

    def _check(self, world: World) -> Path | None:
        """What can be told before the work. Returns the checkpoint to go on from, of a run that is resumed."""
        import torch

        from ..train.devices import resolve_device

        resolve_device(self.train.device)
        check_number("train", "val_fraction", self.val_fraction, above=0, below=1)
        self.train.on_ranks(world.size)
        if self.threads is not None:
            torch.set_num_threads(check_integer("train", "threads", self.threads, least=1, most=1024))
        return world.by_first(self._start)

    def _start(self) -> Path | None:
        from ..train import checkpoint, run_folder

        resumes = self.resume or self.resume_from is not None
        if resumes and self.overwrite:
            raise ValueError("--overwrite starts a run over and --resume goes on with it; leave one of them out")
        newest = run_folder.check(self.train, resume=resumes, overwrite=self.overwrite)
        if self.train.folder.is_dir():
            with run_folder.alone(self.train):  # which fit holds; but here it is told before texts are tokenized
                pass
        if not resumes:
            return None
        start = newest if self.resume_from is None else Path(self.resume_from)
        assert start is not None  # else `check` has raised
        checkpoint.verify(start)  # says which one can be gone on from, where this cannot
        return start

    def _model(self, start: Path | None, world: World) -> tuple[Tokenizer, _Made]:
        """The tokenizer, and what makes the model when the data is there."""
        from .. import interop
        from ..base import checksums
        from ..model.initial import filled_from, on_meta
        from . import _inputs

        if self.init_from is None:
            tokenizer = self._tokenizer_of(start)
            config = self.model.config(tokenizer.vocab_size)
            if config.vocab_size < tokenizer.vocab_size:
                need = f"is fewer than the {tokenizer.vocab_size} token ids of tokenizer {tokenizer.name}; leave it out"
                raise SettingError("train", "vocab_size", config.vocab_size, need)
            if start is not None:
                _check_same_model(config, interop.open_config(start), start)
            preset = DEFAULT_PRESET if self.model.preset is None else self.model.preset
            if self._is_sharded(config, "preset", preset, world) and isinstance(config, GPTConfig):
                return tokenizer, _Made(lambda: on_meta(lambda: presets.make(config)))
            return tokenizer, _Made(lambda: presets.make(config))
        if start is not None:
            self._check_same_start()
        folder = _inputs.model_folder(self.init_from) if start is None else start
        if self.verify:
            checksums.check(folder, whole=True)
        config = interop.open_config(folder)
        self.model.check_fits(config, str(folder))
        overrides = {k: v for k, v in self.model.given().items() if may_change(k)}
        config = dataclasses.replace(config, **overrides)
        is_sharded = self._is_sharded(config, "init_from", self.init_from, world)
        tokenizer = self._tokenizer_of(folder)
        if tokenizer.vocab_size > config.vocab_size:
            need = f"has {tokenizer.vocab_size} token ids, the model in {folder} {config.vocab_size}; name its own"
            raise SettingError("train", "tokenizer", tokenizer.name, need)
        if is_sharded and isinstance(config, GPTConfig):
            return tokenizer, _Made(lambda: on_meta(lambda: presets.make(config)), filled_from(folder))
        return tokenizer, _Made(lambda: interop.open_model(folder, **overrides))

    def _is_sharded(self, config: GPTConfig | OneHeadConfig, option: str, value: str, world: World) -> bool:
        """Whether each rank will hold a part of the model only; if it fits at all. option, value: where those sizes
        come from that were not given."""
        from ..train import sharing
        from ..train.devices import resolve_device, resolve_dtype
        from ..train.placing import choose
        from ..train.room import check_room
        from ._inputs import blamed_on

        device = resolve_device(self.train.device) if world.size == 1 else world.device
        chosen = choose(self.train, config, world)
        seq_len = config.max_len if self.train.seq_len is None else min(self.train.seq_len, config.max_len)
        with blamed_on(option, value, self.model.given()):
            sharing.check_sharing(self.train, config, seq_len, world.size)
            seq_len //= self.train.context_parallel
            check_room(
                config, batch_size=self.train.batch_size, seq_len=seq_len, device=device, shards=chosen.shards,
                grad_accum=self.train.on_ranks(world.size).grad_accum, dtype=resolve_dtype(self.train.dtype, device),
            )  # fmt: skip
        return chosen.is_sharded

    def _check_same_start(self) -> None:
        from ..base.files import read_json

        saved = read_json(self.train.folder / "settings.json").get("init_from")
        if self.init_from != saved:
            need = "cannot be given to a run that is resumed: its weights come from its checkpoint; leave it out"
            raise SettingError("train", "init_from", self.init_from, need)

    def _tokenizer_of(self, folder: Path | None) -> Tokenizer:
        """That of the model in `folder`; where there is none, the one that was asked for."""
        from ..data.tokenizer import Tokenizer

        beside = folder if folder is None or folder.is_dir() else folder.parent
        own = None
        if beside is not None and os.path.lexists(beside / "fastgpt_tokenizer.json"):
            own = Tokenizer.from_pretrained(beside)
        if own is not None and self.tokenizer is None:
            return own
        name = DEFAULT_TOKENIZER if self.tokenizer is None else self.tokenizer
        found = Tokenizer.load(name)
        if own is not None and own.sha256 != found.sha256:
            need = f"is another tokenizer than that of the model in {folder} ({own.name}), which decides; leave it out"
            raise SettingError("train", "tokenizer", name, need)
        return found

    def _data(self, tokenizer: Tokenizer, world: World) -> tuple[TokenDataset, TokenDataset]:
        """One rank of each machine first: it tokenizes, and leaves the tokens where the others find them."""
        from . import _inputs

        found = None
        for is_turn in (world.local_rank == 0, world.local_rank != 0)[: world.size]:
            with world.together():
                if is_turn:
                    found = _inputs.open_both(
                        self.data, self.val_data, self.val_fraction, tokenizer,
                        progress=self.progress and world.is_first, verify=self.verify,
                    )  # fmt: skip
        assert found is not None  # each rank has its turn
        return found

    def _settings(self) -> dict[str, Any]:
        """Everything but what belongs to this call alone, in the form that --config reads."""
        settings = dataclasses.asdict(self)
        for name in ("resume", "resume_from", "allow_changes", "overwrite", "config", "progress", "verify"):
            del settings[name]
        return settings

    def _kept(self) -> str:
        """What is safe when the run is interrupted, and how to go on."""
        from ..train import checkpoint

        root = self.train.folder / "checkpoints"
        if checkpoint.latest(root) is None:
            return f"{checkpoint.kept(root)}; start again with the same command"
        words = ["fastgpt", "train", "--resume", "--name", self.train.name]
        if self.train.runs_dir != TrainConfig.runs_dir:
            words += ["--runs-dir", self.train.runs_dir]
        return f"{checkpoint.kept(root)}; go on with: {shlex.join(words)}"
