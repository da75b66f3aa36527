"""`OneHeadConfig`: the sizes of a OneHeadLM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from ..base.settings import MOST_SIZE, check_integer


@dataclass(frozen=True)
class OneHeadConfig:
    """The sizes of a OneHeadLM.

    Raises:
        ValueError, TypeError: a size that is none.
    """

    vocab_size: int
    d_model: int
    max_len: int

    n_layers: ClassVar[int] = 1
    n_heads: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = check_integer("OneHeadLM", field.name, getattr(self, field.name), least=1, most=MOST_SIZE)
            object.__setattr__(self, field.name, value)

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)
