"""The sizes behind the names of models, as plain numbers: what a config is made from."""

from __future__ import annotations

from typing import Any

from ..base.settings import SettingError, SettingTypeError, nearest

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

# What to plan for on many GPUs: heads of 128 numbers. The vocabulary is GPT-2's, as in all other presets.
LARGE_LAYERS = (32, 64, 96)
LARGE_WIDTHS = (4096, 6144, 8192)
LARGE_HEAD_DIM = 128
LARGE_MAX_LEN = 2048

STUDY_LAYERS = (2, 4, 8, 12)
STUDY_WIDTHS = (256, 512)
STUDY_HEADS = (4, 8)
STUDY_MAX_LEN = 512

ONE_HEAD = "one-head"
ONE_HEAD_SIZES = {"vocab_size": GPT2_VOCAB_SIZE, "d_model": 64, "max_len": 128}


def names() -> list[str]:
    """Every GPT's name. `depth-4x256x8` has 4 layers, is 256 wide and has 8 heads; so with `gpt-32x4096x32`."""
    large = [f"gpt-{l}x{d}x{d // LARGE_HEAD_DIM}" for l in LARGE_LAYERS for d in LARGE_WIDTHS]
    study = [f"depth-{l}x{d}x{h}" for l in STUDY_LAYERS for d in STUDY_WIDTHS for h in STUDY_HEADS]
    return [*_GPT2, *_ALIASES, *large, *study]


def described() -> str:
    """The names for people: the large ones, and those of the depth study, by their patterns."""
    layers, widths, heads = (",".join(map(str, sizes)) for sizes in (STUDY_LAYERS, STUDY_WIDTHS, STUDY_HEADS))
    deep = ",".join(map(str, LARGE_LAYERS))
    wide = ",".join(f"{d}x{d // LARGE_HEAD_DIM}" for d in LARGE_WIDTHS)
    patterns = f"gpt-{{{deep}}}x{{{wide}}}, depth-{{{layers}}}x{{{widths}}}x{{{heads}}}"
    return f"{', '.join([*_GPT2, *_ALIASES])}, {patterns} (layers x width x heads)"


def models() -> list[str]:
    """The names that `build` takes: those of `names`, and "one-head"."""
    return [*names(), ONE_HEAD]


def fields_of(name: str) -> dict[str, Any]:
    """GPTConfig's fields of the GPT called `name`.

    Raises:
        ValueError: no such preset; the message lists them. TypeError: no name.
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
        max_len, (n_layers, n_heads, d_model), gelu = 1024, _GPT2[key], "tanh"
    elif key.startswith("gpt-"):
        max_len, gelu = LARGE_MAX_LEN, "tanh"
        n_layers, d_model, n_heads = (int(n) for n in key.removeprefix("gpt-").split("x"))
    else:
        max_len, gelu = STUDY_MAX_LEN, "none"
        n_layers, d_model, n_heads = (int(n) for n in key.removeprefix("depth-").split("x"))
    return {
        "vocab_size": GPT2_VOCAB_SIZE, "max_len": max_len, "n_layers": n_layers, "n_heads": n_heads,
        "d_model": d_model, "gelu": gelu,
    }  # fmt: skip
