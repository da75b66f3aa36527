"""Named models: GPT-2's sizes, large ones for many GPUs, the depth study's, and OneHeadLM as one trains it in class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base.settings import SettingError
from .config import GPTConfig
from .one_head_config import OneHeadConfig
from .preset_sizes import (
    GPT2_VOCAB_SIZE,
    ONE_HEAD,
    ONE_HEAD_SIZES,
    STUDY_HEADS,
    STUDY_LAYERS,
    STUDY_MAX_LEN,
    STUDY_WIDTHS,
    described,
    models,
    names,
)

if TYPE_CHECKING:
    from .gpt import GPT
    from .one_head import OneHeadLM

__all__ = [
    "GPT2_VOCAB_SIZE", "ONE_HEAD", "STUDY_HEADS", "STUDY_LAYERS", "STUDY_MAX_LEN", "STUDY_WIDTHS",
    "build", "config", "described", "make", "models", "names", "preset",
]  # fmt: skip


def build(name: str, *, vocab_size: int | None = None, **overrides: Any) -> GPT | OneHeadLM:
    """The model called `name`, with random weights. `overrides` replace fields of its config.

    Raises:
        ValueError, TypeError: no such name, or a field that the model has not, or that cannot be.
    """
    if vocab_size is not None:
        overrides["vocab_size"] = vocab_size
    return make(config(name, **overrides))


def config(name: str, **overrides: Any) -> GPTConfig | OneHeadConfig:
    """What `build` would make, by its sizes alone; for `make`."""
    if not isinstance(name, str) or name.lower() != ONE_HEAD:
        return preset(name, **overrides)
    for field, value in overrides.items():
        if field not in ONE_HEAD_SIZES:
            need = f"is no setting of preset {ONE_HEAD}, which has {', '.join(ONE_HEAD_SIZES)}; leave it out"
            raise SettingError("presets", field, value, need)
    return OneHeadConfig(**ONE_HEAD_SIZES | overrides)


def make(config: GPTConfig | OneHeadConfig) -> GPT | OneHeadLM:
    """The model of this config, with random weights."""
    from .gpt import GPT
    from .one_head import OneHeadLM

    return GPT(config) if isinstance(config, GPTConfig) else OneHeadLM(**config.to_dict())


def preset(name: str, **overrides: Any) -> GPTConfig:
    """See `GPTConfig.preset`."""
    return GPTConfig.preset(name, **overrides)
