"""`GPTConfig`: everything that decides a model's shape and which implementation computes it."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

from ..base.implementation_names import IMPLEMENTATIONS, check_implementation
from ..base.settings import (
    MOST_SIZE,
    SettingError,
    SettingTypeError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    nearest,
)
from . import preset_sizes

# The three whole sets that are worth comparing, as fields of GPTConfig: our kernels, torch's own, the plain formulas.
IMPLEMENTATION_SETS = {
    "fastgpt": {f"{part}_impl": "triton" for part in IMPLEMENTATIONS},
    "torch": {f"{part}_impl": "sdpa" if part == "attn" else "torch" for part in IMPLEMENTATIONS},
    "reference": {f"{part}_impl": "reference" for part in IMPLEMENTATIONS},
}


@dataclass(unsafe_hash=True)  # __setattr__ keeps the fields that are hashed as they are
class GPTConfig:
    """Shape of a pre-LN GPT and the implementation of its parts. Checked when made; read-only afterwards.

    Attributes that are no fields may be set, as other people's code does (transformers' Trainer sets `use_cache`):
    they are neither compared nor saved.

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

    # What transformers' Trainer leaves out of an output's entries when it collects predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["hidden"]

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {}
        for name in ("vocab_size", "max_len", "n_layers", "n_heads", "d_model"):
            checked[name] = check_integer("GPTConfig", name, getattr(self, name), least=1, most=MOST_SIZE)
        d_model, n_heads = checked["d_model"], checked["n_heads"]
        for name, default in (("d_ff", 4 * d_model), ("n_kv_heads", n_heads)):
            value = getattr(self, name)
            value = default if value is None else value
            checked[name] = check_integer("GPTConfig", name, value, least=1, most=max(default, MOST_SIZE))
        if d_model % n_heads:
            multiple = max(n_heads, round(d_model / n_heads) * n_heads)
            need = f"must divide d_model ({d_model}); take d_model {multiple}, or another number of heads"
            raise SettingError("GPTConfig", "n_heads", n_heads, need)
        if n_heads % checked["n_kv_heads"]:
            divisors = ", ".join(str(n) for n in range(1, n_heads + 1) if n_heads % n == 0)
            need = f"must divide n_heads ({n_heads}); choose from {divisors}"
            raise SettingError("GPTConfig", "n_kv_heads", checked["n_kv_heads"], need)
        checked["dropout"] = check_number("GPTConfig", "dropout", self.dropout, least=0, below=1)
        checked["layer_norm_eps"] = check_number("GPTConfig", "layer_norm_eps", self.layer_norm_eps, least=0)
        for name in ("bias", "tie_weights"):
            check_flag("GPTConfig", name, getattr(self, name))
        check_choice("GPTConfig", "gelu", self.gelu, ("none", "tanh"))
        for part in IMPLEMENTATIONS:
            check_implementation(part, getattr(self, f"{part}_impl"), owner="GPTConfig")
        self.__dict__.update(checked)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ and name in _field_names():
            raise dataclasses.FrozenInstanceError(
                f"GPTConfig: {name} is read-only; config.replace({name}={value!r}) makes another config"
            )
        if name not in _field_names() and (meant := nearest(name, _field_names(), cutoff=0.8)):
            raise AttributeError(f"GPTConfig: there is no field {name!r}; {meant}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in _field_names():
            raise dataclasses.FrozenInstanceError(f"GPTConfig: {name} is read-only and cannot be deleted")
        super().__delattr__(name)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GPTConfig:
        """A named configuration (`fastgpt.presets.names()` lists them) with some fields replaced.

        Raises:
            ValueError: no such preset; the message lists them. TypeError: no name, or a field that is none.
        """
        return cls(**preset_sizes.fields_of(name)).replace(**overrides)

    def replace(self, **changes: Any) -> GPTConfig:
        """A copy with some fields changed. A new d_model or n_heads brings a new default d_ff or n_kv_heads.

        Raises:
            TypeError: no such field; otherwise as GPTConfig(...).
        """
        for name in changes:
            if name not in _field_names():
                meant = nearest(name, _field_names()) or f"there are {', '.join(_field_names())}"
                raise TypeError(f"GPTConfig: there is no field {name!r}; {meant}")
        if "d_model" in changes and self.d_ff == 4 * self.d_model:
            changes.setdefault("d_ff", None)
        if "n_heads" in changes and self.n_kv_heads == self.n_heads:
            changes.setdefault("n_kv_heads", None)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any], *, source: str = "config") -> GPTConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError, TypeError: unknown or missing fields, which `source` is named with, or values that cannot be.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"{source}: unknown fields {unknown}; GPTConfig has {sorted(known)}")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in fields]
        if missing:
            raise ValueError(f"{source}: fields {missing} are missing; add them")
        try:
            return cls(**fields)
        except (SettingError, SettingTypeError) as error:  # the file's fault, not that of an option of this name
            raise ValueError(str(error).replace("GPTConfig", source, 1)) from None


def may_change(field: str) -> bool:
    """Whether weights mean the same under another value of this field: training can go on with it."""
    return field == "dropout" or field.endswith("_impl")


@functools.cache
def _field_names() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(GPTConfig))
