"""`CostConfig`: the grid of the cost study, three lines through one point; `Point`: one model and sequence length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ...base.settings import SettingError, SettingTypeError, check_choice, check_integer, check_number
from ...model.config import GPTConfig
from ...train.train_config import DTYPES

_OWNER = "CostConfig"
GRIDS = {"layers": "layers", "seq_len": "seq_lens", "width": "widths"}  # a field of Point: that of CostConfig
SYMBOLS = {"layers": "L", "seq_len": "T", "width": "D"}


class Point(NamedTuple):
    """L, T and D of one model: its max_len is T."""

    layers: int
    seq_len: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.seq_len:,} tokens, width {self.width:,}"


@dataclass(frozen=True)
class CostConfig:
    """The grid: one of L, T and D takes its values while the other two stay at the base.

    Args:
        layers: Numbers of layers, L.
        seq_lens: Tokens per sequence, T; each is the model's max_len too.
        widths: Widths of the residual stream, D; the FFN is four times as wide.
        base: L, T and D where another one varies.
        heads: Attention heads; must divide every width.
        batch_size: Sequences per step.
        vocab_size: Token ids, V: logits and embeddings grow with it.
        dtype: "bfloat16" (autocast; weights stay float32), "float32", or "auto": bfloat16 on GPUs that have it.
        gpu: The GPU to fill: "h100", "a100-80gb", "rtx4090", "t4", ... (a wrong name lists all), or a number of GiB.
        margin: GiB of that GPU that stay free: for the CUDA context, libraries and the allocator's rounding.

    Raises:
        SettingError (a ValueError), SettingTypeError (a TypeError): a field that cannot be.
    """

    layers: tuple[int, ...] = (2, 4, 8, 12)
    seq_lens: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    widths: tuple[int, ...] = (256, 512, 768, 1024)
    base: tuple[int, ...] = (4, 1024, 512)
    heads: int = 8
    batch_size: int = 8
    vocab_size: int = 50257
    dtype: str = "auto"
    gpu: str = "h100"
    margin: float = 1.5

    def __post_init__(self) -> None:
        for name in (*GRIDS.values(), "base"):
            self._check_numbers(name, getattr(self, name))
        if len(self.base) != len(SYMBOLS):
            need = "must be three numbers: layers, tokens per sequence and width, e.g. 4 1024 512"
            raise SettingError(_OWNER, "base", self.base, need)
        for name in GRIDS.values():
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise SettingError(_OWNER, name, getattr(self, name), "names a number twice; name each once")
        if not self.axes:
            need = "is one number, and so are seq_lens and widths: there is no growth to fit; give two or more of one"
            raise SettingError(_OWNER, "layers", self.layers, need)
        for name in ("heads", "batch_size", "vocab_size"):
            object.__setattr__(self, name, check_integer(_OWNER, name, getattr(self, name), least=1))
        for width in dict.fromkeys(point.width for point in self.points()):
            if width % self.heads:
                others = ", ".join(str(n) for n in range(1, 65) if width % n == 0)
                need = f"must divide each width, {width} too; choose from {others}"
                raise SettingError(_OWNER, "heads", self.heads, need)
        check_choice(_OWNER, "dtype", self.dtype, DTYPES)
        check_number(_OWNER, "margin", self.margin, least=0)

    def _check_numbers(self, name: str, values: Any) -> None:
        if isinstance(values, (str, int)) or not hasattr(values, "__iter__"):
            raise SettingTypeError(_OWNER, name, values, "must be a tuple of integers, e.g. (2, 4)")
        checked = tuple(check_integer(_OWNER, name, value, least=1, most=2**31 - 1) for value in values)
        if not checked:
            raise SettingError(_OWNER, name, values, "is empty; give at least one number")
        object.__setattr__(self, name, checked)

    @property
    def base_point(self) -> Point:
        return Point(*self.base)

    @property
    def axes(self) -> list[str]:
        """Those of "layers", "seq_len" and "width" that take several values: over these there is something to fit."""
        return [axis for axis, name in GRIDS.items() if len(getattr(self, name)) > 1]

    def line(self, axis: str) -> list[Point]:
        """The points where `axis` takes its values, ascending."""
        return [self.base_point._replace(**{axis: value}) for value in sorted(getattr(self, GRIDS[axis]))]

    def points(self) -> list[Point]:
        """All points, each once."""
        return list(dict.fromkeys(point for axis in self.axes for point in self.line(axis)))

    def model(self, point: Point, parts: dict[str, str]) -> GPTConfig:
        """The model at a point; `parts`: of `IMPLEMENTATION_SETS`."""
        return GPTConfig(self.vocab_size, point.seq_len, point.layers, self.heads, point.width).replace(**parts)
