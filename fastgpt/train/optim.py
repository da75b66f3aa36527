"""AdamW and its learning-rate schedule, as GPT training uses them.

Loshchilov & Hutter 2019, "Decoupled weight decay regularization"; the cosine schedule with warm-up is that of Brown et
al. 2020 (GPT-3), appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..base.settings import check_integer, check_number


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices (embeddings among them), which decay; biases and LayerNorms, which do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]  # a tied weight appears once
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_adamw(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """torch's AdamW, fused (one kernel for all parameters) where torch has it for the parameters' device.

    Its `load_state_dict` refuses a state of other shapes. (torch's goes by the parameters' order alone, and takes what
    another model left, on the wrong parameters.)

    Raises:
        ValueError, TypeError: a setting that cannot be, or a model without a trainable parameter.
    """
    check_number("build_adamw", "lr", lr, least=0)
    check_number("build_adamw", "weight_decay", weight_decay, least=0)
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        check_number("build_adamw", name, beta, least=0, below=1)
    check_number("build_adamw", "eps", eps, least=0)
    groups = [group for group in decay_groups(model, weight_decay) if group["params"]]
    if not groups:
        raise ValueError("build_adamw: the model has no trainable parameter; set requires_grad on some")
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=can_fuse(parameters))
    names = {id(p): name for name, p in model.named_parameters()}
    in_order = [(names[id(p)], p.shape) for p in parameters]
    optimizer.register_load_state_dict_pre_hook(lambda _, state: _check_shapes(state, in_order))
    return optimizer


def _check_shapes(packed: dict[str, Any], parameters: list[tuple[str, torch.Size]]) -> None:
    """`parameters`: (name, shape) of each, in the optimizer's order."""
    for number, state in packed["state"].items():
        if number >= len(parameters):
            continue  # torch says that the numbers of parameters differ
        name, shape = parameters[number]
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != shape:
                raise ValueError(
                    f"AdamW: the state's {key} for {name} has shape {tuple(value.shape)}, the parameter "
                    f"{tuple(shape)}: it is another model's, or another order's; load what this model left"
                )


def can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused AdamW takes these parameters: floating point, all on a CPU or a CUDA device."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def learning_rate(
    step: int, *, steps: int, peak: float, warmup_fraction: float = 0.05, final_fraction: float = 0.1
) -> float:
    """The learning rate of update `step` (0 ... steps - 1): linear warm-up, then a cosine.

    Rises over the first warmup = max(1, round(warmup_fraction · steps)) updates to `peak`, then falls as
    (1 + cos(π · progress)) / 2 from `peak`, which it has once more, to final_fraction · peak, which the last update has
    (unless the warm-up takes them all) and all beyond `steps` keep.

    Raises:
        ValueError, TypeError: no step, a negative learning rate, a fraction that is none.
    """
    check_integer("learning_rate", "step", step, least=0)
    check_integer("learning_rate", "steps", steps, least=1)
    check_number("learning_rate", "peak", peak, least=0)
    check_number("learning_rate", "warmup_fraction", warmup_fraction, least=0, most=1)
    check_number("learning_rate", "final_fraction", final_fraction, least=0, most=1)
    warmup = max(1, round(warmup_fraction * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    falls = steps - 1 - warmup  # 0: the last update is the only one after the warm-up
    progress = min(1.0, (step - warmup) / falls) if falls > 0 else 1.0
    cosine = (1.0 + math.cos(math.pi * progress)) / 2.0
    return peak * (final_fraction + (1.0 - final_fraction) * cosine)


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step with `optimizer.found_inf` = 1, a number on the device, changes nothing: torch's fused ones."""
    is_told = getattr(optimizer, "_step_supports_amp_scaling", False)
    return is_told and all(group.get("fused") for group in optimizer.param_groups)
