"""How many GPUs hold one model: the strategies of `fastgpt train`, with any number of GPUs, on paper."""

from __future__ import annotations

from dataclasses import dataclass

from ..base import machine
from ..base.settings import SettingError, check_choice, check_integer
from ..base.strategy_names import STRATEGIES
from ..model.config import GPTConfig
from ..model.size import fits_one, state_bytes

MOST_GPUS = 1 << 20


@dataclass(frozen=True)
class Group:
    """Ranks that send to each other. size: of them; per_node: of them on one machine."""

    size: int
    per_node: int

    @property
    def crosses(self) -> bool:
        """Whether they are on several machines."""
        return self.per_node < self.size


@dataclass(frozen=True)
class Placement:
    """gpus          ranks, one on each GPU
    strategy         "ddp", "fsdp" or "hsdp"
    shard_ranks      ranks that share one copy of the model; 1 of ddp, all of fsdp
    context_parallel ranks that share each sequence
    gpus_per_node    of one machine
    why              of "auto": the reason for the strategy; else ""
    """

    gpus: int
    strategy: str
    shard_ranks: int
    context_parallel: int
    gpus_per_node: int
    why: str = ""

    @property
    def copies(self) -> int:
        """Of the model."""
        return self.gpus // self.shard_ranks

    @property
    def data_ranks(self) -> int:
        """Ranks, or groups of ranks, with sequences of their own."""
        return self.gpus // self.context_parallel

    def shards(self) -> Group:
        """The ranks of one copy, side by side."""
        return self._side_by_side(self.shard_ranks)

    def replicas(self) -> Group:
        """Ranks with the same part, one in each copy."""
        if self.gpus <= self.gpus_per_node:
            return Group(self.copies, self.copies)
        fits = self.gpus_per_node % self.shard_ranks == 0
        return Group(self.copies, min(self.copies, self.gpus_per_node // self.shard_ranks) if fits else 1)

    def sequence(self) -> Group:
        """The ranks of one sequence, side by side."""
        return self._side_by_side(self.context_parallel)

    def _side_by_side(self, size: int) -> Group:
        within = self.gpus <= self.gpus_per_node or self.gpus_per_node % size == 0
        return Group(size, size if within else self.gpus_per_node if size % self.gpus_per_node == 0 else 1)


def place(
    config: GPTConfig, gpus: int, memory: int, *, strategy: str = "auto", shard_ranks: int | None = None,
    context_parallel: int = 1, gpus_per_node: int = 8, owner: str = "place",
) -> Placement:  # fmt: skip
    """The model of `config` on so many GPUs of `memory` bytes.

    "auto" is ddp where parameters, gradients and AdamW's state, in float32, fit one GPU (`size.fits_one`), else fsdp.
    shard_ranks: of hsdp; those of a machine if not given.

    Raises:
        SettingError, SettingTypeError: numbers that do not divide, an unknown strategy, shard_ranks without hsdp.
    """
    check_integer(owner, "gpus", gpus, least=1, most=MOST_GPUS)
    check_integer(owner, "gpus_per_node", gpus_per_node, least=1)
    check_choice(owner, "strategy", strategy, STRATEGIES)
    check_integer(owner, "context_parallel", context_parallel, least=1)
    if gpus > gpus_per_node and gpus % gpus_per_node:
        less = gpus - gpus % gpus_per_node
        need = f"must be whole machines of {gpus_per_node} (--gpus-per-node); take {less} or {less + gpus_per_node}"
        raise SettingError(owner, "gpus", gpus, need)
    _check_divides(owner, "context_parallel", context_parallel, gpus)
    why = ""
    if strategy == "auto":
        takes, has = machine.readable(state_bytes(config.to_dict())), machine.readable(memory)
        what = f"parameters, gradients and AdamW's state take {takes}, a GPU has {has}"
        strategy = "ddp" if fits_one(config, memory) else "fsdp"
        why = f"a whole copy {'fits' if strategy == 'ddp' else 'does not fit'} one GPU: {what}"
    if shard_ranks is not None and strategy != "hsdp":
        raise SettingError(owner, "shard_ranks", shard_ranks, "belongs to hsdp; take --strategy hsdp, or leave it out")
    if strategy == "hsdp":
        shard_ranks = min(gpus, gpus_per_node) if shard_ranks is None else shard_ranks
        _check_divides(owner, "shard_ranks", check_integer(owner, "shard_ranks", shard_ranks, least=1), gpus)
    ranks = {"ddp": 1, "fsdp": gpus}.get(strategy, shard_ranks or 1)
    return Placement(gpus, strategy, ranks, context_parallel, gpus_per_node, why)


def _check_divides(owner: str, name: str, value: int, gpus: int) -> None:
    if gpus % value:
        would = [n for n in range(1, gpus + 1) if gpus % n == 0]
        near = sorted(sorted(would, key=lambda n: abs(n - value))[:3])
        need = f"must divide the {gpus} GPUs (--gpus); take {' or '.join(map(str, near))}"
        raise SettingError(owner, name, value, need)
