"""What a wrapped GPT must do as a plain one: train, sample, save, load, tell."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastgpt import GPT, implementations, kernels

from .wrapping import IDX, IN_KERNELS, KINDS, PROMPT, TARGETS, check, close, hooks, mesh, model, raises, sharded, twin

# ---- training ------------------------------------------------------------------------------------------------------


@check("trains as one process", *KINDS)
def _(rank: int, folder: Path, kind: str) -> None:
    """Each rank has its row; FSDP2 and the loss of both rows take the mean."""
    plain, found = model(), sharded(model(), kind)
    row = slice(rank, rank + 1)
    plain(IDX, TARGETS).loss.backward()
    counted = []
    for step in range(3):
        found.state_dict()
        found(IDX[row], TARGETS[row]).loss.backward()
        if step == 0:
            for ours, theirs in zip(found.parameters(), plain.parameters()):
                if hasattr(ours, "full_tensor"):  # who shards the blocks alone adds up the others
                    close(ours.grad, theirs.grad, kind)
        found(IDX)
        counted.append(hooks(found))
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
