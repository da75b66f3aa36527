"""Named configurations: GPT-2's four sizes, and the grid of the depth study."""

from __future__ import annotations

from typing import Any

from .config import GPTConfig
from .settings import SettingError, SettingTypeError

GPT2_VOCAB_SIZE = 50257

# Radford et al. 2019, table 2, with the tanh GELU. Dropout is 0, as in pre-training runs today; the paper's is 0.1.
_GPT2 = {
    "gpt2": (12, 12, 768),  # 124M
    "gpt2-medium": (24, 16, 1024),  # 350M
    "gpt2-large": (36, 20, 1280),  # 774M
    "gpt2-xl": (48, 25, 1600),  # 1.5B
}
_ALIASES = {
    "gpt2-124m": "gpt2",
    "gpt2-350m": "gpt2-medium",
    "gpt2-774m": "gpt2-large",
    "gpt2-1.5b": "gpt2-xl",
}

STUDY_LAYERS = (2, 4, 8, 12)
STUDY_WIDTHS = (256, 512)
STUDY_HEADS = (4, 8)
STUDY_MAX_LEN = 512


def names() -> list[str]:
    """Every preset's name. `depth-4x256x8` has 4 layers, is 256 wide and has 8 heads."""
    study = [f"depth-{l}x{d}x{h}" for l in STUDY_LAYERS for d in STUDY_WIDTHS for h in STUDY_HEADS]
    return [*_GPT2, *_ALIASES, *study]


def preset(name: str, **overrides: Any) -> GPTConfig:
    """The configuration called `name`, with some fields replaced.

    Raises:
        ValueError: no such preset; the message lists them. TypeError: no name, or a field that is none.
    """
    if not isinstance(name, str):
        raise SettingTypeError("GPTConfig", "preset", name, f"must be one of {', '.join(names())}")
    key = _ALIASES.get(name.lower(), name.lower())
    if key in _GPT2:
        n_layers, n_heads, d_model = _GPT2[key]
        config = GPTConfig(GPT2_VOCAB_SIZE, 1024, n_layers, n_heads, d_model, gelu="tanh")
    elif key in names():
        n_layers, d_model, n_heads = (int(n) for n in key.removeprefix("depth-").split("x"))
        config = GPTConfig(GPT2_VOCAB_SIZE, STUDY_MAX_LEN, n_layers, n_heads, d_model)
    else:
        raise SettingError("GPTConfig", "preset", name, f"must be one of {', '.join(names())}")
    return config.replace(**overrides)
