"""Context parallel: a ring of ranks that share each sequence, and attend over all of it (Liu et al. 2023, Ring
Attention, arXiv 2310.01889).

    ring = use(model, group)              # from here on `model` takes this rank's tokens of a sequence
    mine = ring.part(idx), ring.part(targets)
    loss = model(*mine).loss              # the mean over this rank's targets

Everything but attention works on each token alone. In attention, keys and values travel round the ring, the next ones
while those at hand are computed with; the parts of a softmax are merged by their log-sum-exp in float32:

    lse = log Σ exp(lse_i),  out = Σ exp(lse_i - lse) out_i

In the backward they travel once more, and their gradients with them, in float32, which are at home after n steps. A
rank holds O(T / n) of everything, at any time. Which tokens are whose, so that all have the same work, is in
`ring_layout.py`; a piece of the work in `ring_pieces.py`.

torch has a context parallel of its own (torch.distributed.tensor.experimental, 2.13): it takes flex_attention, and
three operators of aten (`_scaled_dot_product_flash_attention`, its efficient and its cudnn twin) that only CUDA has,
by a table in `_context_parallel/_attention.py`. `fastgpt::attention_fwd` is in no such table, nor is torch's attention
on a CPU. So the ring is here, on torch.distributed's point-to-point operations.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..base.settings import SettingError, SettingTypeError, check_integer
from ..kernels import _runtime
from ..model.blocks import CausalSelfAttention
from ..model.gpt import GPT
from ..nn.impl import Choice
from . import ring_layout, ring_pieces
from .world import World

Coming = Callable[[], Tensor]  # waits for what was sent here, and returns it


class Ring:
    """The ranks of a process group, in a ring: this one gets from the rank before it and sends to the one after.

    group       of torch.distributed; None: all ranks
    rank, size  in it

    A model that is pickled forgets its ring, as a process group belongs to its process; a copy shares it.
    """

    def __init__(self, group: Any = None) -> None:
        import torch.distributed as dist

        if group is None:
            group = dist.group.WORLD
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self._next = dist.get_global_rank(group, (self.rank + 1) % self.size)
        self._previous = dist.get_global_rank(group, (self.rank - 1) % self.size)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, impl: str, dropout_p: float = 0.0) -> Tensor:
        """For a model's attention: out (B, H, T, D), in the dtype that autocast wants.

        Raises:
            SettingError: dropout_p is not 0.
        """
        check_dropout("ring_attention", dropout_p)
        if (dtype := _runtime.autocast_dtype(q)) is not None:
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        return ring_attention(q, k, v, self, impl=impl)[0]

    def __copy__(self) -> Ring:
        return self

    def __deepcopy__(self, memo: Any) -> Ring:
        return self

    def __reduce__(self) -> Any:
        return _no_ring, ()

    def choice(self, alone: Choice) -> Choice:
        """What an attention in this ring takes, for `fastgpt.implementations`; `alone`: what it would take alone."""
        if not alone.name:
            return alone
        where = f"in a ring of {self.size} ranks"
        if alone.name == "triton":
            return Choice("triton", f"{alone.why}; {where}")
        return Choice("torch", f"{alone.why}; {where}, by the formula in plain PyTorch")

    def positions(self, length: int, max_len: int, device: torch.device | None = None) -> Tensor:
        """(length,) int64: where this rank's tokens stand in a sequence of which each rank holds `length`.

        Raises:
            ValueError: such a sequence is longer than max_len. SettingError: `length` is odd.
        """
        if length * self.size > max_len:
            raise ValueError(
                f"GPT: {self.size} ranks with {length} tokens each share a sequence of {length * self.size}, and "
                f"max_len is {max_len}; pass fewer, or make the model with a larger max_len"
            )
        return ring_layout.positions(length * self.size, self.rank, self.size, owner="GPT").to(device)

    def part(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of x, whose dimension `dim` are all T.

        Raises:
            SettingError: a T that 2 · size does not divide.
        """
        here = ring_layout.positions(x.shape[dim], self.rank, self.size, owner="Ring.part")
        return x.index_select(dim, here.to(x.device))

    def pass_on(self, x: Tensor) -> Coming:
        """Send x to the next rank, and return what waits for the previous one's, which has its shape."""
        if self.size == 1:
            return lambda: x
        import torch.distributed as dist

        x, coming = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, self._next, self.group),
                dist.P2POp(dist.irecv, coming, self._previous, self.group),
            ]
        )

        def arrived(sent: Tensor = x) -> Tensor:  # what is sent must live until it is
            for work in works:
                work.wait()
            return coming

        return arrived


def _no_ring() -> None:
    """What a pickled ring becomes."""


def use(model: nn.Module, group: Any = None) -> Ring:
    """Make every attention of `model` attend over the tokens of all ranks of `group`; returns the ring.

    `model` is a fastgpt.GPT, or has one inside. From here on idx and targets are this rank's tokens (`Ring.part`), and
    the loss is that of its own; positions follow by themselves. What would need a whole sequence on one rank
    (generate, attention_maps) raises until `release(model)`. All ranks of the group call the model alike.

    Raises:
        SettingTypeError: a model without our attention. SettingError: attention with dropout.
    """
    if not isinstance(model, nn.Module):
        raise SettingTypeError("ring.use", "model", model, "must be a fastgpt.GPT, or a module with one inside")
    models, attentions = _those_that_know(model)
    if not models or len(attentions) != sum(len(gpt.blocks) for gpt in models):
        need = "must be a fastgpt.GPT whose blocks have their own attention: only that one knows of other ranks' tokens"
        raise SettingTypeError("ring.use", "model", type(model).__name__, need)
    for attention in attentions:
        check_dropout("ring.use", attention.dropout)
    return _set(models, attentions, Ring(group))


def release(model: nn.Module) -> None:
    """The end of `use`: each rank attends to its own tokens only."""
    _set(*_those_that_know(model), None)


def _those_that_know(model: nn.Module) -> tuple[list[GPT], list[CausalSelfAttention]]:
    modules = list(model.modules())
    models = [module for module in modules if isinstance(module, GPT)]
    return models, [module for module in modules if isinstance(module, CausalSelfAttention)]


def _set(models: list[GPT], attentions: list[CausalSelfAttention], ring: Any) -> Any:
    for gpt in models:
        gpt.ring = ring
    for attention in attentions:
        attention.ring = ring
    return ring


def check_dropout(owner: str, dropout: float) -> None:
    """Raise SettingError where attention would drop weights: each rank's mask would be another than one process's."""
    if dropout:
        need = (
            "must be 0 where ranks share a sequence (context_parallel, --context-parallel): attention's dropout does "
            "not reach over ranks"
        )
        raise SettingError(owner, "dropout", dropout, need)


def group_of(world: World, size: int, *, timeout: int | None = None) -> Any:
    """The process group of the `size` ranks, side by side, that share this rank's sequences. All ranks call it.

    timeout: seconds that its ranks wait for each other; torch's own if not given.

    Raises:
        SettingTypeError, SettingError: a size that does not divide the ranks.
    """
    import torch.distributed as dist

    check_size("Trainer", world.size, size)
    group, _ = dist.new_subgroups(size, timeout=None if timeout is None else timedelta(seconds=timeout))
    return group


def check_size(owner: str, ranks: int, size: int) -> int:
    """`size`, of `ranks`, that share a sequence.

    Raises:
        SettingTypeError, SettingError: below 1, or it does not divide the number of ranks.
    """
    check_integer(owner, "context_parallel", size, least=1)
    if ranks % size:
        would_do = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        there = "there is 1 rank" if ranks == 1 else f"there are {ranks} ranks"
        raise SettingError(
            owner, "context_parallel", size,
            f"must divide the ranks, and {there}: {would_do} would do, or torchrun --nproc-per-node {size}",
        )  # fmt: skip
    return size


# ---- attention -------------------------------------------------------------------------------------------------------


def ring_attention(q: Tensor, k: Tensor, v: Tensor, ring: Ring, *, impl: str) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √D + causal mask) v over the tokens of all ranks; all of them call it alike.

    Args:
        q: (B, H, T, D), this rank's T tokens of the sequence, as `Ring.part` has them.
        k, v: (B, H_kv, T, D) of the same dtype; H a multiple of H_kv.
        impl: "triton" (float32, float16, bfloat16; D <= 256), or any other: the formula in plain PyTorch.

    Returns:
        out (B, H, T, D), laid out in memory as (B, T, H, D), and lse (B, H, T) float32 (float64 for float64); both
        differentiable, once.

    Raises:
        ValueError: shapes that do not fit.
    """
    B, H, T, D = q.shape
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (B, T, D) or H % k.shape[1]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}"
        raise ValueError(
            f"ring_attention: {shapes} must be (B, H, T, D), (B, H_kv, T, D) twice, with H a multiple of H_kv"
        )
    if T % 2:
        raise ValueError(f"ring_attention: T is {T}, and each rank holds two chunks of one length; see Ring.part")
    return _apply(q, k, v, ring, impl)


def _apply(q: Tensor, k: Tensor, v: Tensor, ring: Ring, impl: str) -> tuple[Tensor, Tensor]:
    return _RingAttention.apply(q, k, v, ring, impl)


# torch.compile does not look inside, where it would meet messages: the mark that torch.compiler.disable makes, without
# its import of torch._dynamo.
_apply.__dict__["_torchdynamo_disable"] = True


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, impl: str) -> tuple[Tensor, Tensor]:
        out, lse = _forward(q, k, v, ring, impl)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.ring, ctx.impl = ring, impl
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if dout is None:  # the other ranks wait for this one's part in theirs
            dout = out.new_zeros(()).expand(out.shape)
        return *_backward(dout, dlse, q, k, v, out, lse, ctx.ring, ctx.impl), None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, ring: Ring, impl: str) -> tuple[Tensor, Tensor]:
    keys_values = torch.stack((k, v))
    wide = ring_pieces.wide_dtype(q)
    out, lse = q.new_empty(0), q.new_empty(0)
    for step in range(ring.size):
        coming = ring.pass_on(keys_values) if step + 1 < ring.size else None
        piece = ring_layout.piece(ring.rank, (ring.rank - step) % ring.size, q.shape[2])
        k, v = keys_values[:, :, :, piece.keys]
        part, part_lse = ring_pieces.forward(impl, q[:, :, piece.queries], k, v, causal=piece.causal)
        if step == 0:  # its own keys: every query sees one of them at least
            out, lse = part.to(wide), part_lse
        else:
            _merge(out[:, :, piece.queries], lse[:, :, piece.queries], part, part_lse)
        if coming is not None:
            keys_values = coming()
    return out.to(q.dtype), lse


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """out and lse, over some keys, become those over `part`'s keys too; in place."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_((lse - total).exp_()[..., None]).add_(part * (part_lse - total).exp_()[..., None])
    lse.copy_(total)


def _backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ring: Ring, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    keys_values = torch.stack((k, v))
    wide = ring_pieces.wide_dtype(q)
    dq = torch.zeros_like(out, dtype=wide)
    travelling = torch.zeros_like(keys_values, dtype=wide)  # dk, dv of the keys at hand, of the ranks before this one
    coming_gradients: Coming | None = None
    for step in range(ring.size):
        coming = ring.pass_on(keys_values) if step + 1 < ring.size else None
        piece = ring_layout.piece(ring.rank, (ring.rank - step) % ring.size, q.shape[2])
        queries, (k, v) = piece.queries, keys_values[:, :, :, piece.keys]
        of_queries = (x[:, :, queries] for x in (q, out, lse))
        q_part, out_part, lse_part = of_queries
        dlse_part = None if dlse is None else dlse[:, :, queries]
        dq_part, dk, dv = ring_pieces.backward(
            impl, dout[:, :, queries], dlse_part, q_part, k, v, out_part, lse_part, causal=piece.causal
        )
        dq[:, :, queries] += dq_part
        if coming_gradients is not None:
            travelling = coming_gradients()
        travelling[0, :, :, piece.keys] += dk
        travelling[1, :, :, piece.keys] += dv
        coming_gradients = ring.pass_on(travelling)  # after the last step they are at home
        if coming is not None:
            keys_values = coming()
    assert coming_gradients is not None  # a ring has a rank
    dk, dv = coming_gradients()
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)
