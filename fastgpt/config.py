"""`GPTConfig`: everything that decides a model's shape and which implementation computes it."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPLEMENTATIONS = {
    "attn": ("auto", "triton", "sdpa", "reference"),
    "norm": ("auto", "triton", "torch", "reference"),
    "ffn": ("auto", "triton", "torch", "reference"),
    "loss": ("auto", "triton", "torch", "reference"),
}

# The three whole sets that are worth comparing, as fields of GPTConfig: our kernels, torch's own, the plain formulas.
IMPLEMENTATION_SETS = {
    "fastgpt": {f"{part}_impl": "triton" for part in IMPLEMENTATIONS},
    "torch": {f"{part}_impl": "sdpa" if part == "attn" else "torch" for part in IMPLEMENTATIONS},
    "reference": {f"{part}_impl": "reference" for part in IMPLEMENTATIONS},
}


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a pre-LN GPT and the implementation of its parts. Checked when made; read-only afterwards.

    Args:
        vocab_size: number of token ids, V.
        max_len: longest context, in tokens; rows of the position embedding.
        n_layers: transformer blocks.
        n_heads: query heads; must divide d_model.
        d_model: width of the residual stream.
        d_ff: hidden width of the FFN (default 4 · d_model).
        n_kv_heads: key/value heads (default n_heads); must divide n_heads. Fewer: grouped-query attention
            (arXiv 2305.13245); 1: multi-query attention.
        dropout: probability on embeddings, attention weights and sub-layer outputs, in [0, 1).
        bias: biases in the projections, the FFN and the LayerNorms. The head never has one.
        tie_weights: the head is the token embedding.
        gelu: "none" (exact, erf) or "tanh" (GPT-2's approximation).
        layer_norm_eps: added to the variance.
        attn_impl: "auto", "triton", "sdpa" or "reference".
        norm_impl, ffn_impl, loss_impl: "auto", "triton", "torch" or "reference".

    Raises:
        ValueError, TypeError: a field that cannot be; the message names the field, its value and the fix.
    """

    vocab_size: int
    max_len: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int | None = None
    n_kv_heads: int | None = None
    dropout: float = 0.0
    bias: bool = True
    tie_weights: bool = True
    gelu: str = "none"
    layer_norm_eps: float = 1e-5
    attn_impl: str = "auto"
    norm_impl: str = "auto"
    ffn_impl: str = "auto"
    loss_impl: str = "auto"

    def __post_init__(self) -> None:
        if self.d_ff is None and isinstance(self.d_model, int):
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name in ("vocab_size", "max_len", "n_layers", "n_heads", "d_model", "d_ff", "n_kv_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"GPTConfig: {name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"GPTConfig: {name} must be at least 1, got {value}")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"GPTConfig: d_model ({self.d_model}) is not divisible by n_heads ({self.n_heads}); "
                f"take d_model {_nearest_multiple(self.d_model, self.n_heads)} or another number of heads"
            )
        if self.n_heads % self.n_kv_heads:
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            raise ValueError(
                f"GPTConfig: n_kv_heads ({self.n_kv_heads}) must divide n_heads ({self.n_heads}); "
                f"choose from {divisors}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"GPTConfig: dropout must be in [0, 1), got {self.dropout}")
        if self.layer_norm_eps < 0.0:
            raise ValueError(f"GPTConfig: layer_norm_eps must not be negative, got {self.layer_norm_eps}")
        if self.gelu not in ("none", "tanh"):
            raise ValueError(f'GPTConfig: gelu must be "none" (exact, erf) or "tanh", got {self.gelu!r}')
        for part in IMPLEMENTATIONS:
            check_implementation(part, getattr(self, f"{part}_impl"))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GPTConfig:
        """A named configuration (`fastgpt.presets.names()` lists them) with some fields replaced."""
        from .presets import preset

        return preset(name, **overrides)

    def replace(self, **changes: Any) -> GPTConfig:
        """A copy with some fields changed. A new d_model or n_heads brings a new default d_ff or n_kv_heads."""
        if "d_model" in changes and self.d_ff == 4 * self.d_model:
            changes.setdefault("d_ff", None)
        if "n_heads" in changes and self.n_kv_heads == self.n_heads:
            changes.setdefault("n_kv_heads", None)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any], *, source: str = "config") -> GPTConfig:
        """The inverse of `to_dict`; `source` is named in errors about unknown and missing fields."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"{source}: unknown fields {unknown}; GPTConfig has {sorted(known)}")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in fields]
        if missing:
            raise ValueError(f"{source}: fields {missing} are missing; add them")
        return cls(**fields)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> GPTConfig:
        """Read a JSON file with the fields of this class."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a JSON file ({error}); write one with GPTConfig.to_json") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: expected a JSON object with GPTConfig's fields, got {type(fields).__name__}")
        return cls.from_dict(fields, source=str(path))


def check_implementation(part: str, requested: str) -> None:
    """Raise ValueError unless `requested` is an implementation of `part` ("attn", "norm", "ffn" or "loss")."""
    if requested not in IMPLEMENTATIONS[part]:
        choices = ", ".join(f'"{name}"' for name in IMPLEMENTATIONS[part])
        raise ValueError(f"unknown implementation {part}_impl={requested!r}; choose from {choices}")


def _nearest_multiple(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)
