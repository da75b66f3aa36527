"""What is called compiled is compiled: every case, for its own sizes, in whatever order the benchmarks run."""

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks import models, peers
from fastgpt import GPT, GPTConfig
from fastgpt.model.config import IMPLEMENTATION_SETS

BF16 = torch.bfloat16
CASES = 10  # of each peer: more than dynamo's own limit on the compilations of one function


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list[bool]]:
    """One entry for each graph that torch.compile makes: whether one of its inputs has a size that may change."""
    found = []

    def backend(graph, inputs):
        found.append(any(isinstance(s, torch.SymInt) for x in inputs for s in (x, *getattr(x, "shape", ()))))
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield found
    torch._dynamo.reset()


def operands(op: str, i: int) -> list[Tensor]:
    rows, width = 2 + i, 16
    x, w, b = torch.randn(rows, width, dtype=BF16), torch.randn(width, dtype=BF16), torch.randn(width, dtype=BF16)
    match op:
        case "attention":
            return [torch.randn(1, 1, 128 * (1 + i % 3), 16) for _ in range(3)]
        case "layer_norm":
            return [x, w, b]
        case "add_layer_norm":
            return [x, torch.randn_like(x), w, b]
        case "ffn":
            return [x, torch.randn(32, width, dtype=BF16), torch.randn(32, dtype=BF16), x.new_ones(width, 32), b]
        case "linear_cross_entropy":
            return [x, torch.randn(7, width, dtype=BF16), torch.zeros(rows, dtype=torch.int64)]
    raise AssertionError(f"{op} has a compiled peer, and no operands here")


COMPILED = [(op, name) for op, found in peers.PEERS.items() for name in found if "compile" in name]


@pytest.mark.parametrize(("op", "name"), COMPILED)
def test_every_case_of_a_compiled_peer_is_compiled(graphs, op, name):
    for i in range(CASES if op != "attention" else 3):
        function = peers.PEERS[op][name].load()
        inputs, options = operands(op, i), {"dropout_p": i % 2 / 10} if op == "add_layer_norm" else {}
        if op != "attention" and i % 4 > 1:  # torch has no backward of flex_attention on a CPU
            inputs = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
        for _ in range(2):  # a benchmark calls it many times
            function(*inputs, **options)
        assert graphs == [False] * (i + 1)


def test_every_operation_but_those_without_one_has_a_compiled_peer():
    assert {op for op, _ in COMPILED} == set(peers.OPERATIONS)


@pytest.mark.parametrize("impl", ["torch", "fastgpt"])
def test_every_size_of_a_compiled_model_is_compiled_for_itself(graphs, impl):
    from fastgpt.kernels import interpret

    for i, (B, T) in enumerate([(2, 8), (1, 16), (2, 8)]):
        config = GPTConfig(vocab_size=1, max_len=T, n_layers=1, n_heads=2, d_model=32)
        block = models.compiled(f"{impl}-compile", GPT(config.replace(**IMPLEMENTATION_SETS[impl])).blocks[0])
        with interpret():
            block(torch.randn(B, T, 32), torch.randn(B, T, 32))
        assert graphs == [False] * (i + 1)


def test_a_whole_model_is_one_graph(graphs):
    config = GPTConfig(vocab_size=61, max_len=8, n_layers=1, n_heads=2, d_model=32, **IMPLEMENTATION_SETS["torch"])
    idx = torch.randint(61, (2, 8))
    models.compiled("torch-compile", GPT(config))(idx, idx, return_logits=False).loss.backward()
    assert graphs == [False]


def test_what_cannot_be_compiled_whole_is_no_figure():
    def broken(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        peers.compiled(broken)(torch.ones(2))


def test_a_limit_that_is_reached_is_no_figure(graphs):
    function = peers.compiled(lambda x: x + 1)
    limit = torch._dynamo.config.recompile_limit
    for n in range(limit):
        function(torch.ones(2 + n))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        function(torch.ones(2 + limit))
