"""`ComparisonConfig`: what decides the comparison of dropout and weight decay; here, where nothing needs torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.settings import SettingError, SettingTypeError, check_integer, check_number
from ..model.config import GPTConfig
from ..train.train_config import TrainConfig

if TYPE_CHECKING:
    from .study_folder import StudyFolder

_OWNER = "ComparisonConfig"
_FREE = ("seeds", "name", "runs_dir")  # may differ from call to call


@dataclass(frozen=True)
class ComparisonConfig:
    """Four runs for each seed: without and with dropout, without and with weight decay.

    Args:
        dropout: Of the runs that have it; the others have none.
        weight_decay: AdamW's, on matrices, of the runs that have it.
        seeds: Four runs each: of the weights, the order of the data and dropout.
        steps: Updates of each run.
        n_layers: Blocks of each model.
        n_heads: Attention heads.
        d_model: Width.
        max_len: Tokens per sequence, in training and when it is looked at.
        batch_size: Sequences per update.
        lr: Peak learning rate of AdamW.
        name: Name of the comparison; everything is written to <runs_dir>/<name>.
        runs_dir: Folder of all runs.

    Raises:
        SettingError (a ValueError), SettingTypeError (a TypeError): a field that cannot be.
    """

    dropout: float = 0.1
    weight_decay: float = 0.1
    seeds: tuple[int, ...] = (0,)
    steps: int = 300
    n_layers: int = 6
    n_heads: int = 4
    d_model: int = 64
    max_len: int = 64
    batch_size: int = 16
    lr: float = 3e-3
    name: str = "smoothing"
    runs_dir: str = "runs"

    def __post_init__(self) -> None:
        check_number(_OWNER, "dropout", self.dropout, above=0, below=1)
        check_number(_OWNER, "weight_decay", self.weight_decay, above=0)
        check_number(_OWNER, "lr", self.lr, above=0)
        for name in ("steps", "n_layers", "n_heads", "d_model", "batch_size"):
            check_integer(_OWNER, name, getattr(self, name), least=1)
        check_integer(_OWNER, "max_len", self.max_len, least=2)
        if isinstance(self.seeds, (str, int)) or not hasattr(self.seeds, "__iter__"):
            raise SettingTypeError(_OWNER, "seeds", self.seeds, "must be a tuple of integers, e.g. (0, 1)")
        seeds = tuple(check_integer(_OWNER, "seeds", seed, least=0, most=2**64 - 1) for seed in self.seeds)
        if not seeds or len(set(seeds)) < len(seeds):
            need = "names a number twice; name each once" if seeds else "is empty; give at least one number"
            raise SettingError(_OWNER, "seeds", self.seeds, need)
        object.__setattr__(self, "seeds", seeds)
        TrainConfig(name=self.name, runs_dir=self.runs_dir, batch_size=self.batch_size)  # says what is wrong with these
        GPTConfig(
            vocab_size=1, n_layers=self.n_layers, n_heads=self.n_heads, d_model=self.d_model, max_len=self.max_len
        )

    @property
    def folder(self) -> StudyFolder:
        from .study_folder import StudyFolder

        return StudyFolder(_OWNER, "smoothing", self.runs_dir, self.name)

    def earlier(self) -> dict[str, Any] | None:
        """study.json of a call before this one; None where there is none. See `StudyFolder.read`."""
        return self.folder.read(self.recipe(), ("trained_on.tokens",))

    def recipe(self) -> dict[str, Any]:
        """What all runs have in common, and a call that goes on must have too."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in _FREE}

    def variants(self) -> list[Variant]:
        """Every run, in the order in which they are made."""
        return [
            Variant(dropout, decay, seed)
            for seed in self.seeds
            for dropout in (0.0, self.dropout)
            for decay in (0.0, self.weight_decay)
        ]

    def changed(self) -> Iterator[str]:
        """The names of the fields that are not their defaults."""
        yield from (f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)


@dataclass(frozen=True)
class Variant:
    """One run of the comparison."""

    dropout: float
    weight_decay: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"dropout{self.dropout:g}-decay{self.weight_decay:g}-seed{self.seed}"

    @property
    def group(self) -> str:
        """What it has, in words: the same for all seeds."""
        both = {f"dropout {self.dropout:g}": self.dropout > 0, f"decay {self.weight_decay:g}": self.weight_decay > 0}
        return " and ".join(name for name, has in both.items() if has) or "neither"

    def model_config(self, config: ComparisonConfig, vocab_size: int) -> GPTConfig:
        return GPTConfig(
            vocab_size=vocab_size, max_len=config.max_len, n_layers=config.n_layers, n_heads=config.n_heads,
            d_model=config.d_model, dropout=self.dropout,
        )  # fmt: skip

    def train_config(self, config: ComparisonConfig, device: str) -> TrainConfig:
        return TrainConfig(
            name=self.name, runs_dir=str(config.folder.path), steps=config.steps, batch_size=config.batch_size,
            lr=config.lr, weight_decay=self.weight_decay, log_every=0, eval_every=max(1, config.steps // 5),
            eval_batches=max(1, 16_384 // (config.batch_size * config.max_len)),
            save_every=max(1, config.steps // 10), keep=1, seed=self.seed, device=device, dtype="float32",
            tensorboard=False,
        )  # fmt: skip
