"""A GPT that torch's `fully_shard` (FSDP2) has dealt out by somebody's own code: sampling, saving and loading.

What a function here does together with the other ranks, all of them must do: they call it alike. A rank that does not
come leaves the others waiting until the process group's time-out ends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn._sharded import fsdp_modules, is_fsdp, is_sharded

State = dict[str, Tensor]
_CHECKED = (OSError, ValueError, TypeError)  # kinds of errors that all ranks raise, when the one that writes does


def as_forward(module: nn.Module, method: Callable[..., Any], *args: Any) -> Any:
    """`method(*args)`, a method of `module`, between what FSDP2 does before and after the module's forward: it gathers
    the parameters that belong to the module, in the dtype that its policy asks for, and puts the parts back.

    Raises:
        RuntimeError: the parameters are parts all the same: a module around this one owns them, or no FSDP2 does.
    """
    try:
        if not is_fsdp(module):
            return method(*args)
        from torch.distributed.fsdp import register_fsdp_forward_method

        name = method.__name__
        before = vars(module).get(name)
        register_fsdp_forward_method(module, name)
        try:
            return getattr(module, name)(*args)
        finally:
            vars(module).pop(name)
            if before is not None:
                vars(module)[name] = before
    except RuntimeError as error:
        if "DTensor" not in str(error) or not any(map(is_sharded, module.parameters())):
            raise
        raise RuntimeError(
            f"{type(module).__name__}: its weights are parts (DTensor) that nothing gathers here: shard the model "
            "itself, by fully_shard(model) after its blocks, or call what was sharded around it"
        ) from error


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, where it is a part; a copy then, on the device that the ranks talk by. Differentiable."""
    if not is_sharded(tensor):
        return tensor
    part: Any = tensor
    device_type = part.device_mesh.device_type
    return (part if part.device.type == device_type else part.to(device_type)).full_tensor()


def by_first(state: State, write: Callable[[State], None]) -> None:
    """`write` the state dict; where parts are in it, whole, on the first of the ranks that hold it. All end together.

    One tensor after the other is gathered: beside the model's parts, the first rank's host memory takes the whole
    model, and every other rank one tensor. `state` has the parameters themselves (keep_vars=True), each under one or
    more names.

    Raises:
        OSError, ValueError, TypeError, RuntimeError: what `write` raises on the first rank, on all of them.
    """
    mesh = next((tensor.device_mesh for tensor in _parts(state.values())), None)
    if mesh is None:
        return write({name: tensor.detach() for name, tensor in state.items()})
    first = mesh.get_coordinate() is not None and not any(mesh.get_coordinate())
    whole: dict[int, Tensor | None] = {}  # by the parameter: a tied one is gathered once
    with torch.no_grad():
        for tensor in state.values():
            if id(tensor) not in whole:
                found = full_tensor(tensor)
                whole[id(tensor)] = None if not first else _alone(found.cpu()) if is_sharded(tensor) else found
    error: BaseException | None = None
    try:
        if first:
            found_whole = {name: whole[id(tensor)] for name, tensor in state.items()}
            write({name: tensor.detach() for name, tensor in found_whole.items() if tensor is not None})
    except BaseException as raised:
        error = raised
    told = _from_first(mesh, None if error is None else (_kind(error), f"{error}" or type(error).__name__))
    if error is not None:
        raise error
    if told is not None:
        kind, message = told
        raise kind(f"the first rank says: {message}")
    return None


def load_whole(
    model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], strict: bool, missing: list[str],
    unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """A load_state_dict pre-hook: of whole tensors, each rank takes its part, without a word to the others."""
    if not is_dealt_out(model):
        return
    for name, part in model.state_dict(keep_vars=True).items():  # not model.parameters(): those may be gathered now
        given = state.get(prefix + name)
        if is_sharded(part) and isinstance(given, Tensor) and not is_sharded(given) and given.shape == part.shape:
            state[prefix + name] = part_of(given.detach(), part)


def part_of(whole: Tensor, like: Any) -> Tensor:
    """`whole`, which all ranks have alike, as a DTensor that lies where `like` does: nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def everywhere(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """all(flags) -> whether all `flags` (bool) are True, on every rank that holds a part of `model`; a bool scalar.

    Ranks whose rows end at different tokens would else leave each other waiting.
    """
    parts = _parts(model.state_dict().values()) if is_dealt_out(model) else []
    if not parts:
        return Tensor.all
    mesh = parts[0].device_mesh

    def all_of(flags: Tensor) -> Tensor:
        import torch.distributed as dist

        least = flags.all().to(mesh.device_type, torch.int32)
        for dim in range(mesh.ndim):
            dist.all_reduce(least, dist.ReduceOp.MIN, group=mesh.get_group(dim))
        return least.bool()

    return all_of


def part_versions(module: nn.Module) -> list[int]:
    """How often each of the parts that FSDP2 holds for `module` itself has been written to; [] of any other module.

    While they are gathered, `module` has other tensors in their place, which an optimizer does not write to.
    """
    if not is_fsdp(module):
        return []
    state: Any = module._get_fsdp_state()  # type: ignore[operator]
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return [held.sharded_param._version for group in groups if group is not None for held in group.fsdp_params]


def is_dealt_out(model: nn.Module) -> bool:
    """Whether a rank holds a part of its parameters only."""
    return bool(fsdp_modules(model)) or any(map(is_sharded, model.parameters()))


def _parts(tensors: Any) -> list[Any]:
    return [tensor for tensor in tensors if is_sharded(tensor)]


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without more memory than it has numbers: parts of unequal sizes are gathered with padding, which a
    file of torch.save would hold too."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _kind(error: BaseException) -> type[Exception]:
    return next((kind for kind in _CHECKED if isinstance(error, kind)), RuntimeError)


def _from_first(mesh: Any, value: Any) -> Any:
    """The `value` of the rank at the mesh's origin, on all ranks of the mesh."""
    import torch.distributed as dist

    held = [value]
    for dim in range(mesh.ndim):  # along the first axis from the origin, then along the next from where it is known
        dist.broadcast_object_list(held, group=mesh.get_group(dim), group_src=0)
    return held[0]
