"""FlashMultiheadAttention against nn.MultiheadAttention: values, weights, gradients, state dict, fallbacks."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt.kernels import _notice
from fastgpt.nn import FlashMultiheadAttention
from fastgpt.nn import attention as module_file
from tests.support.modules import assert_same_module

E, HEADS = 32, 4


@pytest.fixture
def kernel_calls(monkeypatch):
    """Options of the calls that reach flash_attention."""
    calls = []
    original = module_file.flash_attention
    monkeypatch.setattr(module_file, "flash_attention", lambda *a, **k: calls.append(k) or original(*a, **k))
    return calls


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(_notice, "_said", set())
    caplog.set_level(logging.WARNING, logger="fastgpt")
    return caplog


def pair(device, **options):
    """torch's module with no parameter at its initial value, and ours with the same state."""
    torchs = nn.MultiheadAttention(E, HEADS, **options)
    with torch.no_grad():
        for p in torchs.parameters():
            p.normal_(0.0, 0.3)
    ours = FlashMultiheadAttention(E, HEADS, **options)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    return ours.to(device), torchs.to(device)


class Attends(nn.Module):
    """`module` called with some of its inputs more than once, as self-attention does, and with these options."""

    def __init__(self, module, which=(0, 0, 0), autocast=None, **options):
        super().__init__()
        self.module, self.which, self.autocast, self.options = module, which, autocast, options

    def forward(self, *inputs, **options):
        dtype = self.autocast if inputs[0].dtype != torch.float64 else None
        with torch.autocast(inputs[0].device.type, dtype, enabled=dtype is not None):
            return self.module(*(inputs[i] for i in self.which), **self.options, **options)


def assert_as_torch(ours, torchs, inputs, dtype=torch.float32, **options):
    """Output, weights, and the gradients of inputs and parameters, within the budget of torch's module."""
    leaves = {id(x): x for x in inputs}  # the same tensor twice is one leaf
    which = [list(leaves).index(id(x)) for x in inputs]
    leaves = [x.detach().to(dtype).requires_grad_() for x in leaves.values()]
    options = {n: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for n, x in options.items()}
    modules = (Attends(copy.deepcopy(module).to(dtype), which) for module in (ours, torchs))
    assert_same_module(*modules, *leaves, **options)


def tokens(device, T, batch_first, width=E, B=2):
    return torch.randn((B, T, width) if batch_first else (T, B, width), device=device)


def causal_mask(T_q, T_k, device):
    return torch.ones(T_q, T_k, dtype=torch.bool, device=device).triu(1)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("average_attn_weights", [False, True])
def test_self_attention(device, seed, kernel_calls, batch_first, average_attn_weights):
    ours, torchs = pair(device, batch_first=batch_first)
    x = tokens(device, 9, batch_first)
    assert_as_torch(ours, torchs, (x, x, x), average_attn_weights=average_attn_weights)
    assert_as_torch(ours, torchs, (x, x, x), need_weights=False)
    assert len(kernel_calls) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(device, seed, kernel_calls, dtype):
    ours, torchs = pair(device, batch_first=True)
    x = tokens(device, 9, True)
    assert_as_torch(ours, torchs, (x, x, x), dtype=dtype, attn_mask=causal_mask(9, 9, device), is_causal=True)
    assert len(kernel_calls) == 1


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("widths", [{}, {"kdim": 24, "vdim": 20}, {"bias": False}])
def test_cross_attention(device, seed, kernel_calls, batch_first, widths):
    ours, torchs = pair(device, batch_first=batch_first, **widths)
    query = tokens(device, 5, batch_first)
    key, value = (tokens(device, 7, batch_first, widths.get(w, E)) for w in ("kdim", "vdim"))
    assert_as_torch(ours, torchs, (query, key, value))
    if not widths.get("kdim"):
        assert_as_torch(ours, torchs, (query, key, key))
    assert kernel_calls


def test_unbatched(device, seed, kernel_calls):
    ours, torchs = pair(device)
    x, y = torch.randn(9, E, device=device), torch.randn(5, E, device=device)
    hidden = torch.arange(5, device=device) >= 3
    assert_as_torch(ours, torchs, (x, x, x), average_attn_weights=False)
    assert_as_torch(ours, torchs, (x, y, y), key_padding_mask=hidden)
    assert len(kernel_calls) == 2


@pytest.mark.parametrize(("T_q", "T_k"), [(9, 9), (5, 9), (9, 5)])
@pytest.mark.parametrize("kind", ["hint", "bool", "float"])
def test_causal_masks(device, seed, kernel_calls, kind, T_q, T_k):
    ours, torchs = pair(device, batch_first=True)
    query, key = tokens(device, T_q, True), tokens(device, T_k, True)
    mask = causal_mask(T_q, T_k, device)
    if kind == "float":
        mask = torch.zeros(T_q, T_k, device=device).masked_fill(mask, float("-inf"))
    assert_as_torch(ours, torchs, (query, key, key), attn_mask=mask, is_causal=kind == "hint")
    assert len(kernel_calls) == 1


def test_is_causal_alone_needs_no_mask(device, seed, kernel_calls, monkeypatch):
    """torch raises; here no (T, T) tensor is needed, nor when torch has to take over."""
    ours, torchs = pair(device, batch_first=True)
    x, mask = tokens(device, 9, True), causal_mask(9, 9, device)
    for _ in range(2):
        assert_same_module(Attends(ours, is_causal=True), Attends(torchs, attn_mask=mask), x.requires_grad_())
        monkeypatch.setattr(FlashMultiheadAttention, "_why_torchs", lambda *a: "of this test")
    assert len(kernel_calls) == 1


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
def test_key_padding(device, seed, kernel_calls, kind, causal):
    ours, torchs = pair(device, batch_first=True)
    x = tokens(device, 9, True, B=8)  # among few weights, torch's largest float32 error is the luck of this CPU
    hidden = torch.zeros(8, 9, dtype=torch.bool, device=device)
    hidden[0, -3:] = True
    if not causal:  # with it the first queries would see nothing, which torch answers with NaN
        hidden[1, :2] = True
    mask = torch.zeros(8, 9, device=device).masked_fill(hidden, float("-inf")) if kind == "float" else hidden
    options = {"attn_mask": causal_mask(9, 9, device) if kind == "bool" else None} if causal else {}
    if causal and kind == "float":
        options["attn_mask"] = torch.zeros(9, 9, device=device).masked_fill(causal_mask(9, 9, device), float("-inf"))
    assert_as_torch(ours, torchs, (x, x, x), key_padding_mask=mask, **options)
    assert len(kernel_calls) == 1


def test_queries_that_see_nothing(device, seed, kernel_calls):
    ours, _ = pair(device, batch_first=True)
    x = tokens(device, 6, True)
    hidden = torch.zeros(2, 6, dtype=torch.bool, device=device)
    hidden[1] = True
    out, weights = ours(x, x, x, key_padding_mask=hidden)
    torch.testing.assert_close(out[1], ours.out_proj.bias.expand(6, E))
    assert (weights[1] == 0).all()
    assert kernel_calls


@pytest.mark.parametrize("refill", ["numpy", "data", "inference", "set_"])
@pytest.mark.parametrize("which", ["attn_mask", "key_padding_mask"])
def test_a_mask_is_what_it_holds_at_the_call(device, seed, kernel_calls, refill, which):
    """Memory is refilled for the next batch in ways of which the tensor's identity, version and address say nothing."""
    ours, torchs = pair(device, batch_first=True)
    x = tokens(device, 6, True)
    if which == "attn_mask":
        hidden = [causal_mask(6, 6, device), torch.zeros(6, 6, dtype=torch.bool, device=device)]
        hidden.append(hidden[0] & ~torch.eye(6, dtype=torch.bool, device=device).roll(2, 1))
    else:
        ends = [[6, 4], [2, 6], [3, 3]]
        hidden = [torch.arange(6, device=device) >= torch.tensor(row, device=device)[:, None] for row in ends]
    if refill == "data":  # float masks too
        hidden = [torch.zeros(h.shape, device=device).masked_fill(h, -torch.inf) for h in hidden]
    if refill == "numpy" and device.type != "cpu":
        pytest.skip("numpy's memory is the CPU's")
    with torch.inference_mode(refill == "inference"):
        mask = hidden[0].clone()
    for values in hidden:
        if refill == "numpy":
            mask.numpy()[:] = values.numpy()
        elif refill == "data":
            mask.data.copy_(values)
        elif refill == "inference":
            with torch.inference_mode():
                mask.copy_(values)
        else:
            mask.data = values.clone()
        mine, theirs = ours(x, x, x, **{which: mask}), torchs(x, x, x, **{which: values})
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert len(kernel_calls) == (2 if which == "attn_mask" else 3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mask with a hole", "attn_mask is neither causal nor empty"),
        ("mask per head", r"attn_mask is not one (T_q, T_k) mask for all"),
        ("float mask", "attn_mask is neither causal nor empty"),
        ("padding in the middle", "key_padding_mask hides keys that are not at the ends"),
        ("float padding", "key_padding_mask hides keys that are not at the ends"),
        ("add_bias_kv", "add_bias_kv and add_zero_attn are not supported"),
        ("add_zero_attn", "add_bias_kv and add_zero_attn are not supported"),
        ("float64", "the kernels take float32, float16 and bfloat16, not float64"),
    ],
)
def test_what_the_kernels_cannot_take_goes_to_torch_and_is_said_once(device, seed, kernel_calls, log, name, reason):
    ours, torchs = pair(device, batch_first=True, **({name: True} if name.startswith("add_") else {}))
    x = tokens(device, 6, True)
    options = {
        "mask with a hole": {"attn_mask": torch.eye(6, device=device).roll(1, 0).bool()},
        "mask per head": {"attn_mask": torch.rand(2 * HEADS, 6, 6, device=device) < 0.3},
        "float mask": {"attn_mask": torch.randn(6, 6, device=device)},
        "padding in the middle": {"key_padding_mask": torch.arange(6, device=device).eq(2).expand(2, 6).clone()},
        "float padding": {"key_padding_mask": torch.randn(2, 6, device=device)},
    }.get(name, {})
    if name == "float64":
        ours, torchs, x = ours.double(), torchs.double(), x.double()
    for _ in range(2):
        mine, theirs = ours(x, x, x, **options), torchs(x, x, x, **options)
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1], theirs[1])
    assert not kernel_calls
    assert len(log.messages) == 1
    assert f"torch's own implementation is used, because {reason}" in log.messages[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what a CPU tensor is told")
def test_a_cpu_without_the_interpreter_gets_torchs(monkeypatch, seed, log):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    ours, torchs = pair("cpu", batch_first=True)
    x = tokens("cpu", 6, True)
    assert torch.equal(ours(x, x, x)[0], torchs(x, x, x)[0])
    assert "tensors are on 'cpu'" in log.messages[0]


def test_dropout_is_for_training_only(device, seed, kernel_calls):
    ours, torchs = pair(device, batch_first=True, dropout=0.5)
    x = tokens(device, 9, True)
    assert not torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    ours.eval(), torchs.eval()
    assert_as_torch(ours, torchs, (x, x, x))
    assert [call["dropout_p"] for call in kernel_calls] == [0.5, 0.5, 0.0]


def test_autocast(device, seed, kernel_calls):
    ours, torchs = pair(device, batch_first=True)
    x = tokens(device, 9, True)
    both = [Attends(module, autocast=torch.bfloat16) for module in (ours, torchs)]
    assert both[0](x)[0].dtype == both[1](x)[0].dtype
    assert_same_module(*both, x.requires_grad_())
    assert len(kernel_calls) == 2


def test_packed_self_attention_makes_no_copies(device, seed):
    class Seen(TorchDispatchMode):
        names: list = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.name().split("::")[1].split(".")[0])
            return func(*args, **(kwargs or {}))

    for batch_first in (True, False):
        ours, _ = pair(device, batch_first=batch_first)
        x = tokens(device, 9, batch_first)
        with Seen() as seen:
            ours(x, x, x, need_weights=False)
        assert "attention_fwd" in seen.names
        assert not {"clone", "copy_", "contiguous", "_to_copy", "cat", "stack"} & set(seen.names)
        Seen.names.clear()


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 24, "vdim": 20}, {"add_bias_kv": True}])
def test_state_dict_is_torchs(seed, options):
    ours, torchs = pair("cpu", **options)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    back = nn.MultiheadAttention(E, HEADS, **options)
    back.load_state_dict(ours.state_dict(), strict=True)
    for name, tensor in torchs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    if not options:
        assert list(ours.state_dict()) == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]


def test_initial_values_are_torchs():
    states = []
    for cls in (nn.MultiheadAttention, FlashMultiheadAttention):
        torch.manual_seed(0)
        states.append(cls(E, HEADS).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_deepcopy_pickle_and_conversion_in_place(device, seed, kernel_calls):
    ours, torchs = pair(device, batch_first=True, dropout=0.1)
    ours.eval(), torchs.eval()
    x = tokens(device, 6, True)
    expected = ours(x, x, x)[0]
    torchs.__class__ = FlashMultiheadAttention
    for same in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torchs):
        assert type(same) is FlashMultiheadAttention
        assert torch.equal(same(x, x, x)[0], expected)
    assert len(kernel_calls) == 4


def test_repr():
    ours = FlashMultiheadAttention(E, HEADS, dropout=0.1, bias=False, batch_first=True)
    assert repr(ours).splitlines()[:2] == [
        "FlashMultiheadAttention(",
        "  embed_dim=32, num_heads=4, dropout=0.1, bias=False, batch_first=True",
    ]


def test_inside_torchs_encoder_layer(device, seed, kernel_calls):
    layer = nn.TransformerEncoderLayer(E, HEADS, 48, dropout=0.0, batch_first=True, norm_first=True, device=device)
    x, mask = tokens(device, 9, True), nn.Transformer.generate_square_subsequent_mask(9, device=device)
    plain = copy.deepcopy(layer)
    layer.self_attn.__class__ = FlashMultiheadAttention
    assert_same_module(layer, plain, x.requires_grad_(), src_mask=mask, is_causal=True)
    assert len(kernel_calls) == 1


def test_fullgraph_compile(device, seed, kernel_calls):
    torch._dynamo.reset()
    ours, _ = pair(device, batch_first=True)
    compiled = torch.compile(lambda x: ours(x, x, x, is_causal=True)[0], backend="aot_eager", fullgraph=True)
    for T in (9, 10):
        x = tokens(device, T, True)
        torch.testing.assert_close(compiled(x), ours(x, x, x, is_causal=True)[0])


def test_bad_shapes_are_told_by_torch(device):
    ours, torchs = pair(device)
    x, y = torch.randn(9, 2, E, device=device), torch.randn(5, 2, E, device=device)
    wrong = [((x, x, y), {}), ((x, x[:, 0], x), {}), ((x[..., :8], x, x), {}), ((x[:, :1], x, x), {})]
    wrong += [((x, y, y), {"key_padding_mask": torch.zeros(2, 9, dtype=torch.bool, device=device)})]
    for inputs, options in wrong:
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            torchs(*inputs, **options)
        with pytest.raises(type(theirs.value)):
            ours(*inputs, **options)
