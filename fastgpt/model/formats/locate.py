"""What a path holds: the files of a model, or, in the error, what is there in their place and the way on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...base import checksums, files
from ...base.settings import SettingError, SettingTypeError

KINDS = ("fastgpt", "fastgpt-one-head")  # `model_type` of our own formats
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def locate(path_or_name: str | os.PathLike[str]) -> tuple[str, Path]:
    """("folder", a folder with a config.json) or ("nanogpt", a .pt file).

    Raises:
        SettingTypeError: no path. FileNotFoundError: nothing there, or something else; the message says what.
    """
    try:
        path = Path(path_or_name)
    except TypeError:
        need = "must be the path of a saved model"
        raise SettingTypeError("GPT.from_pretrained", "path_or_name", path_or_name, need) from None
    # os.path answers False where a name is too long or holds a NUL; Path raises.
    if os.path.isfile(path):
        if path.name in ("config.json", "model.safetensors"):
            path = path.parent
        elif path.suffix in (".pt", ".pth"):
            return "nanogpt", path
    if os.path.isfile(path / "config.json"):
        return "folder", path
    if os.path.isfile(path / "ckpt.pt"):
        return "nanogpt", path / "ckpt.pt"
    raise FileNotFoundError(f"from_pretrained: {str(path_or_name)!r} {_instead(path)}")


def read_fields(folder: Path) -> dict[str, Any]:
    """config.json as a dict; of a training checkpoint, only if it has the sha256 that was recorded.

    Raises:
        ValueError: not JSON, not an object, or altered.
    """
    checksums.check(folder, ["config.json"])
    path = folder / "config.json"
    try:
        fields = files.read_json(path)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is corrupted ({error}); save the model again") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is corrupted (a {type(fields).__name__}, not an object); save the model again")
    return fields


def check_type(folder: Path, kind: Any) -> None:
    """Raise ValueError unless `model_type` is one that GPT reads."""
    if kind in ("fastgpt", "gpt2"):
        return
    if kind == "fastgpt-one-head":
        raise ValueError(f"{folder / 'config.json'}: the model is a OneHeadLM; read it with OneHeadLM.from_pretrained")
    adapter = " (and the adapter beside it is PEFT's)" if (folder / "adapter_config.json").is_file() else ""
    raise ValueError(f'{folder / "config.json"}: model_type must be "fastgpt" or "gpt2", got {kind!r}{adapter}')


def check_target(folder: str | os.PathLike[str], kind: str) -> Path:
    """`folder` as a path, if saving a model of this `model_type` there loses nothing of others.

    Raises:
        SettingError: no folder of that name can be, or it holds a config.json that is no model's of ours or of GPT-2.
        SettingTypeError: no path.
    """
    path = files.check_folder("save_pretrained", "folder", folder)
    config = path / "config.json"
    if not config.is_file():
        return path
    if kind == "nanogpt":
        need = "holds another model (config.json), which readers would take for this one; choose another folder"
        raise SettingError("save_pretrained", "folder", str(folder), need)
    try:
        there = files.read_json(config)
    except ValueError:  # damaged: saving again is the way out
        return path
    found = there.get("model_type") if isinstance(there, dict) else None
    if found not in (*KINDS, "gpt2") and not (found is None and isinstance(there, dict) and "n_layers" in there):
        what = f"a model of type {found!r}" if found is not None else "a config.json that is no model's of fastgpt"
        need = f"holds {what}, which would be lost; choose another folder"
        raise SettingError("save_pretrained", "folder", str(folder), need)
    return path


def weights_beside(folder: Path) -> str:
    """ "; <files that look like weights> ..." for an error about a folder whose weights have no known name, else ""."""
    found = sorted(p.name for p in folder.iterdir() if p.suffix in _WEIGHTS and not p.name.startswith("training"))
    if not found:
        return ""
    if "model.safetensors" in found:
        return "; model.safetensors is there: put the model's config.json beside it"
    if len(found) == 1 and found[0].endswith(".safetensors"):
        return f"; {found[0]} is there: if that is the model, rename it"
    return f"; there are {', '.join(found[:3])}"


def _instead(path: Path) -> str:
    """What is at `path`, which is no model, and what to do."""
    if not os.path.exists(path):
        return (
            "does not exist. It must be a local folder that save_pretrained wrote, or a nanoGPT checkpoint: nothing is "
            "downloaded. For a model of the Hugging Face hub, save it once with transformers: "
            f'GPT2LMHeadModel.from_pretrained("gpt2").save_pretrained("{path.name or "folder"}")'
        )
    if os.path.isfile(path):
        return "is a file, and no checkpoint: give a model's folder, or a nanoGPT checkpoint (.pt)"
    if (path / "adapter_config.json").is_file():
        return (
            "holds a PEFT adapter, without the model that it belongs to: load that one, put the adapter on it and save "
            "the whole: PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)"
        )
    steps = sorted([*path.glob("checkpoints/step-*"), *path.glob("step-*")], key=lambda p: (len(p.name), p.name))
    if steps:
        return f"holds a run: give one of its checkpoints, {str(steps[-1])!r} is the newest"
    if (path / "manifest.json").is_file():
        return "holds token shards, which are data, and no model: give a model's folder"
    return (
        f"exists, but has no config.json and no ckpt.pt{weights_beside(path)}. It must be a folder that "
        "save_pretrained wrote, or a nanoGPT checkpoint"
    )
