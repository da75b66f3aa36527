"""Checkpoints that are whole or not there: written under a temporary name, flushed to disk, then renamed.

    runs/<name>/checkpoints/step-00001000/
        config.json, model.safetensors      what `model.save_pretrained` writes: `GPT.from_pretrained` reads the folder
        fastgpt_tokenizer.json              what `Tokenizer.save` writes
        training.safetensors                optimizer moments and random-number states
        training.json                       step, sampler position, settings
        checksums.json                      sha256 of every file above

Nothing is pickled, so loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import files
from .interop.folder import write_safetensors

_log = logging.getLogger("fastgpt")

_STEP = re.compile(r"step-(\d{8,})")
_WRITING = ".writing-"  # how folders begin that are no checkpoints yet


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read: the message names the file and the way out."""


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    return int(_STEP.fullmatch(folder.name).group(1))


def all_checkpoints(root: str | os.PathLike[str]) -> list[Path]:
    """The finished checkpoints under `root`, oldest first."""
    root = Path(root)
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and _STEP.fullmatch(p.name)), key=step_of)


def latest(root: str | os.PathLike[str]) -> Path | None:
    """The newest finished checkpoint under `root`, or None."""
    found = all_checkpoints(root)
    return found[-1] if found else None


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to write into; it becomes `target` when the block ends without an exception.

    Every file is hashed into checksums.json and flushed to the disk before the rename, so that after a power cut
    `target` is either whole or absent. An exception removes the temporary folder and touches nothing else.

    Raises:
        CheckpointError: the operating system refused (no space, no permission).
    """
    try:
        with files.working_folder(target.parent, _WRITING) as work:
            yield work
            checksums = {path.name: files.sha256(path) for path in sorted(work.iterdir())}
            (work / "checksums.json").write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
            files.flush_all(work)
            replaced = work.with_name(work.name + "-replaced")
            if target.exists():
                target.rename(replaced)
            try:
                work.rename(target)
            except BaseException:
                if replaced.exists():
                    replaced.rename(target)
                raise
            files.flush(target.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        go_on = "go on with resume=True (--resume)"
        why = files.reason(error.__cause__ if isinstance(error.__cause__, OSError) else error)
        raise CheckpointError(
            f"could not save {target}: {why}{_free_space(target.parent)}. {kept(target.parent)}. Free "
            f"some space (or fix the permissions) and {'start again' if latest(target.parent) is None else go_on}"
        ) from error


def prune(root: Path, keep: int, newest: Path) -> None:
    """Delete checkpoints under `root` until `keep` are left, `newest` among them: the oldest first.

    One that cannot be deleted costs a warning.
    """
    others = [path for path in all_checkpoints(root) if path != newest]
    for old in others[: max(0, len(others) - (keep - 1))]:
        try:
            shutil.rmtree(old)
        except OSError as error:
            _log.warning("could not delete the old checkpoint %s (%s); training goes on", old, files.reason(error))


def kept(root: Path) -> str:
    """Words for what is safe under `root`, whatever happens next."""
    newest = latest(root)
    return "nothing is saved" if newest is None else f"{newest} is kept"


def set_aside_after(root: Path, step: int) -> list[Path]:
    """Rename the checkpoints of later steps, so that none of them is taken for the newest. Returns their new paths."""
    moved = []
    for path in all_checkpoints(root):
        if step_of(path) > step:
            numbers = (path.with_name(f"set-aside-{path.name}{'' if n == 1 else f'-{n}'}") for n in range(1, 1 << 30))
            moved.append(path.rename(next(new for new in numbers if not new.exists())))
    return moved


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file of the checkpoint is there and has the hash it was written with."""
    if not os.path.isdir(folder):
        there = ", ".join(map(str, all_checkpoints(folder.parent))) or "none"
        raise CheckpointError(f"{folder}: not a training checkpoint (no such folder); those of this run: {there}")
    try:
        checksums = dict(files.read_json(folder / "checksums.json"))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: not a training checkpoint ({error}); {_instead(folder)}") from error
    damaged = files.first_damaged(folder, {"training.json": None, "training.safetensors": None} | checksums)
    if damaged is not None:
        what = "corrupted, its sha256 is not the recorded one" if damaged.is_file() else "missing from the checkpoint"
        raise CheckpointError(f"{damaged}: {what}; {_instead(folder)}")


def save(
    target: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], tokenizer: Any = None
) -> None:
    """Write model, optimizer, random-number states and `state` (JSON) as one checkpoint, atomically."""
    with atomic_folder(target) as work:
        model.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save(work)
        write_safetensors(work / "training.safetensors", optimizer_tensors(model, optimizer) | rng_tensors())
        (work / "training.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """What `save` was given as `state`.

    Raises:
        CheckpointError: a file of the checkpoint is corrupted or missing.
    """
    verify(folder)
    return files.read_json(folder / "training.json")


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put model, optimizer and random-number states back in place; all of them, or none.

    Raises:
        CheckpointError: made by a model of another shape, or with other parameters frozen.
    """
    weights = _fitting_weights(folder, model)
    tensors = _read(folder / "training.safetensors")
    moments = _fitting_moments(folder, model, optimizer, tensors)
    model.load_state_dict(weights, strict=False)
    # load_state_dict moves each tensor to its parameter's device, and step counters to where fused AdamW wants them.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    set_rng(tensors)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy the checkpoint's weights into `model`.

    Raises:
        CheckpointError: unreadable, or other names or shapes than the model's.
    """
    model.load_state_dict(_fitting_weights(folder, model), strict=False)


def check_fits(folder: Path, model: nn.Module) -> None:
    """Raise CheckpointError unless the checkpoint's weights have the names and shapes of the model's."""
    path = folder / "model.safetensors"
    with _opened(path) as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    own = model.state_dict()
    shapes = [
        f"{name} {stored[name]} against the model's {tuple(own[name].shape)}"
        for name in stored
        if name in own and stored[name] != tuple(own[name].shape)
    ]
    unknown = sorted(set(stored) - set(own))
    # A tied weight is stored once: a name may be absent if its storage is that of a name that is present.
    present = {own[name].data_ptr() for name in stored if name in own}
    absent = [name for name in own if name not in stored and own[name].data_ptr() not in present]
    if shapes or unknown or absent:
        what = "; ".join(shapes[:3] + [f"unknown {n}" for n in unknown[:3]] + [f"missing {n}" for n in absent[:3]])
        raise CheckpointError(
            f"{path}: made by a model of another shape: {what}. Build the model from {folder / 'config.json'}"
        )


def _fitting_weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    check_fits(folder, model)
    return _read(folder / "model.safetensors")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with torch.device("cpu"), safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_instead(path.parent)}") from error


def _read(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under the parameters' names: "optimizer/<parameter>/<exp_avg, ...>"."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value.detach().clone().contiguous()
    return tensors


def rng_tensors() -> dict[str, Tensor]:
    """The states of torch's random generators, CPU and CUDA, as uint8 tensors."""
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"rng/cuda/{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def set_rng(tensors: dict[str, Tensor]) -> None:
    """Give torch's random generators the states of `rng_tensors`."""
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            if f"rng/cuda/{n}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng/cuda/{n}"], n)


def _fitting_moments(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by the number of the parameter, as `load_state_dict` wants it."""
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {p: number for number, p in enumerate(owned)}
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    unknown = 0
    for key, value in tensors.items():
        if not key.startswith("optimizer/"):
            continue
        name, kind = key.removeprefix("optimizer/").rsplit("/", 1)
        number = numbers.get(parameters.get(name))
        if number is None:
            unknown += 1
            continue
        if value.dim() and value.shape != parameters[name].shape:
            raise CheckpointError(
                f"{folder}: the optimizer's {kind} for {name} has shape {tuple(value.shape)}, the parameter "
                f"{tuple(parameters[name].shape)}; {_instead(folder)}"
            )
        state.setdefault(number, {})[kind] = value.clone()  # what was read is the file's own memory
    if state and (unknown or len(state) != len(owned)):
        stored = {key.rsplit("/", 1)[0] for key in tensors if key.startswith("optimizer/")}
        raise CheckpointError(
            f"{folder}: optimizer state of {len(stored)} parameters, the model trains {len(owned)}; resume with the "
            "same parameters frozen"
        )
    return state


def _free_space(folder: Path) -> str:
    try:
        return f"; {shutil.disk_usage(folder).free / 1e9:.2f} GB free there"
    except OSError:
        return ""


def _instead(folder: Path) -> str:
    """The way out of a checkpoint that cannot be used: the newest of those before it that can."""
    for other in reversed(all_checkpoints(folder.parent)):
        if _STEP.fullmatch(folder.name) and step_of(other) < step_of(folder) and _is_whole(other):
            return (
                f"go on from the one before it: fastgpt train --resume-from {shlex.quote(str(other))} (in Python: "
                "fit(resume=...) of that folder)"
            )
    return "there is none before it: restore it from a copy, or start a new run"


def _is_whole(folder: Path) -> bool:
    """Whether every file has its hash; reads them all."""
    try:
        return files.first_damaged(folder, files.read_json(folder / "checksums.json")) is None
    except (OSError, ValueError, AttributeError):
        return False
