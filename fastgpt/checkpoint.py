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
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_STEP = re.compile(r"step-(\d{8,})")


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
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed while it wrote
    work = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        yield work
        checksums = {path.name: _sha256(path) for path in sorted(work.iterdir())}
        (work / "checksums.json").write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
        for path in work.iterdir():
            _flush(path)
        _flush(work)
        work.chmod(0o755)
        if target.exists():
            target.rename(work.with_name(work.name + "-replaced"))
        work.rename(target)
        _flush(target.parent)
        shutil.rmtree(work.with_name(work.name + "-replaced"), ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save {target}: {error}; {_free_space(target.parent)} free there. Free some space (or fix the "
            "permissions) and go on with --resume: earlier checkpoints are intact"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints under `root`."""
    for old in all_checkpoints(root)[:-keep]:
        shutil.rmtree(old)


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file of the checkpoint is there and has the hash it was written with."""
    try:
        checksums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a training checkpoint ({error}); {_instead(folder)}") from error
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing from the checkpoint; {_instead(folder)}")
        if _sha256(path) != expected:
            raise CheckpointError(f"{path}: corrupted, its sha256 is not the recorded one; {_instead(folder)}")


def save(
    target: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], tokenizer: Any = None
) -> None:
    """Write model, optimizer, random-number states and `state` (JSON) as one checkpoint, atomically."""
    with atomic_folder(target) as work:
        model.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save(work)
        save_file(optimizer_tensors(model, optimizer) | rng_tensors(), work / "training.safetensors")
        (work / "training.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore model, optimizer and random-number states in place; returns what `save` was given as `state`.

    Raises:
        CheckpointError: corrupted, or made by a model of another shape.
    """
    verify(folder)
    load_weights(folder, model)
    with safe_open(folder / "training.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    _restore_optimizer(folder, model, optimizer, tensors)
    _restore_rng(tensors)
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy the checkpoint's weights into `model`.

    Raises:
        CheckpointError: unreadable, or other names or shapes than the model's.
    """
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_instead(folder)}") from error
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(stored[name].shape)} against the model's {tuple(own[name].shape)}"
        for name in stored
        if name in own and stored[name].shape != own[name].shape
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
    model.load_state_dict(stored, strict=False)


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


def _restore_optimizer(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, kind = key.removeprefix("optimizer/").rsplit("/", 1)
            state.setdefault(parameters[name], {})[kind] = value
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    if state and len(state) != len(owned):
        raise CheckpointError(
            f"{folder}: optimizer state of {len(state)} parameters, the model trains {len(owned)}; resume with the "
            "same parameters frozen"
        )
    # load_state_dict moves each tensor to its parameter's device, and step counters to where fused AdamW wants them.
    packed = optimizer.state_dict()
    packed["state"] = {n: state[p] for n, p in enumerate(owned) if p in state}
    optimizer.load_state_dict(packed)


def _restore_rng(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            if f"rng/cuda/{n}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng/cuda/{n}"], n)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_space(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB"


def _instead(folder: Path) -> str:
    others = [p for p in all_checkpoints(folder.parent) if p != folder]
    if others:
        return f"delete {folder} and go on from {others[-1]}"
    return "restore it from a copy, or start a new run"
