"""Models of whatever kind a path holds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from ..base.settings import SettingError
from ..model.formats.folder import model_type, read_config
from ..model.formats.one_head import MODEL_TYPE, read_one_head_config

if TYPE_CHECKING:
    from ..model.config import GPTConfig
    from ..model.gpt import GPT
    from ..model.one_head import OneHeadLM
    from ..model.one_head_config import OneHeadConfig


def open_config(path: str | os.PathLike[str]) -> GPTConfig | OneHeadConfig:
    """The config of the GPT or the OneHeadLM in `path`, without its weights; errors as `open_model`."""
    return read_one_head_config(path) if model_type(path) == MODEL_TYPE else read_config(path)


def open_model(
    path: str | os.PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    **overrides: Any,
) -> GPT | OneHeadLM:  # fmt: skip
    """The GPT or the OneHeadLM in `path`, in eval mode; arguments as `GPT.from_pretrained`.

    Raises:
        FileNotFoundError, ValueError: as `GPT.from_pretrained`. SettingError: `overrides` for a OneHeadLM.
    """
    from ..model.gpt import GPT
    from ..model.one_head import OneHeadLM

    if model_type(path) != MODEL_TYPE:
        return GPT.from_pretrained(path, device=device, dtype=dtype, **overrides)
    for name, value in overrides.items():
        raise SettingError("open_model", name, value, f"is not a setting of the OneHeadLM in {path}; leave it out")
    return OneHeadLM.from_pretrained(path, device=device, dtype=dtype)
