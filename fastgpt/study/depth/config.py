"""`DepthConfig`: the grid of the depth study and the recipe that all its runs share; `Cell`: one of its runs."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...base.settings import SettingError, SettingTypeError, check_choice, check_flag, check_integer, check_number
from ...model.config import GPTConfig
from ...model.preset_sizes import STUDY_HEADS, STUDY_LAYERS, STUDY_MAX_LEN, STUDY_WIDTHS
from ...train.train_config import DTYPES, TrainConfig

if TYPE_CHECKING:
    from ..study_folder import StudyFolder

_OWNER = "DepthConfig"
NO_NORM_SHARE = 0.25  # of the tokens: runs without LayerNorm tell of gradients, not of perplexity
MOST_EPOCHS = 20.0  # more of the same text measures memory, not depth
GRID = ("layers", "widths", "heads", "seeds")  # may grow from call to call; all else is as the study was begun
WHERE = ("device", "name", "runs_dir", "saves")


@dataclass(frozen=True)
class DepthConfig:
    """The grid, and the recipe of every run.

    Args:
        layers: Depths.
        widths: Widths, d_model; the FFN is four times as wide.
        heads: Numbers of attention heads.
        seeds: A run each: of the weights, the order of the data and dropout.
        tokens: Tokens that each run trains on; one epoch of the data if neither tokens nor budget is given.
        budget: Time for the whole grid, as 30m, 2h or 90s: the number of tokens follows, from a few timed steps.
        without_norm: For each depth also a short run without LayerNorm (first width, heads and seed).
        name: Name of the study; everything is written to <runs_dir>/<name>.
        runs_dir: Folder of all runs.
        batch_size: Sequences per update.
        micro_batch: Sequences computed at a time; they add up to batch_size.
        seq_len: Tokens per sequence.
        lr: Peak learning rate of AdamW.
        warmup_fraction: Fraction of the updates in which the learning rate rises to its peak; a cosine follows.
        weight_decay: AdamW's decay, on matrices only.
        dropout: Probability, on embeddings, attention weights and sub-layer outputs.
        saves: Checkpoints on the way of each run, from which an interrupted one goes on.
        eval_tokens: Tokens of the validation data that each validation scores, spread over it; at most a tenth of
            tokens.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        dtype: "bfloat16" (autocast; weights stay float32), "float32", or "auto": bfloat16 on GPUs that have it.

    Raises:
        SettingError (a ValueError), SettingTypeError (a TypeError): a field that cannot be.
    """

    layers: tuple[int, ...] = STUDY_LAYERS
    widths: tuple[int, ...] = STUDY_WIDTHS
    heads: tuple[int, ...] = STUDY_HEADS
    seeds: tuple[int, ...] = (0,)
    tokens: int | None = None
    budget: str | None = None
    without_norm: bool = True
    name: str = "depth"
    runs_dir: str = "runs"
    batch_size: int = 256
    micro_batch: int = 16
    seq_len: int = STUDY_MAX_LEN
    lr: float = 3e-4
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1
    dropout: float = 0.0
    saves: int = 5
    eval_tokens: int = 65_536
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in GRID:
            self._check_grid(name, getattr(self, name))
        for width, heads in itertools.product(self.widths, self.heads):
            if width % heads:
                others = ", ".join(str(n) for n in range(1, 65) if width % n == 0)
                raise SettingError(_OWNER, "heads", heads, f"must divide each width, {width} too; choose from {others}")
        for name in ("batch_size", "micro_batch", "seq_len", "eval_tokens"):
            self._set(name, check_integer(_OWNER, name, getattr(self, name), least=1))
        self._set("saves", check_integer(_OWNER, "saves", self.saves, least=0))
        self._set("micro_batch", min(self.micro_batch, self.batch_size))
        if self.batch_size % self.micro_batch:
            need = f"must be a multiple of micro_batch ({self.micro_batch}), of which it is made; change one of them"
            raise SettingError(_OWNER, "batch_size", self.batch_size, need)
        if self.tokens is not None:
            self._set("tokens", check_integer(_OWNER, "tokens", self.tokens, least=self.tokens_per_update))
        if self.budget is not None:
            seconds_of(self.budget)
            if self.tokens is not None:
                need = "cannot be given beside tokens (--tokens), which it is there to choose; leave one of them out"
                raise SettingError(_OWNER, "budget", self.budget, need)
        check_flag(_OWNER, "without_norm", self.without_norm)
        check_number(_OWNER, "lr", self.lr, above=0)
        check_number(_OWNER, "warmup_fraction", self.warmup_fraction, least=0, most=1)
        check_number(_OWNER, "weight_decay", self.weight_decay, least=0)
        check_number(_OWNER, "dropout", self.dropout, least=0, below=1)
        check_choice(_OWNER, "dtype", self.dtype, DTYPES)
        TrainConfig(name=self.name, runs_dir=self.runs_dir, device=self.device)  # says what is wrong with these

    def _check_grid(self, name: str, values: Any) -> None:
        if isinstance(values, (str, int)) or not hasattr(values, "__iter__"):
            raise SettingTypeError(_OWNER, name, values, "must be a tuple of integers, e.g. (2, 4)")
        least = 0 if name == "seeds" else 1
        most = 2**64 - 1 if name == "seeds" else None
        checked = tuple(check_integer(_OWNER, name, value, least=least, most=most) for value in values)
        if not checked:
            raise SettingError(_OWNER, name, values, "is empty: there is nothing to run; give at least one number")
        if len(set(checked)) < len(checked):
            raise SettingError(_OWNER, name, values, "names a number twice; name each once")
        self._set(name, checked)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def tokens_per_update(self) -> int:
        return self.batch_size * self.seq_len

    def cells(self) -> list[Cell]:
        """Every run, in the order in which they are made: seed by seed, shallow ones first."""
        grid = [
            Cell(layers, width, heads, seed)
            for seed, width, heads, layers in itertools.product(self.seeds, self.widths, self.heads, self.layers)
        ]
        if self.without_norm:
            first = (self.widths[0], self.heads[0], self.seeds[0])
            grid += [Cell(layers, *first, norm=False) for layers in self.layers]
        return grid

    def recipe(self) -> dict[str, Any]:
        """What all runs of a study have in common."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in (*GRID, *WHERE, "without_norm")}

    @property
    def folder(self) -> StudyFolder:
        from ..study_folder import StudyFolder

        return StudyFolder(_OWNER, "depth", self.runs_dir, self.name)

    def earlier(self) -> dict[str, Any] | None:
        """study.json of a call before this one; None where there is none. See `StudyFolder.read`."""
        # A budget only says how the tokens were found, and who gives no tokens takes the study's.
        asked = {k: v for k, v in self.recipe().items() if k != "budget" and not (k == "tokens" and v is None)}
        return self.folder.read(asked, ("tokens", "data.train.sha256", "data.val.sha256", "tokenizer.name"))


@dataclass(frozen=True)
class Cell:
    """One run of the grid. norm: with LayerNorm, as every GPT; False: a variant of the study alone."""

    layers: int
    width: int
    heads: int
    seed: int
    norm: bool = True

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.layers}x{self.width}x{self.heads}-seed{self.seed}{'' if self.norm else '-no-layernorm'}"

    def __str__(self) -> str:
        more = "" if self.norm else ", no LayerNorm"
        return f"{self.layers} layers, width {self.width}, {self.heads} heads, seed {self.seed}{more}"

    def model_config(self, vocab_size: int, recipe: DepthConfig) -> GPTConfig:
        return GPTConfig(
            vocab_size=vocab_size, max_len=recipe.seq_len, n_layers=self.layers, n_heads=self.heads,
            d_model=self.width, dropout=recipe.dropout,
        )  # fmt: skip

    def updates(self, recipe: DepthConfig) -> int:
        """How many updates its tokens make."""
        assert recipe.tokens is not None
        share = 1.0 if self.norm else NO_NORM_SHARE
        return max(1, int(recipe.tokens * share) // recipe.tokens_per_update)

    def train_config(self, recipe: DepthConfig) -> TrainConfig:
        steps = self.updates(recipe)
        scored = min(recipe.eval_tokens, (recipe.tokens or 0) // 10)
        save_every = max(1, steps // recipe.saves) if recipe.saves else 0
        return TrainConfig(
            name=self.name, runs_dir=f"{recipe.runs_dir}/{recipe.name}", steps=steps, batch_size=recipe.micro_batch,
            grad_accum=recipe.batch_size // recipe.micro_batch, seq_len=recipe.seq_len, lr=recipe.lr,
            warmup_fraction=recipe.warmup_fraction, weight_decay=recipe.weight_decay, log_every=0,
            eval_every=max(1, steps // 5), save_every=save_every, keep=1, seed=self.seed,
            eval_batches=max(1, scored // (recipe.batch_size * recipe.seq_len)),
            device=recipe.device, dtype=recipe.dtype, tensorboard=False,
        )  # fmt: skip


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(budget: str) -> float:
    """Seconds of "90s", "30m", "1.5h" or "1h30m".

    Raises:
        SettingError, SettingTypeError: none of these, or no time at all.
    """
    need = "must be a time, e.g. 30m, 2h or 90s"
    if not isinstance(budget, str):
        raise SettingTypeError(_OWNER, "budget", budget, need)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not parts or "".join(number + unit for number, unit in parts) != budget.replace(" ", ""):
        raise SettingError(_OWNER, "budget", budget, need)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < 1e8:
        raise SettingError(_OWNER, "budget", budget, f"{need}, above 0 and below three years")
    return seconds


def tokens_within(config: DepthConfig, seconds_per_token: Callable[[Cell], float], most: int) -> tuple[int, float]:
    """Tokens a run so that the whole grid fits `config.budget`, and the seconds that it then takes.

    Args:
        seconds_per_token: of training a cell.
        most: tokens a run that the data allows.

    Raises:
        SettingError: the budget is too short for 10 updates a run, or the data too small for it.
    """
    assert config.budget is not None
    budget = seconds_of(config.budget)
    cost = sum((1.0 if cell.norm else NO_NORM_SHARE) * seconds_per_token(cell) for cell in config.cells())
    tokens = int(0.9 * budget / cost) // config.tokens_per_update * config.tokens_per_update  # 0.9: validations, saves
    least = 10 * config.tokens_per_update
    if tokens < least:
        seconds = least * cost / 0.9
        long = f"{seconds:.0f}" if seconds > 9 else f"{seconds:.2g}"
        need = (
            f"is too short: {len(config.cells())} runs of 10 updates take about {long} s here; give more "
            "time, a smaller grid (--layers, --widths, --heads) or a smaller --batch-size"
        )
        raise SettingError(_OWNER, "budget", config.budget, need)
    if tokens > most:
        need = (
            f"is time for {tokens:,} tokens a run, more than {MOST_EPOCHS:g} epochs of the training data ({most:,} "
            "tokens); give more text (--data), or less time"
        )
        raise SettingError(_OWNER, "budget", config.budget, need)
    return tokens, tokens * cost / 0.9
