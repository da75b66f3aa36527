"""GPTs that somebody's own code has wrapped, and checks of them which ranks run: `run` does, in each.

Every rank makes the same weights. A plain model is what one process has, and the truth.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgpt import GPT, GPTConfig

SHAPE: dict[str, Any] = {"vocab_size": 51, "max_len": 8, "n_layers": 2, "n_heads": 2, "d_model": 16}
IDX = torch.arange(16).view(2, 8)
TARGETS = IDX.roll(-1, 1)
PROMPT = IDX[:, :5]
IN_KERNELS = {f"{part}_impl": "triton" for part in ("attn", "norm", "ffn", "loss")}
CHECKS: dict[str, Callable[[int, Path], None]] = {}


def run(rank: int, folder: str, names: list[str]) -> None:
    """All the checks of these names, until one fails: then the ranks have nothing more to say to each other.

    `folder`/begun-0 and so on name those that a rank has begun. A warning is an error, but torch's of random numbers
    on a CPU's mesh.
    """
    from . import sharded_checks, sharded_parts_checks  # noqa: F401 (they fill CHECKS)

    for name in names:
        with open(Path(folder, f"begun-{rank}"), "a") as begun:
            begun.write(f"{name}\n")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "DTensor random operators may not have complete support on cpu")
            CHECKS[name](rank, Path(folder, name))
        dist.barrier()


def check(name: str, *kinds: str) -> Callable[..., Any]:
    """A check of this name, with hyphens; with kinds of wrapping, one for each, which is given the kind."""

    def added(function: Callable[..., None]) -> Callable[..., None]:
        for kind in kinds:
            CHECKS[f"{name} {kind}".replace(" ", "-")] = lambda rank, folder, kind=kind: function(rank, folder, kind)
        if not kinds:
            CHECKS[name.replace(" ", "-")] = function
        return function

    return added


KINDS = ("blocks and root", "root", "blocks", "resharded", "bf16")


def model(**fields: Any) -> GPT:
    torch.manual_seed(0)
    made = GPT(GPTConfig(**SHAPE).replace(**fields))
    with torch.no_grad():
        for parameter in made.parameters():  # larger than they are made: the logits are to differ
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


def mesh(*shape: int) -> Any:
    names = ("copies", "parts")[-(len(shape) or 1) :]
    return dist.device_mesh.init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def sharded(made: Any, kind: str = "blocks and root", on: Any = None) -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    on = mesh() if on is None else on
    inside = torch.bfloat16 if kind == "bf16" else None
    if kind != "root":
        for block in made.blocks:
            fully_shard(block, mesh=on, mp_policy=MixedPrecisionPolicy(inside, torch.float32 if inside else None))
    if kind != "blocks":
        policy = MixedPrecisionPolicy(inside, torch.float32 if inside else None, torch.float32 if inside else None)
        fully_shard(made, mesh=on, mp_policy=policy, reshard_after_forward=True if kind == "resharded" else None)
    return made


def twin(kind: str, **fields: Any) -> GPT:
    """The plain model, in the dtype that this kind of wrapping computes in."""
    return model(**fields).to(torch.bfloat16 if kind == "bf16" else torch.float32)


def close(found: Any, expected: Tensor, kind: str = "") -> None:
    found = found.full_tensor() if hasattr(found, "full_tensor") else found
    tolerance = {"rtol": 0.05, "atol": 0.05} if kind == "bf16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.detach().float(), expected.detach().float(), **tolerance)


@contextlib.contextmanager
def raises(kind: type[Exception], words: str) -> Iterator[None]:
    with pytest.raises(kind) as raised:
        yield
    assert words in str(raised.value), raised.value
    assert "\n" not in str(raised.value), raised.value


def hooks(made: nn.Module) -> Counter[str]:
    """How many hooks of each kind there are on modules, parameters and their gradients."""
    count: Counter[str] = Counter()
    for module in made.modules():
        for name, value in vars(module).items():
            if name.endswith("hooks") and value:
                count[name] += len(value)
    for parameter in made.parameters():
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            count[name] += len(getattr(parameter, name, None) or ())
    return +count
