"""Checkpoints that are whole or not there: written under a temporary name, flushed to disk, then renamed.

    runs/<name>/checkpoints/step-00001000/
        config.json, model.safetensors      what `model.save_pretrained` writes: `GPT.from_pretrained` reads the folder
        fastgpt_tokenizer.json              what `Tokenizer.save` writes
        training.safetensors                optimizer moments and random-number states
        training.json                       step, sampler position, settings
        checksums.json                      sha256 of every file above

What several ranks wrote (`sharded.py`) has all tensors in sharded/*.safetensors, in place of the two files. Either is
read by one rank or by many.

Nothing is pickled, so loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..base import checksums, files
from ..base.checksums import DamagedFile
from ..model.config import may_change
from ..model.formats import sharded
from ..model.formats.tensor_file import all_tensors, dtype_name, dtype_of, opened, write_safetensors
from ..model.sharding import is_dealt_out
from ..parallel.world import World
from . import overwritten, step_folders
from .overwritten import kept
from .step_folders import (
    WRITING,
    CheckpointError,
    all_checkpoints,
    folder_of,
    instead,
    is_named_for,
    latest,
    set_aside_after,
    step_of,
)
from .training_state import (
    begin_rng,
    check_rng,
    fitting_moments,
    optimizer_tensors,
    place,
    rng_names,
    rng_tensors,
    set_rng,
    trained_names,
    weights,
)

__all__ = [
    "CheckpointError", "all_checkpoints", "atomic_folder", "check_fits", "could_not_save", "folder_of", "kept",
    "latest", "prune", "read_state", "restore", "save", "set_aside_after", "set_rng", "step_of", "verify",
]  # fmt: skip


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to write into; it becomes `target` when the block ends without an exception.

    Every file is hashed into checksums.json and flushed to the disk before the rename, so that after a power cut
    `target` is either whole or absent. An exception removes the temporary folder and touches nothing else.

    Raises:
        CheckpointError: the operating system refused (no space, no permission).
    """
    try:
        with files.working_folder(target.parent, WRITING) as work:
            yield work
            checksums.write(work)
            files.flush_all(work)
            step_folders.replace(work, target)
    except (OSError, SafetensorError) as error:
        raise could_not_save(target, error) from error


def could_not_save(target: Path, error: Exception) -> CheckpointError:
    """What to raise where `error` kept the checkpoint `target` from being written."""
    root = target.parent
    why = files.reason(error.__cause__ if isinstance(error.__cause__, OSError) else error)
    then = "start again" if overwritten.newest(root) is None else "go on with resume=True (--resume)"
    return CheckpointError(
        f"could not save {target}: {why}{files.free_space(error, root)}. {kept(root)}. "
        f"{(files.remedy(error) or 'mend that').capitalize()}, and {then}"
    )


def prune(root: Path, keep: int, newest: Path) -> None:
    """Delete old checkpoints (`step_folders.prune`) and the run that was started over, now that there is a new one."""
    step_folders.prune(root, keep, newest)
    overwritten.settle(root.parent)


def verify(folder: Path, world: World | None = None) -> None:
    """Raise CheckpointError unless every file of the checkpoint is there and has the hash it was written with.

    world: its ranks share the hashing, and each raises of the files that it has hashed.
    """
    if not os.path.isdir(folder):
        there = ", ".join(map(str, all_checkpoints(folder.parent))) or "none"
        raise CheckpointError(f"{folder}: not a training checkpoint (no such folder); those of this run: {there}")
    try:
        if world is None or world.size == 1:
            names = checksums.check(folder, whole=True)
        else:
            names = checksums.check(folder)
            checksums.check(folder, sorted(names)[world.rank :: world.size])
    except DamagedFile as error:
        raise CheckpointError(f"{error.path}: {error.what}; {instead(folder)}") from None
    has_shards = any(name.startswith(f"{sharded.FOLDER}/") for name in names)
    for name in ("training.json",) if has_shards else ("model.safetensors", "training.json", "training.safetensors"):
        if name not in names:
            raise CheckpointError(f"{folder / name}: missing, so {folder.name} is no training checkpoint")


def save(
    target: Path, model: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any], tokenizer: Any = None
) -> None:
    """Write model, optimizer, random-number states and `state` (JSON) as one checkpoint, atomically.

    model: a torch.nn.Module with `save_pretrained(folder)`.

    Raises:
        CheckpointError: it cannot be written; nothing was replaced.
    """
    state = state | {"trained": trained_names(model, optimizer)}
    with atomic_folder(target) as work:
        model.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save(work)
        write_safetensors(work / "training.safetensors", optimizer_tensors(model, optimizer) | rng_tensors())
        (work / "training.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path, world: World | None = None) -> dict[str, Any]:
    """What `save` was given as `state`. world: its ranks share the hashing (`verify`).

    Raises:
        CheckpointError: a file of the checkpoint is corrupted or missing.
    """
    verify(folder, world)
    state = files.read_json(folder / "training.json")
    step = state.get("step") if isinstance(state, dict) else None
    if not isinstance(step, int) or not is_named_for(folder, step):
        raise CheckpointError(
            f"{folder / 'training.json'}: of step {step}, and not of {folder.name}; {instead(folder)}"
        )
    if not _is_state(state):
        raise CheckpointError(
            f"{folder / 'training.json'}: corrupted (its hash is right, and what it says is no state of a run); "
            f"{instead(folder)}"
        )
    return state


def _is_state(state: dict[str, Any]) -> bool:
    """Whether it has what `Trainer.load` reads, each of its type. Version 0.1 wrote no `owed` and no `trained`."""
    sampler, owed, trained = state.get("sampler"), state.get("owed", {}), state.get("trained", [])
    if not isinstance(sampler, dict) or not isinstance(owed, dict) or not isinstance(trained, list):
        return False
    numbers = [state["step"], *(sampler.get(name) for name in ("position", "seed"))]
    sizes = [sampler.get(name) for name in ("seq_len", "n_tokens")]
    lines = owed.get("lines", [])
    return (
        isinstance(state.get("settings", state.get("config")), dict)
        and isinstance(state.get("tokenizer_sha256"), str)
        and all(type(n) is int and n >= 0 for n in numbers)
        and all(type(n) is int and n >= 1 for n in sizes)
        and owed.keys() <= {"lines", "validation"}
        and isinstance(owed.get("validation", False), bool)
        and isinstance(lines, list)
        and all(isinstance(line, dict) and type(line.get("step")) is int for line in lines)
        and all(isinstance(name, str) for name in trained)
    )


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World | None = None) -> None:
    """Put model, optimizer and random-number states back in place; all of them, or none.

    Whatever number of ranks and strategy wrote the checkpoint: each rank of `world` takes its part, and calls no
    collective. A rank that the run did not have begins its random numbers from the run's seed and its own number.

    Raises:
        CheckpointError: made by another model, or with other parameters frozen; or no state of such an optimizer.
    """
    world = World() if world is None else world
    check_fits(folder, model)
    state = files.read_json(folder / "training.json")
    in_parts = sharded.is_sharded(folder) or is_dealt_out(model)
    if in_parts:
        loaded, tensors, names = _read_parts(folder, model, world)
    else:
        loaded, tensors = _read(folder / "model.safetensors"), _read(folder / "training.safetensors")
        names = rng_names(tensors, world.rank, world.device)
    moments = fitting_moments(folder, model, optimizer, tensors, state.get("trained"), copy=not in_parts)
    random = {name: tensors[there] for name, there in names.items()}
    if random or world.rank == 0:
        check_rng(folder, random)
    model.load_state_dict(loaded, strict=False)
    # load_state_dict moves each tensor to its parameter's device, and step counters to where fused AdamW wants them.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    if random:
        set_rng(random)
    else:
        begin_rng(state["sampler"]["seed"], world.rank)


def _read_parts(
    folder: Path, model: nn.Module, world: World
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """(weights, the other tensors, names of this rank's random states) of a checkpoint, this rank's parts of them."""
    stored = _stored(folder)
    own = weights(model)
    parameters = dict(model.named_parameters())
    names = rng_names((name for name in stored if name.startswith("rng/")), world.rank, world.device)
    wanted: dict[str, Tensor] = {}
    for name, (dtype, *shape) in stored.items():
        like = own.get(name)
        if name.startswith("rng/") and name not in names.values():
            continue
        if name.startswith("optimizer/"):
            like = parameters.get(name.removeprefix("optimizer/").rpartition("/")[0])
        if like is not None and list(like.shape) == shape:
            wanted[name] = torch.empty_like(like.detach(), dtype=dtype_of(dtype))
        else:
            wanted[name] = torch.empty(shape, dtype=dtype_of(dtype), device="cpu")
    try:
        sharded.read_into(folder, wanted)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({files.reason(error)}); {instead(folder)}") from error
    loaded = {name: tensor for name, tensor in wanted.items() if sharded.is_weight(name)}
    return loaded, {name: tensor for name, tensor in wanted.items() if name not in loaded}, names


def _stored(folder: Path) -> dict[str, tuple[Any, ...]]:
    try:
        return sharded.stored(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{files.reason(error)}; {instead(folder)}") from error


def check_fits(folder: Path, model: nn.Module) -> None:
    """Raise CheckpointError unless the checkpoint's weights are this model's: by their names and shapes, and by what
    the config says of how they are used (a model without a config of dataclass fields has the first alone)."""
    if sharded.is_sharded(folder):
        path = folder / sharded.FOLDER
        stored = {name: kind for name, kind in _stored(folder).items() if sharded.is_weight(name)}
    else:
        path = folder / "model.safetensors"
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            stored = {name: (found.get_dtype(), *found.get_shape()) for name, found in slices.items()}
    own = model.state_dict(keep_vars=True)
    named = {name: (dtype_name(own[name].dtype), *own[name].shape) for name in stored if name in own}
    shapes = [
        f"{name} {_words(stored[name], other)} against the model's {_words(other, stored[name])}"
        for name, other in named.items()
        if stored[name] != other
    ]
    unknown = sorted(set(stored) - set(own))
    # A tied weight is stored once: a name may be absent if its storage is that of a name that is present.
    present = {place(own[name]) for name in stored if name in own}
    absent = [name for name in own if name not in stored and place(own[name]) not in present]
    if shapes or unknown or absent:
        what = "; ".join(shapes[:3] + [f"unknown {n}" for n in unknown[:3]] + [f"missing {n}" for n in absent[:3]])
        raise CheckpointError(
            f"{path}: made by a model of another shape: {what}. Build the model from {folder / 'config.json'}"
        )
    _check_config(folder, model)


def _words(kind: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    """The shape of a tensor, or its dtype where that is all that differs; both are (dtype, *shape)."""
    return kind[0] if kind[1:] == other[1:] else str(kind[1:])


def _check_config(folder: Path, model: nn.Module) -> None:
    """Raise CheckpointError where the saved config would compute something else with the same weights."""
    config = getattr(model, "config", None)
    path = folder / "config.json"
    if not dataclasses.is_dataclass(config) or isinstance(config, type) or not path.is_file():
        return
    saved = files.read_json(path)
    own = dataclasses.asdict(config) if isinstance(saved, dict) else {}  # a model of others may write what it likes
    differ = [
        f"{name} {saved[name]}, the model's is {value}"
        for name, value in own.items()
        if isinstance(value, (bool, int, float, str))
        and name in saved
        and saved[name] != value
        and not may_change(name)
    ]
    if differ:
        raise CheckpointError(
            f"{path}: made by another model: {'; '.join(differ)}. Build the model from {path}, or start a new run"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with opened(path) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {instead(path.parent)}") from error


def _read(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return all_tensors(file)
