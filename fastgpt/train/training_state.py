"""What a checkpoint holds beside the weights: optimizer moments and random-number states, as named tensors.

optimizer/<parameter>/step, exp_avg, exp_avg_sq
rng/cpu, rng/cuda/<number>                          of a process that trains alone
rng/<rank>/cpu, rng/<rank>/cuda                     of one of several, of the GPU that it trains on
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base.settings import some_of
from ..nn._sharded import is_sharded, local
from .step_folders import CheckpointError, instead

_OPTIMIZER = "optimizer/"
_KINDS = ("exp_avg", "exp_avg_sq", "step")  # of torch.optim.AdamW; `step` is one number, the others are moments


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the state dict, not copied; what is tied, under its first name only.

    A model that is sharded (`fully_shard`) is put back into its shards, as torch does for a state dict.
    """
    found: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(place(tensor), (name, tensor))
    return dict(found.values())


def place(tensor: Tensor) -> object:
    """What two tensors share that are one: of a state dict that keeps its parameters."""
    return id(tensor) if is_sharded(tensor) else (tensor.data_ptr(), tensor.shape) if tensor.numel() else id(tensor)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under the parameters' names, not copied: "optimizer/<parameter>/<exp_avg, ...>".

    A parameter that never had a gradient has no state.
    """
    return {
        f"{_OPTIMIZER}{name}/{kind}": value.detach()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def trained_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters that the optimizer updates, as soon as they have a gradient; sorted."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return sorted(name for name, parameter in model.named_parameters() if id(parameter) in owned)


def rng_tensors() -> dict[str, Tensor]:
    """The states of torch's random generators, CPU and CUDA, as uint8 tensors."""
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"rng/cuda/{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def rank_rng_tensors(rank: int, device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators that this rank uses, under its own names."""
    tensors = {f"rng/{rank}/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors[f"rng/{rank}/cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def rng_names(stored: Iterable[str], rank: int, device: torch.device) -> dict[str, str]:
    """Where a rank's random states are among the `stored` names: the name that `set_rng` knows -> the name there.

    {} for a rank that the run did not have when it was saved.
    """
    names = set(stored)
    number = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    ours = {"rng/cpu": f"rng/{rank}/cpu", f"rng/cuda/{number}": f"rng/{rank}/cuda"}
    found = {name: there for name, there in ours.items() if there in names}
    if found or rank > 0:
        return found
    return {name: name for name in names if name.startswith(("rng/cpu", "rng/cuda/"))}  # of one that trained alone


def begin_rng(seed: int, rank: int) -> None:
    """Begin a rank's random numbers anew, which are others than another rank's; the first's are those of one alone."""
    torch.manual_seed((seed + rank) % 2**64)


def set_rng(tensors: dict[str, Tensor]) -> None:
    """Give torch's random generators the states of `rng_tensors`."""
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            if f"rng/cuda/{n}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng/cuda/{n}"], n)


def check_rng(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless `set_rng` will take the states in `tensors`."""
    own, stored = torch.get_rng_state(), tensors.get("rng/cpu")
    if stored is None or stored.dtype != own.dtype or stored.shape != own.shape:
        raise CheckpointError(f"{folder}: holds no state of torch's random numbers; {instead(folder)}")


def fitting_moments(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    trained: Sequence[str] | None,
    *,
    copy: bool = True,
) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by the number of the parameter, as `load_state_dict` wants it.

    trained: the parameters that the run trained; None where that was not recorded: those that have moments, at least.
    copy: of every tensor, since what was read may be the file's own memory.

    Raises:
        CheckpointError: other parameters are trained now, or a moment that is not this parameter's.
    """
    stored: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            name, _, kind = key.removeprefix(_OPTIMIZER).rpartition("/")
            stored.setdefault(name, {})[kind] = value
    _check_trained(folder, set(trained_names(model, optimizer)), set(stored), trained)
    parameters = dict(model.named_parameters())
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {id(p): number for number, p in enumerate(owned)}
    state = {}
    for name, kinds in stored.items():
        parameter = parameters[name]
        if isinstance(optimizer, torch.optim.AdamW) and sorted(kinds) != sorted(_KINDS):
            have = ", ".join(sorted(kinds))
            raise _no_moments(folder, f"state for {name} is {have}, and should be {', '.join(_KINDS)}")
        for kind, value in kinds.items():
            _check_moment(folder, kind, name, value, parameter)
        state[numbers[id(parameter)]] = {kind: value.clone() if copy else value for kind, value in kinds.items()}
    return state


def _check_trained(folder: Path, now: set[str], stored: set[str], recorded: Sequence[str] | None) -> None:
    before = stored | (now if recorded is None else set(recorded))
    only_before, only_now = sorted(before - now), sorted(now - before)
    if only_before or only_now:
        words = [f"{some_of(only_before)} trained there and not now"] if only_before else []
        words += [f"{some_of(only_now)} trained now and not there"] if only_now else []
        raise CheckpointError(f"{folder}: {'; '.join(words)}; resume with the same parameters frozen")


def _check_moment(folder: Path, kind: str, name: str, value: Tensor, parameter: Tensor) -> None:
    shape = torch.Size() if kind == "step" else parameter.shape
    if value.shape != shape:
        of = "a counter" if kind == "step" else "the parameter"
        raise _no_moments(folder, f"{kind} for {name} has shape {tuple(value.shape)}, {of} {tuple(shape)}")
    dtype = torch.float32 if kind == "step" else parameter.dtype
    if value.dtype != dtype:
        raise _no_moments(folder, f"{kind} for {name} is {_short(value.dtype)}, and should be {_short(dtype)}")
    if not local(value).isfinite().all():  # of this rank's part: no collective
        raise _no_moments(folder, f"{kind} for {name} holds numbers that are NaN or infinite")


def _no_moments(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: the optimizer's {what}; {instead(folder)}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
