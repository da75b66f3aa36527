"""What ranks check of a GPT that their own code has wrapped: `run` does it in each, `test_sharded_model.py` starts it.

Every rank makes the same weights. `plain` is the model as one process has it, and the truth.
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
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt import GPT, GPTConfig, OneHeadLM, implementations, kernels
from fastgpt import nn as fnn

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
    for name in names:
        with open(Path(folder, f"begun-{rank}"), "a") as begun:
            begun.write(f"{name}\n")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "DTensor random operators may not have complete support on cpu")
            CHECKS[name](rank, Path(folder, name.replace(" ", "-")))
        dist.barrier()


def check(name: str, *kinds: str) -> Callable[..., Any]:
    """A check of this name; with kinds of wrapping, one for each, which is given the kind."""

    def added(function: Callable[..., None]) -> Callable[..., None]:
        for kind in kinds:
            CHECKS[f"{name}, {kind}"] = lambda rank, folder, kind=kind: function(rank, folder, kind)
        if not kinds:
            CHECKS[name] = function
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


# ---- training ------------------------------------------------------------------------------------------------------


@check("trains as one process", *KINDS)
def _(rank: int, folder: Path, kind: str) -> None:
    """Each rank has its row; FSDP2 and the loss of both rows take the mean."""
    plain, found = model(), model()
    if kind == "blocks":
        found.token_emb.requires_grad_(False)  # DDP's part of the work: gradients of what is not sharded differ
    found = sharded(found, kind)
    optimizer = torch.optim.SGD(found.parameters(), lr=0.1)
    counted = []
    for _ in range(3):
        found.state_dict()
        loss = found(IDX[rank : rank + 1], TARGETS[rank : rank + 1]).loss
        loss.backward()
        found(IDX)
        counted.append(hooks(found))
        if not optimizer.state and not counted[1:] and kind != "blocks":
            plain(IDX, TARGETS).loss.backward()
            for (name, ours), theirs in zip(found.named_parameters(), plain.parameters()):
                if ours.grad is not None:  # what is gathered now has none
                    close(ours.grad, theirs.grad, kind)
                else:
                    assert not hasattr(ours, "full_tensor"), name
        optimizer.step()
        optimizer.zero_grad()
    assert counted[0] == counted[1] == counted[2], counted
    assert found.head.weight is found.token_emb.weight


@check("takes every implementation without a warning", "torch", "reference", "triton")
def _(rank: int, folder: Path, kind: str) -> None:
    impls = dict.fromkeys(IN_KERNELS, kind) | ({"attn_impl": "sdpa"} if kind == "torch" else {})
    plain, found = model(n_layers=1, **impls), sharded(model(n_layers=1, **impls))
    with kernels.interpret() if kind == "triton" else contextlib.nullcontext():
        for reduction in ("mean", "none"):
            for m in (plain, found):
                m(IDX[:, :4], TARGETS[:, :4], reduction=reduction).loss.sum().backward()
    state = plain.get_parameter("blocks.0.ffn.0.weight").grad
    close(found.blocks[0].ffn[0].weight.grad, state)


@check("DistributedDataParallel", "plain", "find_unused_parameters", "static_graph", "gradient_as_bucket_view")
def _(rank: int, folder: Path, kind: str) -> None:
    plain, inner = model(), model()
    found = nn.parallel.DistributedDataParallel(inner, **({} if kind == "plain" else {kind: True}))
    mine = slice(rank, rank + 1)
    for _ in range(2):
        plain(IDX, TARGETS).loss.backward()
        out = found(IDX[mine], TARGETS[mine], return_logits=False)
        close(out.logits, plain(IDX[mine]).logits)
        out.loss.backward()
    for ours, theirs in zip(inner.parameters(), plain.parameters()):
        close(ours.grad, theirs.grad)
    assert torch.equal(inner.generate(PROMPT, 3, seed=1), model().generate(PROMPT, 3, seed=1))


@check("compiled blocks")
def _(rank: int, folder: Path) -> None:
    plain, found = model(n_layers=1), model(n_layers=1)
    found.blocks[0].compile(backend="aot_eager")
    found = sharded(found)
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
    for m in (plain, found):
        m(IDX, TARGETS).loss.backward()
    close(found.blocks[0].ffn[0].weight.grad, plain.get_parameter("blocks.0.ffn.0.weight").grad)
    assert torch.equal(found.generate(PROMPT, 3, seed=1), plain.generate(PROMPT, 3, seed=1))


@check("blocks in checkpoint_wrapper")
def _(rank: int, folder: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain, found = model(), model()
    for i, block in enumerate(found.blocks):
        found.blocks[i] = checkpoint_wrapper(block)
    found = sharded(found)
    for m in (plain, found):
        m(IDX, TARGETS).loss.backward()
    close(found.blocks[1].ffn[0].weight.grad, plain.get_parameter("blocks.1.ffn.0.weight").grad)
    assert torch.equal(found.generate(PROMPT, 3, seed=1), plain.generate(PROMPT, 3, seed=1))
    close(found.attention_maps(IDX)[1], plain.attention_maps(IDX)[1])
    assert str(implementations(found)) == str(implementations(plain))
    found.load_state_dict(plain.state_dict())
    found.save_pretrained(folder)
    dist.barrier()
    close(GPT.from_pretrained(folder)(IDX).logits, plain.eval()(IDX).logits)


# ---- sampling ------------------------------------------------------------------------------------------------------


@check("generates", *KINDS)
def _(rank: int, folder: Path, kind: str) -> None:
    plain, found = twin(kind), sharded(model(), kind)
    ways = [{"temperature": 0.0}, {"seed": 3, "top_k": 5}, {"seed": 4, "use_cache": False}]
    for way in ways:  # before any forward; past max_len
        assert torch.equal(found.generate(PROMPT, 5, **way), plain.generate(PROMPT, 5, **way)), way
    found.train()(IDX, TARGETS).loss.backward()
    new = torch.stack(list(found.stream(PROMPT, 2, temperature=0)), dim=1)
    assert torch.equal(new, plain.generate(PROMPT, 2, temperature=0)[:, 5:])
    assert found.training
    if kind != "blocks":
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(found, "generate")  # as torch's documentation advises
        assert torch.equal(found.generate(PROMPT, 2, **ways[1]), plain.generate(PROMPT, 2, **ways[1]))
    assert "_last_logits" not in vars(found)
    found(IDX, TARGETS).loss.backward()


@check("rows that end apart", "blocks and root", "root")
def _(rank: int, folder: Path, kind: str) -> None:
    plain, found = model(), sharded(model(), kind)
    alone = [plain.generate(PROMPT[i : i + 1], 6, temperature=0)[0] for i in range(2)]
    eos = int(alone[0][5])  # the first row's first new token
    at = alone[1][5:].eq(eos).nonzero()
    length = 6 + (int(at[0]) if len(at) else 5)
    assert length > 6, "both rows end at once: this shows nothing"
    row = found.generate(PROMPT[rank : rank + 1], 6, temperature=0, eos=eos)[0]
    expected = [*PROMPT[0].tolist(), *[eos] * (length - 5)] if rank == 0 else alone[1][:length].tolist()
    assert row.tolist() == expected


@check("a model whose weights belong to a module around it")
def _(rank: int, folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    inner = model()
    fully_shard(nn.Sequential(inner), mesh=mesh())
    with raises(RuntimeError, "fully_shard(model)"):
        inner.generate(PROMPT, 1)
    with raises(RuntimeError, "fully_shard(model)"):
        inner.attention_maps(IDX)


# ---- files and state dicts -----------------------------------------------------------------------------------------


@check("saves", *KINDS)
def _(rank: int, folder: Path, kind: str) -> None:
    plain, found = model(), sharded(model(), kind)
    for format in ("fastgpt", "hf", "nanogpt"):
        found.save_pretrained(folder / format, format)
        if rank == 0:
            plain.save_pretrained(folder / f"plain-{format}", format)
            for path in sorted((folder / f"plain-{format}").iterdir()):
                assert (folder / format / path.name).read_bytes() == path.read_bytes(), path
        found(IDX)  # gathers the root's
    dist.barrier()
    assert isinstance(GPT.from_pretrained(folder / "nanogpt"), GPT)


@check("says on all ranks why it cannot save")
def _(rank: int, folder: Path) -> None:
    found = sharded(model())
    if rank == 0:
        folder.parent.mkdir(exist_ok=True, parents=True)
        folder.write_text("a file")
    dist.barrier()
    with raises(ValueError, "is a file; choose" if rank == 0 else "the first rank says: save_pretrained: folder"):
        found.save_pretrained(folder)
    with raises(ValueError, "unknown format 'onnx'"):
        found.save_pretrained(folder, "onnx")
    found.head.weight = nn.Parameter(found.head.weight.detach() + 1)
    with raises(ValueError, "no longer token_emb.weight"):
        found.save_pretrained(folder.parent / "untied")


@check("loads", *KINDS)
def _(rank: int, folder: Path, kind: str) -> None:
    plain = model()
    for first in (False, True):
        with torch.device("meta"):
            found = GPT(plain.config)
        found = sharded(found, kind)
        found.to_empty(device="cpu")
        found.init_weights()
        if first:
            found(IDX)  # gathers the root's
        assert not found.load_state_dict(plain.state_dict()).missing_keys
        assert found.head.weight is found.token_emb.weight
        close(found(IDX).logits, plain(IDX).logits, kind)
        for name, tensor in found.state_dict().items():
            close(tensor, plain.state_dict()[name])
    found.load_state_dict({**plain.state_dict(), "ln_f.bias": torch.ones(16)})
    close(found.state_dict()["ln_f.bias"], torch.ones(16))
    wrong = {**plain.state_dict(), "ln_f.bias": torch.ones(17)}
    with pytest.raises(RuntimeError, match=r"size mismatch for ln_f\.bias"):
        found.load_state_dict(wrong)


# ---- what a model tells --------------------------------------------------------------------------------------------


@check("tells", *KINDS)
def _(rank: int, folder: Path, kind: str) -> None:
    from fastgpt.train.evaluation import evaluate
    from tests.fastgpt.training import tiny_data

    plain, found = twin(kind), sharded(model(), kind)
    tokens = tiny_data(50)
    for _ in range(2):
        assert str(implementations(found)) == str(implementations(plain))
        assert found.num_parameters() == plain.num_parameters()
        assert found.flops_per_token() == plain.flops_per_token()
        for layer, weights in plain.attention_maps(IDX, heads=[1]).items():
            close(found.attention_maps(IDX, heads=[1])[layer], weights, kind)
        scores = [evaluate(m, tokens, batch_size=2, device=torch.device("cpu")) for m in (found, plain)]
        close(torch.tensor(scores[0].loss), torch.tensor(scores[1].loss), kind)
        found.train()(IDX, TARGETS).loss.backward()


@check("makes logits later", *KINDS)
def _(rank: int, folder: Path, kind: str) -> None:
    plain, found = twin(kind), sharded(model(), kind)
    expected = plain(IDX).logits
    optimizer = torch.optim.SGD(found.parameters(), lr=0.1)
    close(found(IDX, TARGETS, return_logits=False).logits, expected, kind)
    out = found(IDX, TARGETS, return_logits=False)
    out.loss.backward()
    close(out.logits, expected, kind)
    close(found.eval()(IDX, TARGETS, return_logits=False).logits, expected, kind)
    with torch.no_grad():
        close(found(IDX, TARGETS, return_logits=False).logits, expected, kind)
    out = found.train()(IDX, TARGETS, return_logits=False)
    out.loss.backward()
    optimizer.step()
    with raises(RuntimeError, "has changed since the forward pass"):
        out.logits  # noqa: B018 (it is computed)


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


@check("launches what one process launches, and copies nothing more", "blocks and root", "bf16")
def _(rank: int, folder: Path, kind: str) -> None:
    import logging

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


@check("drop-in modules, each sharded alone and all together", "torch", "triton")
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


FOUR = ("a mesh of two dimensions",)


@check(*FOUR)
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
