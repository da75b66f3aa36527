"""`Strategy`: how one model lies on the devices of a `World`, and how gradients come together.

single  one device
ddp     each rank holds all; gradients are averaged (Li et al. 2020, "PyTorch Distributed", arXiv 2006.15704)
fsdp    each rank holds a part of every parameter, its gradient and its moments (Rajbhandari et al. 2020, "ZeRO", arXiv
        1910.02054, stage 3; Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277)
hsdp    fsdp within groups of ranks, ddp between these groups
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base.settings import SettingError
from ..model.sharding import full_tensor
from .world import World


class Strategy:
    """One device, alone.

    name     as `--strategy` has it
    forward  what is called in the model's place

    A rank multiplies its part of the loss by `share` before the backward, so that the gradient that comes together is
    that of the sum over all ranks.
    """

    name = "single"
    share = 1.0

    def __init__(self, model: nn.Module, world: World | None = None) -> None:
        self.model, self.world = model, World() if world is None else world
        self.forward: Callable[..., Any] = model

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; `last`: of the update, when gradients come together."""
        return contextlib.nullcontext()

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scale the gradients to a norm of at most `most`. Returns the norm before, over all ranks: a plain scalar."""
        return torch.nn.utils.clip_grad_norm_(parameters, most)


class DataParallel(Strategy):
    """torch's DistributedDataParallel: the whole model on each rank, gradients averaged while the backward runs."""

    name = "ddp"

    def __init__(self, model: nn.Module, world: World) -> None:
        super().__init__(model, world)
        self.share = float(world.size)  # torch averages over ranks
        parallel: Any = nn.parallel.DistributedDataParallel
        # Buffers are not sent before each forward. torch 2.13 has renamed that, and warns of the old name.
        names = inspect.signature(parallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        self._parallel = parallel(
            model, device_ids=[world.device] if world.device.type == "cuda" else None, gradient_as_bucket_view=True,
            **{buffers: False},
        )  # fmt: skip
        self._settle_buckets()
        self.forward = self._parallel

    def _settle_buckets(self) -> None:
        """Have torch order its buckets before the first step and not in the midst of it, by a backward that counts for
        nothing: of more than two ranks, who adds to whose sum first depends on where in a bucket an element lies, and a
        run that is resumed would end with other bits."""
        model, trained = self._parallel.module, [p for p in self.model.parameters() if p.requires_grad]
        self._parallel.module = _Sum(trained)
        try:
            with torch.enable_grad():
                self._parallel().backward()
        finally:
            self._parallel.module = model
        for parameter in trained:
            parameter.grad = None

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        self.world.mark()
        return contextlib.nullcontext() if last else self._parallel.no_sync()


class _Sum(nn.Module):
    """The sum of these parameters, so that their gradients come from the last to the first, as a GPT's do."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._of = list(parameters)  # no parameters of this module: their names are the model's

    def forward(self) -> Tensor:
        sums = [parameter.float().sum() for parameter in self._of]
        return sum(sums[1:], sums[0])


class Sharded(Strategy):
    """torch's fully_shard (FSDP2) on each block, and on the root, whose group holds all else: embeddings, the last
    LayerNorm and the head, tied or not.

    A block's parameters are gathered for its forward and again for its backward, the next block's meanwhile; the root's
    stay from forward to backward, which begins with them. Each micro-batch's gradients are reduced when its backward
    makes them, in float32, and add up in the shards: a gradient of the whole model lies nowhere.

    compute: bfloat16 gathers parameters in it. Products are then taken by autocast as on one device, from a residual
    stream in float32: its sums are rounded as there.
    shard_ranks: of hsdp, the ranks that share one copy of the parameters; None of fsdp: all.
    """

    name = "fsdp"

    def __init__(
        self, model: nn.Module, world: World, *, compute: torch.dtype = torch.float32, shard_ranks: int | None = None
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(model, world)
        self.share = float(world.size)  # torch averages over ranks
        if shard_ranks is None:
            mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
        else:
            copies = world.size // shard_ranks
            mesh = init_device_mesh(world.device.type, (copies, shard_ranks), mesh_dim_names=("replicate", "shard"))
        self.mesh = mesh
        policy = MixedPrecisionPolicy()
        if compute != torch.float32:
            policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        blocks = list(blocks_of(model))
        if blocks and compute != torch.float32:
            blocks[0].register_forward_pre_hook(widened)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self._parts: list[Any] = [model, *blocks]
        for part, after in zip(self._parts, self._parts[1:], strict=False):
            part.set_modules_to_forward_prefetch([after])
            after.set_modules_to_backward_prefetch([part] if part is not model else [])
        self.forward = model

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        return full_tensor(super().clip(parameters, most))

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        self.world.mark()
        return contextlib.nullcontext()


class HybridSharded(Sharded):
    """Parameters shared by `shard_ranks` ranks, and world.size / shard_ranks copies of them. Gradients are reduced
    within a copy at each micro-batch, between copies at the last."""

    name = "hsdp"

    def __init__(self, model: nn.Module, world: World, *, compute: torch.dtype, shard_ranks: int) -> None:
        super().__init__(model, world, compute=compute, shard_ranks=shard_ranks)

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        self._parts[0].set_requires_all_reduce(last)  # of all parts: it goes down
        return super().accumulating(last=last)


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """The blocks of a GPT, which are sharded one by one; of any other model none."""
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def shard_ranks_of(world: World, asked: int | None) -> int:
    """The ranks that share one copy of the weights under hsdp: those of a machine if nobody `asked` for a number.

    Raises:
        SettingError: they do not divide the world.
    """
    ranks = world.local_size if asked is None else asked
    if world.size % ranks:
        would = ", ".join(str(n) for n in range(1, world.size + 1) if world.size % n == 0)
        need = f"must divide the {world.size} ranks; take one of {would}"
        raise SettingError("TrainConfig", "shard_ranks", ranks, need)
    return ranks


def widened(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What enters the first block, in float32: the residual stream's dtype is that of its first sum."""
    return tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
