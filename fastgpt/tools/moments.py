"""What a training step holds besides parameters, gradients and AdamW's state, moment by moment, at any depth.

Three and four blocks are laid out on paper (`memory.on_paper`) and the rest is multiplied: blocks are alike, so a model
of 96 layers is counted, to the byte, in the time that those of seven take.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base.settings import check_choice, check_integer
from ..kernels import _runtime
from ..model.config import GPTConfig
from ..parallel import ring
from ..parallel.strategy import widened
from . import memory

PRODUCTS = ("float32", "autocast", "bfloat16")
_LAID_OUT = 4  # blocks: two with a block before and behind them; the first and last differ


@dataclass(frozen=True)
class Moments:
    """Bytes. Gradients count as long as they are not yet where training keeps them (see `moments`).

    activations  kept from forward to backward: the batch, and what every operation up to the last LayerNorm saves
    forward      most while the blocks compute, the activations with it
    loss         most from the head on until the gradient of its input is there, likewise
    backward     most in the backward of the blocks, likewise
    end          most in the backward of the embeddings, when nothing of the blocks is left
    """

    activations: int
    forward: int
    loss: int
    backward: int
    end: int

    @property
    def of_loss(self) -> int:
        """What head and loss need beside the activations: logits, or chunks of them, and gradients."""
        return self.loss - self.activations

    @property
    def of_block(self) -> int:
        """What the operations of a block need beside the activations, forward or backward."""
        return max(self.forward, self.backward) - self.activations


def moments(
    config: GPTConfig, batch: int, seq_len: int, *, products: str = "autocast", by_block: bool = False,
    ranks: int = 1, remat: str = "none", arch: str = "sm_90",
) -> Moments:  # fmt: skip
    """Of one forward and backward of (batch, seq_len) tokens.

    products: "float32"; "autocast", bfloat16 from float32 weights, whose copies count; or "bfloat16", autocast too, of
    weights that were gathered in bfloat16, with the residual stream in float32 all the same.
    by_block: a block's gradients, in the dtype of its weights, stay until its backward is done, and those outside of
    blocks to the end, as `fully_shard` has them before it reduces them; else each is moved to where training keeps it
    as soon as it is there, as DDP does.
    ranks: that share each sequence, with seq_len tokens each (`parallel/ring.py`); counted is the last.
    remat: what blocks keep, see `fastgpt.model.remat`.

    Raises:
        SettingError, SettingTypeError: batch or seq_len below 1, seq_len beyond config.max_len, unknown products,
            remat or arch, dropout where ranks share a sequence.
        ValueError, RuntimeError: more than a launch, or an address, can count.
    """
    check_integer("moments", "batch", batch, least=1)
    check_integer("moments", "seq_len", seq_len, least=1, most=config.max_len // ranks, hint=", the model's max_len")
    check_choice("moments", "products", products, PRODUCTS)
    check_choice("moments", "arch", arch, _runtime.KNOWN_TARGETS)

    def laid_out(n_layers: int) -> Moments:
        return _laid_out(config.replace(n_layers=n_layers), batch, seq_len, products, by_block, ranks, remat, arch)

    if config.n_layers <= _LAID_OUT:
        return laid_out(config.n_layers)
    last, before = laid_out(_LAID_OUT), laid_out(_LAID_OUT - 1)
    more = config.n_layers - _LAID_OUT
    return Moments(*(a + more * (a - b) for a, b in zip(astuple(last), astuple(before), strict=True)))


def _laid_out(
    config: GPTConfig, batch: int, seq_len: int, products: str, by_block: bool, ranks: int, remat: str, arch: str
) -> Moments:
    from ..model.blocks import CausalSelfAttention, logits_and_loss
    from ..model.gpt import GPT

    autocast = None if products == "float32" else torch.bfloat16
    with memory.on_paper(arch) as paper:
        model = memory.model_on_paper(config, autocast is not None, remat)
        if ranks > 1:
            ring.check_dropout("moments", config.dropout)
            for module in model.modules():
                if isinstance(module, (GPT, CausalSelfAttention)):
                    module.ring = _RingOnPaper(ranks)
        if products == "bfloat16":
            model.to(torch.bfloat16)
            model.blocks[0].register_forward_pre_hook(widened)
        weights = paper.live
        peaks: dict[str, int] = {}

        def ends(moment: str) -> None:
            peaks[moment] = paper.peak - weights
            paper.forget_peak()

        idx = torch.empty(batch, seq_len, dtype=torch.int64)
        _after_backward(model.blocks[0], lambda: ends("backward"))
        for part in model.blocks if by_block else ():
            _after_backward(part, functools.partial(part.zero_grad, set_to_none=True))
        for parameter in () if by_block else model.parameters():
            parameter.register_post_accumulate_grad_hook(_drop)
        paper.forget_peak()
        with memory.autocast_on_paper(autocast):
            hidden = model.hidden_states(idx)
            activations = paper.live - weights
            ends("forward")
            hidden.register_hook(lambda grad: ends("loss"))
            _, loss = logits_and_loss(model.head, hidden, idx, return_logits=False, reduction="mean")
        del hidden
        assert loss is not None
        loss.backward()
        del loss
        ends("end")
    return Moments(activations, **peaks)


class _RingOnPaper(ring.Ring):
    """The last of so many ranks, which has the largest pieces; what it waits for is there.

    Other implementations than "triton" keep the same for the backward; what their blocks of queries need meanwhile is
    left out.
    """

    def __init__(self, size: int) -> None:
        self.group, self.rank, self.size = None, size - 1, size

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, impl: str, dropout_p: float = 0.0) -> Tensor:
        if impl == "triton":
            return super().__call__(q, k, v, impl, dropout_p)
        return _runtime.torch_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])

    def pass_on(self, x: Tensor) -> ring.Coming:
        sent, coming = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        return lambda sent=sent: coming  # type: ignore[misc]  # what is sent must live until it is


def _after_backward(block: nn.Module, call: Callable[[], None]) -> None:
    """Call it when the gradients of the block's parameters and of its input are there."""

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        args[1].register_hook(lambda grad: call())  # the residual stream's

    block.register_forward_pre_hook(watch)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
