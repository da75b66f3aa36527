"""GPT against the reference multi-block model: same state dict, same logits, loss and gradients."""

import copy
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fastgpt import GPT, GPTConfig
from fastgpt.kernels import interpret
from tests.support.reference_gpt import ReferenceGPT

SHAPE = {"vocab_size": 61, "max_len": 24, "n_layers": 3, "n_heads": 4, "d_model": 32}
PLAIN = {"attn_impl": "reference", "norm_impl": "reference", "ffn_impl": "reference", "loss_impl": "reference"}
TORCH = {"attn_impl": "sdpa", "norm_impl": "torch", "ffn_impl": "torch", "loss_impl": "torch"}


def batch(T=17, B=2, V=61):
    return torch.randint(0, V, (B, T)), torch.randint(0, V, (B, T))


def away_from_init(model):
    """Random values everywhere: at initialisation biases are 0 and a forgotten one would not show."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3)
    return model


def assert_close(ours, theirs, tolerance):
    assert (ours - theirs).abs().max() <= tolerance, f"difference {(ours - theirs).abs().max():.2e}"


@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("impls", [PLAIN, TORCH], ids=["reference", "torch"])
def test_equals_the_reference_model(seed, impls, tie, bias, gelu):
    reference = away_from_init(ReferenceGPT(**SHAPE, tie_weights=tie, bias=bias, gelu=gelu).double())
    model = GPT(GPTConfig(**SHAPE, tie_weights=tie, bias=bias, gelu=gelu, **impls)).double()
    model.load_state_dict(reference.state_dict(), strict=True)
    idx, targets = batch()
    logits, loss = reference(idx, targets)
    loss.backward()
    output = model(idx, targets)
    output.loss.backward()
    assert_close(output.logits, logits, 1e-10)
    assert_close(output.loss, loss, 1e-10)
    ours, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    assert list(ours) == list(theirs)
    for name in ours:
        assert_close(ours[name].grad, theirs[name].grad, 1e-10)


@pytest.mark.parametrize("tie", [True, False])
def test_state_dict_loads_both_ways_in_the_same_order(seed, tie):
    reference = away_from_init(ReferenceGPT(**SHAPE, tie_weights=tie))
    model = GPT(GPTConfig(**SHAPE, tie_weights=tie))
    assert list(model.state_dict()) == list(reference.state_dict())
    model.load_state_dict(reference.state_dict(), strict=True)
    back = ReferenceGPT(**SHAPE, tie_weights=tie)
    back.load_state_dict(model.state_dict(), strict=True)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_parameters_are_in_the_documented_order_and_an_optimizers_state_by_index_is_right(seed):
    """AdamW knows its parameters by number only: another order would give a tensor its neighbour's moments."""
    reference = away_from_init(ReferenceGPT(**SHAPE))
    model = GPT(GPTConfig(**SHAPE))
    parts = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in model.state_dict()))
    block = ["ln1", "ln2", "attn", "attn.out_proj", "ffn.0", "ffn.2"]
    inner = [f"blocks.{i}.{part}" for i in range(3) for part in block]
    assert parts == ["token_emb", "pos_emb", *inner, "ln_f", "head"]
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in reference.named_parameters()]
    optimizer, ours = (torch.optim.AdamW(m.parameters()) for m in (reference, model))
    reference(*batch())[1].backward()
    optimizer.step()
    ours.load_state_dict(optimizer.state_dict())
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(ours.state[parameter]["exp_avg"], optimizer.state[theirs[name]]["exp_avg"]), name


def test_tied_model_loads_a_state_dict_without_head_and_refuses_another_head(seed):
    model = GPT(GPTConfig(**SHAPE))
    state = model.state_dict()
    del state["head.weight"]
    GPT(GPTConfig(**SHAPE)).load_state_dict(state, strict=True)
    state = GPT(GPTConfig(**SHAPE, tie_weights=False)).state_dict()
    with pytest.raises(RuntimeError, match=r"head.weight differs from token_emb.weight, and this model ties them"):
        model.load_state_dict(state)


@pytest.mark.parametrize("T", [1, 2, 23, 24])
def test_any_length_up_to_max_len(seed, T):
    model, (idx, targets) = GPT(GPTConfig(**SHAPE)), batch(T)
    assert model(idx, targets).logits.shape == (2, T, 61)


def test_nothing_leaks_from_the_future(seed):
    model = away_from_init(GPT(GPTConfig(**SHAPE))).double()
    idx, _ = batch()
    changed = idx.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 61
    before, after = model(idx).logits, model(changed).logits
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_grouped_queries_equal_repeated_keys(seed, impl):
    """A GQA model is the full model whose key and value heads are copies of each other."""
    grouped = away_from_init(GPT(GPTConfig(**SHAPE, n_kv_heads=2, attn_impl=impl))).double()
    full = GPT(GPTConfig(**SHAPE, attn_impl=impl)).double()
    state = grouped.state_dict()
    for i in range(3):
        for kind in ("weight", "bias"):
            name = f"blocks.{i}.attn.in_proj_{kind}"
            q, k, v = state[name].split((32, 16, 16))
            k, v = (x.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1) for x in (k, v))
            state[name] = torch.cat([q, k, v])
    assert grouped.blocks[0].attn.in_proj_weight.shape == ((4 + 2 * 2) * 8, 32)
    full.load_state_dict(state)
    idx, targets = batch()
    assert_close(grouped(idx, targets).logits, full(idx, targets).logits, 1e-10)


@pytest.mark.parametrize("tie", [True, False])
def test_loss_at_initialisation_is_ln_v(seed, tie):
    V = 50257
    model = GPT(GPTConfig(V, 64, 2, 4, 256, tie_weights=tie))
    idx, targets = batch(64, 2, V)
    loss = model(idx, targets).loss.item()
    assert abs(loss / math.log(V) - 1) < 0.02


def test_initialisation_is_gpt2s(seed):
    model = GPT(GPTConfig(500, 64, 8, 4, 128))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif p.dim() == 1:
            assert (p == 1).all(), name
        else:
            std = 0.02 / math.sqrt(16) if name.endswith(("out_proj.weight", "ffn.2.weight")) else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05), name


def test_dropout_only_in_training(seed):
    model = GPT(GPTConfig(**SHAPE, dropout=0.5))
    idx, targets = batch()
    assert not torch.equal(model(idx, targets).loss, model(idx, targets).loss)
    model.eval()
    assert torch.equal(model(idx, targets).loss, model(idx, targets).loss)


@pytest.mark.parametrize("where", ["embedding", "attention", "residual"])
def test_dropout_in_every_place(seed, where):
    """One place at a time, the others switched off: the logits must still vary from call to call."""
    model, (idx, _) = GPT(GPTConfig(**SHAPE, dropout=0.5)), batch()
    for module in model.modules():
        if hasattr(module, "dropout"):
            keep = {"attention": "attn", "residual": "norm"}.get(where)
            module.dropout = 0.5 if module.fastgpt_part == keep else 0.0
    if where != "embedding":
        model.config = model.config.replace(dropout=0.0)
    assert not torch.equal(model(idx).logits, model(idx).logits)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_reductions_and_ignored_targets(seed, impl, reduction):
    model, (idx, targets) = GPT(GPTConfig(**SHAPE, loss_impl=impl)).double(), batch()
    targets[0, :5] = -100
    output = model(idx, targets, reduction=reduction)
    rows = -output.logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    rows = rows.masked_fill(targets == -100, 0.0)
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / (targets != -100).sum()}[reduction]
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=1e-12)


def test_return_logits_false_still_gives_logits_when_asked(seed):
    model, (idx, targets) = GPT(GPTConfig(**SHAPE)), batch()
    output = model(idx, targets, return_logits=False)
    assert output.computed_logits is None
    torch.testing.assert_close(output.logits, model(idx).logits)
    assert output.logits is output.logits


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_attention_maps(seed, impl):
    model, (idx, _) = away_from_init(GPT(GPTConfig(**SHAPE, attn_impl=impl, n_kv_heads=2))).train(), batch()
    maps = model.attention_maps(idx, layers=[2, 0], heads=[1, -1])
    assert list(maps) == [2, 0]
    assert model.training
    everything = model.attention_maps(idx)
    assert list(everything) == [0, 1, 2]
    for layer, weights in maps.items():
        assert weights.shape == (2, 2, 17, 17)
        torch.testing.assert_close(weights, everything[layer][:, [1, 3]])
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 17))
        assert (weights.triu(1) == 0).all()


def test_attention_maps_are_those_of_multihead_attention(seed):
    reference = away_from_init(ReferenceGPT(**SHAPE).double()).eval()
    model, (idx, _) = GPT(GPTConfig(**SHAPE)).double(), batch()
    model.load_state_dict(reference.state_dict())
    seen = {}
    reference.blocks[1].attn.register_forward_pre_hook(lambda m, args: seen.update(h=args[0]))
    reference(idx)
    hidden = torch.ones(17, 17, dtype=torch.bool).triu(1)
    _, weights = reference.blocks[1].attn(seen["h"], seen["h"], seen["h"], attn_mask=hidden, average_attn_weights=False)
    assert_close(model.attention_maps(idx, layers=1)[1], weights, 1e-12)


@pytest.mark.parametrize(("layers", "heads", "what"), [(3, None, "layer 3"), (None, [0, -5], "head -5")])
def test_attention_maps_of_what_is_not_there(layers, heads, what):
    with pytest.raises(IndexError, match=f"there is no {what}"):
        GPT(GPTConfig(**SHAPE)).attention_maps(torch.zeros(1, 3, dtype=torch.long), layers, heads)


@pytest.mark.parametrize("layers", ["0", 1.5, [0, "1"], True, [None]])
def test_attention_maps_of_what_is_no_number(layers):
    with pytest.raises(TypeError, match=r"attention_maps: layers=.* must be an integer"):
        GPT(GPTConfig(**SHAPE)).attention_maps(torch.zeros(1, 3, dtype=torch.long), layers)


def test_attention_maps_take_any_integers(seed):
    model, (idx, _) = GPT(GPTConfig(**SHAPE)), batch()
    assert list(model.attention_maps(idx, layers=range(2), heads=torch.tensor([1, 2]))) == [0, 1]
    assert list(model.attention_maps(idx, layers=torch.tensor(2))) == [2]


def test_flops_per_token_by_hand():
    model = GPT(GPTConfig(100, 50, 2, 4, 32))
    per_block = 3 * 32 * 32 + 32 * 32 + 2 * 32 * 128
    assert model.flops_per_token() == 6 * (2 * per_block + 100 * 32) + 12 * 2 * 32 * 50
    assert model.flops_per_token(10, causal=True) == 6 * (2 * per_block + 100 * 32) + 6 * 2 * 32 * 10


@pytest.mark.parametrize("tie", [True, False])
def test_num_parameters(tie):
    model = GPT(GPTConfig(**SHAPE, tie_weights=tie))
    assert model.num_parameters() == sum(p.numel() for p in ReferenceGPT(**SHAPE, tie_weights=tie).parameters())
    embeddings = 24 * 32 + (0 if tie else 61 * 32)
    assert model.num_parameters() - model.num_parameters(embeddings=False) == embeddings


@pytest.mark.parametrize(
    ("config", "hint"),
    [(SHAPE, r"GPTConfig\(\*\*config\)"), ("gpt2", r"GPTConfig.preset\(name\)"), (None, "GPTConfig.preset")],
)
def test_a_config_that_is_none_is_named(config, hint):
    with pytest.raises(TypeError, match=f"^GPT: config=.* must be a GPTConfig: .*{hint}"):
        GPT(config)


@pytest.mark.parametrize("bias", [False, True])
def test_a_resized_vocabulary_is_the_models(seed, bias):
    """Embedding and head that somebody has put in with more tokens than the config says."""
    model = GPT(GPTConfig(**SHAPE, tie_weights=False))
    model.token_emb, model.head = torch.nn.Embedding(70, 32), torch.nn.Linear(32, 70, bias=bias)
    idx, targets = torch.tensor([[69, 3, 61]]), torch.tensor([[3, 61, 69]])
    out = model(idx, targets)
    assert out.logits.shape == (1, 3, 70)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[0], targets[0]))
    assert model.generate(idx, 2, top_k=70).shape == (1, 5)
    for bad in ((idx + 1, None), (idx, targets + 1)):
        with pytest.raises(IndexError, match=r"70 is outside \[0, 70\)"):
            model(*bad)


def test_state_dict_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match=r"size mismatch for token_emb.weight"):
        GPT(GPTConfig(**SHAPE)).load_state_dict(GPT(GPTConfig(**{**SHAPE, "vocab_size": 60})).state_dict())


def test_copies_pickles_and_moves_keep_the_tie(seed, tmp_path):
    model, (idx, _) = GPT(GPTConfig(**SHAPE)), batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.head.weight is other.token_emb.weight
        assert torch.equal(other(idx).logits, model(idx).logits)
    with torch.device("meta"):
        empty = GPT(model.config)
    empty.to_empty(device="cpu")
    assert empty.head.weight is empty.token_emb.weight
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(idx).logits, model(idx).logits)


def test_compiles_whole_with_any_length(seed):
    model = GPT(GPTConfig(**SHAPE))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    for T in (8, 9, 17):
        idx, targets = batch(T)
        torch.testing.assert_close(compiled(idx, targets).loss, model(idx, targets).loss)
        torch.testing.assert_close(compiled(idx).logits, model(idx).logits)
    assert len(graphs) == 2  # one with targets, one without; none for a length


def test_gradients_through_functional_call_and_checkpoint(seed):
    from torch.utils.checkpoint import checkpoint

    model, (idx, targets) = GPT(GPTConfig(**SHAPE, dropout=0.1)), batch()
    parameters = dict(model.named_parameters())
    loss = torch.func.functional_call(model.eval(), parameters, (idx, targets), tie_weights=True).loss
    torch.testing.assert_close(loss, model(idx, targets).loss)
    model.train()
    torch.manual_seed(1)
    model(idx, targets).loss.backward()
    expected = model.token_emb.weight.grad.clone()
    model.zero_grad()
    torch.manual_seed(1)
    checkpoint(lambda i, t: model(i, t).loss, idx, targets, use_reentrant=False).backward()
    torch.testing.assert_close(model.token_emb.weight.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast(seed, dtype):
    model, (idx, targets) = GPT(GPTConfig(**SHAPE)), batch()
    exact = model(idx, targets).loss
    with torch.autocast("cpu", dtype=dtype):
        loss = model(idx, targets).loss
    assert loss.dtype == torch.float32
    assert abs(loss - exact) < 0.02
    assert abs(model.to(dtype)(idx, targets).loss - exact) < 0.02


IMPORT_PROBE = """
import sys, time, torch
before = set(sys.modules)
start = time.process_time()
import fastgpt
seconds = time.process_time() - start
heavy = {"triton", "transformers", "tyro", "rich", "matplotlib", "tensorboard", "tiktoken", "yaml", "zstandard"}
print(seconds, sorted((set(sys.modules) - before) & heavy), torch.cuda.is_initialized())
"""


def test_import_is_quick_and_touches_neither_gpu_nor_heavy_packages():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    probe = [sys.executable, "-c", IMPORT_PROBE]
    for _ in range(2):  # the first may compile bytecode
        printed = subprocess.run(probe, capture_output=True, text=True, check=True, env=environment).stdout
        seconds, rest = printed.split(" ", 1)
        assert rest.strip() == "[] False"
        if float(seconds) <= 0.3:
            return
    pytest.fail(f"import fastgpt took {seconds} s of processor time beyond torch's own import")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("impls", [PLAIN, TORCH, {"loss_impl": "triton"}], ids=["reference", "torch", "triton"])
def test_token_ids_and_targets_of_32_bits(seed, impls, reduction):
    """The loss of the same numbers in int64, targets that do not count included."""
    if impls.get("loss_impl") == "triton":
        pytest.importorskip("triton")
    model = GPT(GPTConfig(**SHAPE, **impls))
    idx, targets = batch()
    targets[0, 3] = -100
    with interpret():
        narrow, wide = (model(idx.to(t), targets.to(t), reduction=reduction).loss for t in (torch.int32, torch.int64))
    assert torch.equal(narrow, wide)
