"""Folders of OneHeadLM: config.json with "model_type": "fastgpt-one-head", and model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ...base import files
from ..one_head_config import OneHeadConfig
from .folder import State, read_weights
from .locate import check_target, locate, read_fields
from .tensor_file import write_safetensors

MODEL_TYPE = "fastgpt-one-head"


def save_one_head(config: OneHeadConfig, state: State, folder: str | os.PathLike[str]) -> None:
    """See `OneHeadLM.save_pretrained`."""
    path = check_target(folder, MODEL_TYPE)
    fields = {"model_type": MODEL_TYPE, **config.to_dict()}

    def write(work: Path) -> None:
        write_safetensors(work / "model.safetensors", state)
        (work / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    files.replace_files(path, write, says=path / "model.safetensors")


def read_one_head_config(path: str | os.PathLike[str]) -> OneHeadConfig:
    """The config of a folder that `save_one_head` wrote.

    Raises:
        FileNotFoundError: no such folder. ValueError: of another model, or corrupted.
    """
    kind, folder = locate(path)
    fields = read_fields(folder) if kind == "folder" else {"model_type": kind}
    source = folder / "config.json"
    if fields.pop("model_type", None) != MODEL_TYPE:
        raise ValueError(f"{path}: not a OneHeadLM; read it with GPT.from_pretrained")
    try:
        return OneHeadConfig(**fields)
    except (ValueError, TypeError) as error:  # the file's fault, not that of an option of this name
        raise ValueError(f"{source}: {error}") from None


def load_one_head(path: str | os.PathLike[str]) -> tuple[OneHeadConfig, State]:
    """The config and the state dict of a folder that `save_one_head` wrote; whether they fit is seen by `filled`.

    Raises:
        FileNotFoundError: no such folder, or no weights in it. ValueError: of another model, or corrupted.
    """
    return read_one_head_config(path), read_weights(locate(path)[1])
