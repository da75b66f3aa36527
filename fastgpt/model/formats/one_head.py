"""Folders of OneHeadLM: config.json with "model_type": "fastgpt-one-head", and model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...base import files
from ..one_head_base import OneHeadConfig
from .folder import State, check_finite, compare_names, read_weights, skeleton
from .locate import check_target, locate, read_fields
from .tensor_file import write_safetensors

if TYPE_CHECKING:
    from ..one_head import OneHeadLM

MODEL_TYPE = "fastgpt-one-head"


def save_one_head(model: OneHeadLM, folder: str | os.PathLike[str]) -> None:
    """See `OneHeadLM.save_pretrained`."""
    path = check_target(folder, MODEL_TYPE)
    fields = {"model_type": MODEL_TYPE, **model.config.to_dict()}

    def write(work: Path) -> None:
        write_safetensors(work / "model.safetensors", model.state_dict())
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


def load_one_head(path: str | os.PathLike[str]) -> tuple[dict[str, int], State]:
    """The constructor's arguments and the state dict of a folder that `save_one_head` wrote.

    Raises:
        FileNotFoundError: no such folder, or no weights in it. ValueError: of another model, or corrupted.
    """
    from ..one_head import OneHeadLM

    fields = read_one_head_config(path).to_dict()
    state = read_weights(locate(path)[1])
    expected = skeleton(lambda: OneHeadLM(**fields)).state_dict()
    compare_names(expected, state, source=str(path), config=", ".join(f"{k}={v}" for k, v in fields.items()))
    for name, tensor in state.items():
        check_finite(tensor, f"{path}: {name}")
    return fields, state
