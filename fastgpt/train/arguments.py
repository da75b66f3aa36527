"""What a `Trainer` is given: checked before anything is made of it."""

from __future__ import annotations

import json
import logging
from typing import Any

from torch import nn

from ..base.settings import SettingError, SettingTypeError
from ..data import TokenDataset
from ..data.sampler import check_dataset
from ..data.tokenizer import Tokenizer
from .train_config import TrainConfig

_log = logging.getLogger("fastgpt")


def check_arguments(
    model: nn.Module,
    train_data: TokenDataset,
    config: TrainConfig,
    val_data: TokenDataset | None,
    tokenizer: Tokenizer | None,
) -> None:
    if not isinstance(model, nn.Module):
        need = 'must be a torch.nn.Module, e.g. GPT(GPTConfig.preset("gpt2"))'
        raise SettingTypeError("Trainer", "model", model, need)
    if not isinstance(config, TrainConfig):
        raise SettingTypeError("Trainer", "config", config, "must be a TrainConfig, e.g. TrainConfig(steps=1000)")
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        need = 'must be a Tokenizer, e.g. Tokenizer.named("gpt2")'
        raise SettingTypeError("Trainer", "tokenizer", tokenizer, need)
    _check_data(model, train_data, val_data)
    if tokenizer is not None and tokenizer.sha256 != train_data.tokenizer_sha256:
        need = (
            f"({tokenizer.sha256[:12]}...) is not the one that train_data was made with "
            f"({train_data.tokenizer_sha256[:12]}...); give that one, or tokenize the data again"
        )
        raise SettingError("Trainer", "tokenizer", tokenizer.name, need)


def check_settings(settings: dict[str, Any] | None) -> None:
    """Before a run begins, or an old one is set aside for it: what JSON cannot hold, or makes another thing of."""
    if settings is not None and not isinstance(settings, dict):
        raise SettingTypeError("Trainer", "settings", settings, "must be a dict, or None")
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        need = f"must be what JSON holds, numbers, strings, lists and dicts ({error})"
        raise SettingTypeError("Trainer", "settings", settings, need) from None


def _check_data(model: nn.Module, train_data: TokenDataset, val_data: TokenDataset | None) -> None:
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    for name, data in {"train_data": train_data, **({} if val_data is None else {"val_data": val_data})}.items():
        check_dataset("Trainer", name, data)
        if vocab_size is not None and data.vocab_size > vocab_size:
            raise ValueError(
                f"Trainer: {data.name} has token ids up to {data.vocab_size - 1}, the model's vocab_size is "
                f"{vocab_size}; build the model with vocab_size={data.vocab_size}"
            )
        if data.tokenizer_sha256 != train_data.tokenizer_sha256:
            need = (
                f"was made with another tokenizer ({data.tokenizer_sha256[:12]}...) than train_data "
                f"({train_data.tokenizer_sha256[:12]}...); tokenize both with the same"
            )
            raise SettingError("Trainer", name, data.name, need)
    if val_data is not None and len(val_data) == len(train_data) and val_data.sha256 == train_data.sha256:
        _log.warning(
            "the validation data is the training data, %s: its loss does not tell what the model makes of other texts",
            val_data.name,
        )
