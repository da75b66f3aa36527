"""Activation checkpointing of a GPT's blocks, and their compilation.

    none       a block keeps for the backward what autograd saves (the default)
    selective  its inputs, the outputs of its matrix products and of its attention (with its log-sum-exp); LayerNorm,
               GELU, sums and dropout are computed again in the backward
    full       its inputs; the whole block is computed again, a third more arithmetic

By torch.utils.checkpoint, without reentering autograd (Chen et al. 2016, arXiv 1604.06174; selective: Korthikanti et
al. 2022, arXiv 2205.05198). The same operations run in the same order, and the random state is put back before they run
again, so losses, gradients and dropout masks are bit for bit those of "none".

Bytes that one block keeps of one token, divided by d, for d_ff = 4 d: counted by
`fastgpt.tools.memory.kept_activations` for d = 768, H = 12 heads, T = 1024, without dropout.

                                 none     selective     full
    fastgpt     bfloat16        28.08         24.06     6.00
                float32         48.08         44.06     8.00
    torch       bfloat16        36.08         24.06     6.00
                float32         64.08         44.06     8.00
    reference   bfloat16       148.01         22.00     6.00
                float32        208.01         40.00     8.00

In tensors of (B, T, d), b in autocast's dtype and w in float32 (the fractions are log-sum-exps, means and deviations):

    full        the last sub-layer's output b and the residual stream w, which are the block's inputs
    selective   and q, k, v 3 b, attention's output b, its projection's b, the FFN's pre-activation 4 b (the FFN's
                output is the next block's input)
    none        fastgpt: the residual stream before either LayerNorm 2 w, both normalised 2 b, q, k, v 3 b, attention's
                output b, the pre-activation 4 b. torch keeps the activation too, 4 b, the reference its attention's
                (T, T) weights and each step of its LayerNorm and GELU.

Our kernels compute LayerNorm and GELU again in any case: selective leaves out a seventh of what they keep, and a third
of what torch's own do. Not kept are the results of bmm, which only the reference's attention takes, (T, T) and
what one wants to be rid of, nor torch's attention with dropout: it draws from the generator while it runs, and what
comes after it would draw other masks if it were passed over.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor, nn

from ..base.implementation_names import REMAT_MODES as MODES
from ..base.settings import SettingError, check_choice
from ..kernels import _transforms
from .output import is_exporting

_Model = TypeVar("_Model", bound=nn.Module)
_Pair = tuple[Tensor, Tensor]


def apply(model: _Model, mode: str, *, owner: str = "remat.apply()") -> _Model:
    """Set what each block of `model` keeps from now on, in place, and return the model. Names and hooks stay.

    It holds wherever gradients are recorded, in eval mode too, and changes nothing under torch.no_grad, with a cache
    (`generate`), under torch.func's transforms (which know no checkpointing) and in torch.export. Modules inside of a
    block, with their hooks, run a second time in the backward. After a selective one the graph is gone: as torch says,
    there is no second backward even with retain_graph=True.

    owner: what an error says whose setting it is.

    Raises:
        SettingError: an unknown mode, or one other than "none" for a model without a GPT's blocks (OneHeadLM, others'
            models). SettingTypeError: a mode that is no string.
    """
    check_choice(owner, "remat", mode, MODES)
    blocks = blocks_of(model)
    if not blocks and mode != "none":
        need = f'must be "none": a {type(model).__name__} has no blocks of a GPT whose activations could be left out'
        raise SettingError(owner, "remat", mode, need)
    for block in blocks:
        block.remat = mode
    return model


def compile_blocks(model: nn.Module, backend: str = "inductor") -> bool:
    """Have torch.compile compile the blocks of a GPT, in place. False for a model without such blocks: nothing is done.

    Blocks are alike, so all share two graphs: the first block's, which has no sub-layer's output to add, and that of
    the others. They are compiled where gradients are recorded only: validation and `generate` run as before. Before or
    after `apply`, and before or after `fully_shard`, whose hooks stay outside of the graphs.

    backend: torch.compile's. ("eager", which is for debugging, draws other dropout masks when it computes again.)
    """
    blocks = blocks_of(model)
    for block in blocks:
        block.compile_backend = backend
    return bool(blocks)


def blocks_of(model: nn.Module) -> list[Any]:
    """The blocks of a GPT; none of what has others, or none."""
    blocks = getattr(model, "blocks", None)
    found = list(blocks) if isinstance(blocks, nn.ModuleList) else []
    return found if all(hasattr(block, "remat") for block in found) else []


def run(block: Any, x: Tensor | None, residual: Tensor) -> _Pair:
    """`block.compute(x, residual)`, compiled and checkpointed as the block says."""
    if not torch.is_grad_enabled() or _transforms.are_on() or is_exporting():
        return block.compute(x, residual)
    if block.compile_backend is not None and not torch.compiler.is_compiling():
        return _compiled(block.compile_backend)(block, x, residual)
    return _checkpointed(block, x, residual)


@functools.cache
def _compiled(backend: str) -> Callable[..., _Pair]:
    # One function for all blocks, and none in a block's attributes, which would keep it from being pickled.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_of_use)
    return torch.compile(_checkpointed, backend=backend)


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not torch's advice to keep operations in place out of what `_selective` is given for: a block has none."""
    return "context_fn is passed to torch.utils.checkpoint" not in str(record.msg)


def _checkpointed(block: Any, x: Tensor | None, residual: Tensor) -> _Pair:
    if block.remat == "none":
        return block.compute(x, residual)
    # Each written out: torch.compile reads a context_fn from the call alone.
    if block.remat == "full":
        return torch_checkpoint.checkpoint(block.compute, x, residual, use_reentrant=False)
    if getattr(block.attn, "ring", None) is not None:
        return torch_checkpoint.checkpoint(block.compute, x, residual, use_reentrant=False, context_fn=_of_a_ring)
    return torch_checkpoint.checkpoint(block.compute, x, residual, use_reentrant=False, context_fn=_selective)


def _selective() -> Any:
    return torch_checkpoint.create_selective_checkpoint_contexts(_policy)


def _of_a_ring() -> Any:
    return torch_checkpoint.create_selective_checkpoint_contexts(_policy_of_a_ring)


_KEPT = frozenset((
    "aten::mm", "aten::addmm", "fastgpt::gelu_ffn_fwd", "fastgpt::linear_gelu_fwd", "fastgpt::attention_fwd",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
))  # fmt: skip


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> torch_checkpoint.CheckpointPolicy:
    schema = getattr(op, "_schema", None)  # of an operator; torch.compile's higher-order ones have none
    kept = schema is not None and schema.name in _KEPT and not _draws(op, args, kwargs)
    return torch_checkpoint.CheckpointPolicy.MUST_SAVE if kept else torch_checkpoint.CheckpointPolicy.PREFER_RECOMPUTE


def _policy_of_a_ring(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> torch_checkpoint.CheckpointPolicy:
    """Ranks that share a sequence (`parallel/ring.py`) write over the parts of attention's output: no part is kept."""
    if getattr(op, "namespace", "") == "fastgpt" and "attention" in op._opname:
        return torch_checkpoint.CheckpointPolicy.PREFER_RECOMPUTE
    return _policy(ctx, op, *args, **kwargs)


def _draws(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator drops with masks that it draws itself; ours are given a seed."""
    place = _place_of_dropout(op)
    if place is None:
        return False
    return (args[place] if place < len(args) else kwargs.get("dropout_p", 0.0)) != 0.0


@functools.cache
def _place_of_dropout(op: Any) -> int | None:
    names = [argument.name for argument in op._schema.arguments]
    return names.index("dropout_p") if op.namespace == "aten" and "dropout_p" in names else None
