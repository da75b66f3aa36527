"""Checkpoints on disk: which format a path holds, weights checked against the config and against their hash."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...base import files
from ...base.settings import some_of
from .. import tied
from ..config import GPTConfig
from ..size import check_enough_weights
from . import hf_gpt2, nanogpt, sharded
from .locate import check_target, check_type, locate, read_fields, weights_beside
from .tensor_file import read_safetensors, write_safetensors

FORMATS = ("fastgpt", "hf", "nanogpt")
State = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


def load(path_or_name: str | os.PathLike[str]) -> tuple[GPTConfig, State]:
    """Config and state dict (our names, the head included) from a local folder or a nanoGPT .pt file, on the CPU.

    Whether the weights fit the config is seen when a model is `filled` with them.

    Raises:
        FileNotFoundError: nothing there. ValueError: unreadable, or weights that are not those that were written.
        SettingTypeError: no path.
    """
    kind, path = locate(path_or_name)
    if kind == "nanogpt":
        config, state = nanogpt.from_checkpoint(read_pickle(path), source=str(path))
    else:
        config, state = _load_folder(path)
    if config.tie_weights:  # a file holds the shared weight once, under either name
        for name, other in (("head.weight", "token_emb.weight"), ("token_emb.weight", "head.weight")):
            if other in state:
                state.setdefault(name, state[other])
    return config, state


def read_config(path: str | os.PathLike[str]) -> GPTConfig:
    """The config of whatever `load` reads, without its weights.

    Raises:
        FileNotFoundError, ValueError, SettingTypeError: as `load`.
    """
    kind, path = locate(path)
    if kind == "nanogpt":
        return nanogpt.from_checkpoint(read_pickle(path, weights=False), source=str(path))[0]
    return _folder_config(path)[0]


def model_type(path: str | os.PathLike[str]) -> str:
    """ "nanogpt", or the `model_type` of a folder's config.json.

    Raises:
        FileNotFoundError, ValueError, SettingTypeError: as `load`.
    """
    kind, path = locate(path)
    return "nanogpt" if kind == "nanogpt" else str(read_fields(path).get("model_type"))


def _folder_config(path: Path) -> tuple[GPTConfig, bool]:
    """The config, and whether the weights have transformers' names."""
    fields = read_fields(path)
    kind = fields.pop("model_type", None)
    check_type(path, kind)
    source = str(path / "config.json")
    try:
        if kind == "gpt2":
            return hf_gpt2.config_from_hf(fields), True
        return GPTConfig.from_dict(fields, source=source), False
    except (ValueError, TypeError) as error:  # of a setting of that name: not the one that the user gave here
        text = str(error)
        raise ValueError(text if text.startswith(source) else f"{source}: {text}") from error


def _load_folder(path: Path) -> tuple[GPTConfig, State]:
    config, foreign = _folder_config(path)
    state = read_weights(path)
    check_enough_weights(config, state, str(path))
    return config, hf_gpt2.state_from_hf(state, config) if foreign else state


def read_weights(folder: Path) -> State:
    """All tensors of model.safetensors, of its shards, or of pytorch_model.bin; all weights of a sharded checkpoint.

    Raises:
        FileNotFoundError: none of these, or a shard is missing. ValueError: truncated, corrupted or altered.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return read_safetensors(folder / "model.safetensors")
    if index.is_file():
        state: State = {}
        for shard in _shards(index):
            if not (folder / shard).is_file():
                raise FileNotFoundError(f"{index} names {shard}, which is missing; copy all shards into {folder}")
            state.update(read_safetensors(folder / shard))
        return state
    if sharded.is_sharded(folder):
        return sharded.read_whole(folder)
    if (folder / "pytorch_model.bin").is_file():
        return _dict_of(folder / "pytorch_model.bin")
    raise FileNotFoundError(
        f"{folder} has a config.json but no model.safetensors{weights_beside(folder)}; save the model again"
    )


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(files.read_json(index)["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"its weight_map names {names or 'nothing'}")
        return names
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is corrupted ({error!r}); restore it from a copy, or save again") from None


def read_pickle(path: Path, *, weights: bool = True) -> dict[str, Any]:
    """A torch.save file, tensors and plain containers only: nothing in it is executed.

    `weights=False` maps the tensors instead of reading and checking them, for who wants the rest.

    Raises:
        ValueError: truncated, corrupted, altered, or with other objects in it.
    """
    try:
        packed = zipfile.is_zipfile(path)
        if packed and weights:
            _check_zip(path)
        with torch.device("cpu"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=packed and not weights)
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, LookupError,
        AttributeError, TypeError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is truncated, corrupted or holds more than tensors and plain containers ({reason}); "
            "save it again with torch.save from tensors, dicts, lists and numbers only"
        ) from None


def _dict_of(path: Path) -> State:
    """A torch.save file that must hold a dict of tensors."""
    state = read_pickle(path)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} holds no dict of tensors; save the model's state_dict() in it")
    return state


def _check_zip(path: Path) -> None:
    """Raise BadZipFile unless every record has its CRC: torch.load does not look."""
    with zipfile.ZipFile(path) as file:
        for record in file.infolist():
            if record.CRC:  # 0: written with torch.serialization.set_crc32_options(False)
                with file.open(record) as stream:
                    while stream.read(1 << 20):
                        pass


def in_words(config: GPTConfig) -> str:
    """What of a config decides the names of the weights."""
    return f"n_layers={config.n_layers}, bias={config.bias}"


def compare_names(expected: State, state: State, *, source: str, config: str) -> None:
    """Raise ValueError unless `state` has the names and shapes of `expected`. `config` describes the model in words."""
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        raise ValueError(
            f"{source}: the weights do not fit the config ({config}): "
            f"missing {some_of(missing)}, unexpected {some_of(unexpected)}; correct the config or take the right "
            "weights"
        )
    for name, tensor in expected.items():
        if not isinstance(state[name], Tensor):
            raise ValueError(f"{source}: {name} is a {type(state[name]).__name__}, no tensor; save the model again")
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(state[name].shape)} and the config asks for {tuple(tensor.shape)}; "
                "correct the config or take the right weights"
            )


def filled(
    make: Callable[[], Module], state: State, *, source: str, config: str, device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Module:  # fmt: skip
    """The module that `make` makes, with the weights of `state`. device: torch's default; dtype: the weights'.

    Raises:
        ValueError: weights of other names or shapes, or not finite. `source` says where they are from, `config` what
        the model is.
    """
    model = skeleton(make)
    compare_names(model.state_dict(), state, source=source, config=config)
    for name, tensor in state.items():
        check_finite(tensor, f"{source}: {name}")
    # In its dtype before it is filled: a default dtype of fewer bits would round the weights on their way.
    model = model.to(dtype=dtype or next(iter(state.values())).dtype)
    if device is None:  # nobody reads weights to have none
        device = "cpu" if torch.get_default_device().type == "meta" else torch.get_default_device()
    model.to_empty(device=device)
    model.load_state_dict(state)
    return model


def skeleton(make: Callable[[], Module]) -> Module:
    """The module that `make` makes, on the meta device, without filling what will be overwritten.

    Random numbers for meta tensors would import torch._dynamo, a second of every command.
    """
    with torch.device("meta"), _Unfilled():
        return make()


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_):
            return args[0]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise ValueError if a weight is NaN or infinite: nothing that such a model computes means anything."""
    # One sum tells in one pass over the memory; it may itself overflow, so it is only a first look.
    if not tensor.is_floating_point() or math.isfinite(tensor.sum()):
        return
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{what} holds {bad} of {tensor.numel()} numbers that are NaN or infinite: its training diverged, or the "
            "file is damaged; take an earlier checkpoint or a copy"
        )


def save(config: GPTConfig, state: State, folder: str | os.PathLike[str], format: str, *, expected: State) -> None:
    """Write a GPT's config and state dict to `folder` in one of FORMATS. See `GPT.save_pretrained`.

    Raises:
        ValueError: another format, or weights with other names than are `expected`. OSError: it cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"save_pretrained: unknown format {format!r}; choose from {FORMATS}")
    path = check_target(folder, format)
    state = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    # Adapters, for one, would be in a file that nothing reads.
    compare_names(expected, state, source="save_pretrained", config=in_words(config))
    tied.check_saveable(config, state)
    if format == "nanogpt":
        checkpoint = nanogpt.to_checkpoint(config, state)
        files.replace_file(path / "ckpt.pt", lambda new: torch.save(checkpoint, new))
        return
    if config.tie_weights:
        del state["head.weight"]  # safetensors stores no tensor twice
    if format == "hf":
        fields, state = hf_gpt2.config_to_hf(config), hf_gpt2.state_to_hf(state, config)
    else:
        fields = {"model_type": "fastgpt", **config.to_dict()}
    text = json.dumps(fields, indent=2) + "\n"

    def write(work: Path) -> None:
        write_safetensors(work / "model.safetensors", state)
        (work / "config.json").write_text(text, encoding="utf-8")

    files.replace_files(path, write, says=path / "model.safetensors")
