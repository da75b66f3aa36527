"""Kernels, drop-in modules and OneHeadLM where somebody's own code has sharded them; meshes of two dimensions."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt import OneHeadLM, implementations, kernels
from fastgpt import nn as fnn

from .wrapping import IDX, IN_KERNELS, PROMPT, TARGETS, check, close, mesh, model, raises, sharded, twin

# ---- kernels -------------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Operators that make a copy of what is shaped as activations are, (B, T, ...) or B · T rows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("copy_", "clone", "_to_copy", "contiguous", "cat", "stack") and isinstance(result, Tensor):
            self.found[f"{name} {tuple(result.shape)} {result.dtype}"] += 1
        return result


@contextlib.contextmanager
def launched(names: list[str]) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def counting(jit: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(jit.fn.__name__)
        return run(jit, *args, **kwargs)

    JITFunction.run = counting
    try:
        yield
    finally:
        JITFunction.run = run


@check("launches and copies what one process does", "blocks and root", "bf16")
def _(rank: int, folder: Path, kind: str) -> None:
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fastgpt").addHandler(listener)
    counts = []
    with kernels.interpret():
        plain, found = twin(kind, **IN_KERNELS), sharded(model(**IN_KERNELS), kind)
        assert str(implementations(found)) == str(implementations(plain))
        for m in (plain, found):
            names: list[str] = []
            inside = Copies()
            for block in m.blocks:
                forward = block.forward

                def watched(*args: Any, forward: Any = forward, inside: Any = inside) -> Any:
                    with inside:
                        return forward(*args)

                block.forward = watched
            with launched(names):
                out = m(IDX[:, :4], TARGETS[:, :4])
                everywhere = Copies()
                with everywhere:
                    out.loss.backward()
            activations = {key: n for key, n in everywhere.found.items() if " (2, 4" in key or " (8," in key}
            counts.append((Counter(names), inside.found, activations))
    logging.getLogger("fastgpt").removeHandler(listener)
    assert counts[0][0], "no kernel was launched"
    assert counts[0] == counts[1], counts
    assert said == [], said


# ---- other models --------------------------------------------------------------------------------------------------


@check("OneHeadLM")
def _(rank: int, folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    def made() -> OneHeadLM:
        torch.manual_seed(1)
        return OneHeadLM(31, 16, 8)

    plain, found = made(), fully_shard(made(), mesh=mesh())
    assert torch.equal(found.generate(PROMPT, 4, seed=2), plain.generate(PROMPT, 4, seed=2))
    close(found.attention_maps(IDX)[0], plain.attention_maps(IDX)[0])
    for m in (plain, found):
        m(IDX, TARGETS).loss.backward()
    close(found.W_Q.weight.grad, plain.W_Q.weight.grad)
    found.save_pretrained(folder / "found")
    if rank == 0:
        plain.save_pretrained(folder / "plain")
        read = [(folder / name / "model.safetensors").read_bytes() for name in ("found", "plain")]
        assert read[0] == read[1]
    dist.barrier()
    found.load_state_dict(OneHeadLM.from_pretrained(folder / "found").state_dict())
    close(found(IDX).logits, plain(IDX).logits)


class Drops(nn.Module):
    """A block of somebody else's, of our drop-in modules."""

    def __init__(self, impl: str) -> None:
        super().__init__()
        self.norm = fnn.LayerNorm(16, impl=impl)
        self.attention = fnn.FlashMultiheadAttention(16, 2, batch_first=True)
        self.attention_in_time = fnn.FlashMultiheadAttention(16, 2)
        self.ffn = fnn.GELUFFN(16, impl=impl)
        self.loss = fnn.LinearCrossEntropyLoss(16, 31, bias=True, impl=impl, reduction="none")

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.attention(h, h, h, is_causal=True, need_weights=False)[0]
        h = self.attention_in_time(h, h, h, need_weights=False)[0]
        return self.loss(self.ffn(h), targets)


@check("drop-in modules", "torch", "triton")
def _(rank: int, folder: Path, kind: str) -> None:
    from torch.distributed.fsdp import fully_shard

    def made() -> Drops:
        torch.manual_seed(2)
        return Drops(kind)

    plain, on = made(), mesh()
    x, targets = torch.randn(2, 4, 16), IDX[:, :4]
    with kernels.interpret() if kind == "triton" else contextlib.nullcontext():
        plain(x, targets).mean().backward()
        for alone in (True, False):
            found: Any = made()
            for part in found.children() if alone else ():
                fully_shard(part, mesh=on)
            fully_shard(found, mesh=on)
            assert str(implementations(found)) == str(implementations(plain))
            found(x, targets).mean().backward()
            for ours, theirs in zip(found.parameters(), plain.parameters()):
                close(ours.grad, theirs.grad)


@check("parts of weights that nothing gathers")
def _(rank: int, folder: Path) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    weight = distribute_tensor(torch.randn(31, 16), mesh(), [Shard(0)])
    with raises(TypeError, "weight.full_tensor()"):
        fnn.LinearCrossEntropyLoss()(torch.randn(4, 16), torch.arange(4), weight)
    with kernels.interpret(), raises(TypeError, "DTensor"):
        kernels.linear_cross_entropy(torch.randn(4, 16), weight, torch.arange(4))
    x = distribute_tensor(torch.randn(4, 16), mesh(), [Shard(0)])
    with kernels.interpret(), raises(TypeError, "DTensor"):
        kernels.layer_norm(x)
    with kernels.interpret():  # torch's own knows DTensors
        norm = fnn.LayerNorm(16, elementwise_affine=False)
        close(norm(x), nn.functional.layer_norm(x.full_tensor(), (16,)))


FOUR = ("a-mesh-of-two-dimensions",)


@check("a mesh of two dimensions")
def _(rank: int, folder: Path) -> None:
    """Of 4 ranks: two copies, each in two parts."""
    plain, found = model(), sharded(model(), on=mesh(2, 2))
    ways = {"temperature": 0.0, "eos": int(plain.generate(PROMPT[:1], 1, temperature=0)[0, -1])}
    row = slice(rank // 3, rank // 3 + 1)  # rank 3 has the other row, whose end is another
    lengths = [plain.generate(PROMPT[i : i + 1], 6, **ways).shape[1] for i in range(2)]
    assert lengths[0] < lengths[1]
    assert found.generate(PROMPT[row], 6, **ways).shape[1] == lengths[1]
    close(found.attention_maps(IDX)[1], plain.attention_maps(IDX)[1])
    found.save_pretrained(folder / "found")
    if rank == 0:
        plain.save_pretrained(folder / "plain")
        read = [(folder / name / "model.safetensors").read_bytes() for name in ("found", "plain")]
        assert read[0] == read[1]
        (folder / "file").write_text("no folder")
    dist.barrier()
    with raises(ValueError, "folder"):
        found.save_pretrained(folder / "file")
    found.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in plain.state_dict().items()})
    found.load_state_dict(plain.state_dict())
    close(found(IDX).logits, plain(IDX).logits)
