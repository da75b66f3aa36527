"""Named models: GPT-2's four sizes, the grid of the depth study, and OneHeadLM as one trains it in class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base.settings import SettingError, SettingTypeError, nearest
from .config import GPTConfig

if TYPE_CHECKING:
    from .gpt import GPT
    from .one_head import OneHeadLM
    from .one_head_base import OneHeadConfig

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
    """Every GPT's name. `depth-4x256x8` has 4 layers, is 256 wide and has 8 heads."""
    study = [f"depth-{l}x{d}x{h}" for l in STUDY_LAYERS for d in STUDY_WIDTHS for h in STUDY_HEADS]
    return [*_GPT2, *_ALIASES, *study]


def described() -> str:
    """The names for people: those of the depth study by their pattern."""
    layers, widths, heads = (",".join(map(str, sizes)) for sizes in (STUDY_LAYERS, STUDY_WIDTHS, STUDY_HEADS))
    return f"{', '.join([*_GPT2, *_ALIASES])}, depth-{{{layers}}}x{{{widths}}}x{{{heads}}} (layers x width x heads)"


ONE_HEAD = "one-head"
_ONE_HEAD = {"vocab_size": GPT2_VOCAB_SIZE, "d_model": 64, "max_len": 128}


def models() -> list[str]:
    """The names that `build` takes: those of `names`, and "one-head"."""
    return [*names(), ONE_HEAD]


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
    from .one_head_base import OneHeadConfig

    for field, value in overrides.items():
        if field not in _ONE_HEAD:
            need = f"is no setting of preset {ONE_HEAD}, which has {', '.join(_ONE_HEAD)}; leave it out"
            raise SettingError("presets", field, value, need)
    return OneHeadConfig(**_ONE_HEAD | overrides)


def make(config: GPTConfig | OneHeadConfig) -> GPT | OneHeadLM:
    """The model of this config, with random weights."""
    from .gpt import GPT
    from .one_head import OneHeadLM

    return GPT(config) if isinstance(config, GPTConfig) else OneHeadLM(**config.to_dict())


def preset(name: str, **overrides: Any) -> GPTConfig:
    """The configuration called `name`, with some fields replaced.

    Raises:
        ValueError: no such preset; the message lists them. TypeError: no name, or a field that is none.
    """
    if not isinstance(name, str):
        raise SettingTypeError("GPTConfig", "preset", name, f"must be one of {described()}, {ONE_HEAD}")
    key = name.lower()
    if key not in models():
        meant = nearest(name, models())
        need = f"must be one of {described()}, {ONE_HEAD}" + (f"; {meant}" if meant else "")
        raise SettingError("GPTConfig", "preset", name, need)
    if key == ONE_HEAD:
        raise SettingError("GPTConfig", "preset", name, "is no GPT; fastgpt.presets.build makes it")
    key = _ALIASES.get(key, key)
    if key in _GPT2:
        n_layers, n_heads, d_model = _GPT2[key]
        config = GPTConfig(GPT2_VOCAB_SIZE, 1024, n_layers, n_heads, d_model, gelu="tanh")
    else:
        n_layers, d_model, n_heads = (int(n) for n in key.removeprefix("depth-").split("x"))
        config = GPTConfig(GPT2_VOCAB_SIZE, STUDY_MAX_LEN, n_layers, n_heads, d_model)
    return config.replace(**overrides)
