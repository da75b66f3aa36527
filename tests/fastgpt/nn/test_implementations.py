"""`fastgpt.implementations` says what a forward then does: each module is run, and watched.

"gpu" is a CPU whose tensors pass for a GPU's, and where launches do nothing: the paths are those of a GPU.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import fastgpt
from fastgpt import GPT, GPTConfig
from fastgpt.kernels import _library, _notice, _runtime, interpret, reference, support
from fastgpt.nn import GELUFFN, FlashMultiheadAttention, LayerNorm, LinearCrossEntropyLoss, impl
from tests.fastgpt.hf_models import hf_model
from tests.support.launches import launches_skipped

pytest.importorskip("triton")

# What runs tells of itself: an operator of ours by its name, others by the function that they go through.
OPERATORS = {"attention": "attn", "layer_norm": "norm", "add_layer_norm": "norm", "gelu_ffn": "ffn",
             "linear_gelu": "ffn", "cross_entropy": "loss", "linear_cross_entropy": "loss"}  # fmt: skip
REFERENCES = {"flash_attention": "attn", "layer_norm": "norm", "gelu_ffn": "ffn"}
SILENT = ("the fused loss is for training", "nn.TransformerEncoderLayer has a fast path", "requested")


class Ran(dict[str, set[str]]):
    """{part: implementations that ran}."""

    def add(self, part: str, name: str) -> None:
        self.setdefault(part, set()).add(name)


@pytest.fixture
def ran(monkeypatch):
    """What has run from here on."""
    ran = Ran()

    def watch(owner: Any, name: str, part: str, used: str) -> None:
        original = getattr(owner, name)

        def spy(*args: Any, **kwargs: Any) -> Any:
            ran.add(part, used)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, spy)

    call = _library.Operator.__call__

    def called(operator: _library.Operator, *args: Any) -> Any:
        name = operator.op.name().removeprefix("fastgpt::")
        ran.add(next(part for start, part in OPERATORS.items() if name.startswith(start)), "triton")
        return call(operator, *args)

    monkeypatch.setattr(_library.Operator, "__call__", called)
    for name, part in REFERENCES.items():
        watch(reference, name, part, "reference")
    watch(_runtime, "torch_attention", "attn", "sdpa")
    watch(F, "multi_head_attention_forward", "attn", "torch")
    watch(torch, "_native_multi_head_attention", "attn", "torch")
    watch(F, "layer_norm", "norm", "torch")
    watch(torch, "_transformer_encoder_layer_fwd", "attn", "torch")
    with contextlib.suppress(ImportError):
        from transformers.integrations import sdpa_attention

        from fastgpt.interop import attention_registry

        watch(sdpa_attention, "sdpa_attention_forward", "attn", "sdpa")
        watch(attention_registry, "plain_attention", "attn", "torch")
    return ran


@contextlib.contextmanager
def on(place: str, monkeypatch: pytest.MonkeyPatch):
    impl.forget()
    with contextlib.ExitStack() as stack:
        if place == "interpreter":
            stack.enter_context(interpret())
        else:
            monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
        if place == "gpu":
            stack.enter_context(launches_skipped())
        yield
    impl.forget()


def compare(model: nn.Module, call: Callable[[], object], ran: Ran, caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """Hold the table against what runs; returns {part: used}, " and " between several."""
    caplog.set_level(logging.INFO, logger="fastgpt")
    caplog.clear()
    _notice._said.clear()
    rows = fastgpt.implementations(model)
    assert not [r for r in caplog.records if r.name == "fastgpt"], "to ask is not to run"
    if any(not row.used for row in rows):
        with pytest.raises((RuntimeError, TypeError)):
            call()
        return {row.part: "" for row in rows if not row.used}
    call()
    told: dict[str, set[str]] = {}
    for row in rows:
        told.setdefault(row.part, set()).add(row.used)
    for part, used in told.items():
        # Children and torch's cross-entropy go through no function of one name: there, nothing of ours runs.
        names = used if part in ("attn", "norm") else used & ({"triton"} if part == "loss" else {"triton", "reference"})
        assert ran.get(part, set()) == names, f"{part}: {rows}"
    said = " ".join(record.getMessage() for record in caplog.records)
    for row in rows:
        if row.used != "triton" and not row.why.startswith(SILENT):
            assert row.why.removeprefix("children run one by one: ") in said
    return {part: " and ".join(sorted(used)) for part, used in told.items()}


# ---- the modules of fastgpt.nn ---------------------------------------------------------------------------------------


class LoRA(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x)


def attend(module: nn.MultiheadAttention, **options: Any) -> Callable[[], object]:
    def call() -> object:
        x = torch.randn(2, 4, module.embed_dim, dtype=next(module.parameters()).dtype)
        return module(x, x, x, **options)

    return call


def feed(module: nn.Module, width: int = 8) -> Callable[[], object]:
    dtype = next(module.parameters(), torch.empty(0)).dtype
    return lambda: module(torch.randn(3, width, dtype=dtype))


def judge(module: nn.Module) -> Callable[[], object]:
    dtype = next(module.parameters()).dtype
    return lambda: module(torch.randn(3, 8, dtype=dtype), torch.tensor([0, 1, 2]))


def hooked(module: nn.Module, child: str = "") -> nn.Module:
    module.get_submodule(child).register_forward_hook(lambda *_: None)
    return module


def with_child(module: nn.Module, name: str, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    setattr(module, name, wrap(getattr(module, name)))
    return module


def mha(embed_dim: int = 8, heads: int = 2, **options: Any) -> FlashMultiheadAttention:
    return FlashMultiheadAttention(embed_dim, heads, batch_first=True, **options)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Callable[[], object]], str]] = {
    # name: (module, its call, what it uses where kernels can run)
    "attention": (mha, attend, "triton"),
    "attention, frozen": (lambda: mha().requires_grad_(False), attend, "triton"),
    "attention, evaluated": (lambda: mha().eval(), attend, "triton"),
    "attention without weights": (mha, lambda m: attend(m, need_weights=False), "triton"),
    "attention, float64": (lambda: mha().double(), attend, "torch"),
    "attention, bfloat16": (lambda: mha().bfloat16(), attend, "triton"),
    "attention with hooks": (lambda: hooked(mha()), attend, "triton"),
    "attention with hooks on out_proj": (lambda: hooked(mha(), "out_proj"), attend, "triton"),
    "attention with an adapter": (lambda: with_child(mha(), "out_proj", LoRA), attend, "triton"),
    "attention, add_bias_kv": (lambda: mha(add_bias_kv=True), attend, "torch"),
    "attention, add_zero_attn": (lambda: mha(add_zero_attn=True), attend, "torch"),
    "attention, head_dim 264": (lambda: mha(264, 1), attend, "torch"),
    "attention, dropout": (lambda: mha(dropout=0.5), attend, "triton"),
    "attention, dropout of all": (lambda: mha(dropout=1.0), attend, "torch"),
    "attention, dropout of all, evaluated": (lambda: mha(dropout=1.0).eval(), attend, "triton"),
    "norm": (lambda: LayerNorm(8), feed, "triton"),
    "norm without affine": (lambda: LayerNorm(8, elementwise_affine=False), feed, "triton"),
    "norm, float64": (lambda: LayerNorm(8).double(), feed, "torch"),
    "norm with hooks": (lambda: hooked(LayerNorm(8)), feed, "triton"),
    "norm by name": (lambda: LayerNorm(8, impl="triton"), feed, "triton"),
    "norm by name, float64": (lambda: LayerNorm(8, impl="triton").double(), feed, ""),
    "norm, torch's": (lambda: LayerNorm(8, impl="torch"), feed, "torch"),
    "norm, the reference": (lambda: LayerNorm(8, impl="reference"), feed, "reference"),
    "ffn": (lambda: GELUFFN(8), feed, "triton"),
    "ffn, frozen": (lambda: GELUFFN(8).requires_grad_(False), feed, "triton"),
    "ffn, float64": (lambda: GELUFFN(8).double(), feed, "torch"),
    "ffn with hooks": (lambda: hooked(GELUFFN(8)), feed, "triton"),
    "ffn with hooks on a child": (lambda: hooked(GELUFFN(8), "0"), feed, "torch"),
    "ffn with an adapter": (lambda: with_child(GELUFFN(8, impl="triton"), "2", LoRA), feed, "torch"),
    "ffn with a spectral norm": (lambda: with_child(GELUFFN(8), "0", parametrizations.spectral_norm), feed, "torch"),
    "ffn, dropout": (lambda: GELUFFN(8, dropout=0.5), feed, "triton"),
    "ffn, dropout of all": (lambda: GELUFFN(8, dropout=1.0), feed, "torch"),
    "ffn, the reference": (lambda: GELUFFN(8, impl="reference"), feed, "reference"),
    "ffn by name, float64": (lambda: GELUFFN(8, impl="triton").double(), feed, ""),
    "loss": (lambda: LinearCrossEntropyLoss(8, 6), judge, "triton"),
    "loss, float64": (lambda: LinearCrossEntropyLoss(8, 6).double(), judge, "torch"),
    "loss with hooks": (lambda: hooked(LinearCrossEntropyLoss(8, 6), "linear"), judge, "triton"),
    "loss with an adapter": (lambda: with_child(LinearCrossEntropyLoss(8, 6), "linear", LoRA), judge, "triton"),
    "loss with an adapter, torch's": (
        lambda: with_child(LinearCrossEntropyLoss(8, 6, impl="torch"), "linear", LoRA), judge, "torch"
    ),
    "loss without a weight": (
        lambda: LinearCrossEntropyLoss(),
        lambda m: lambda: m(torch.randn(3, 8), torch.tensor([0, 1, 2]), torch.randn(6, 8)),
        "triton",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("place", ["gpu", "cpu", "interpreter"])
def test_a_module_does_what_the_table_says(name, place, seed, ran, monkeypatch, caplog):
    make, call, used = MODULES[name]
    module = make()
    with on(place, monkeypatch):
        found = compare(module, call(module), ran, caplog)
    if place == "gpu":
        assert list(found.values()) == [used]
    elif place == "cpu":
        assert "triton" not in found.values()


@pytest.mark.parametrize("scope", ["no_grad", "inference_mode", "autocast", "dual_level"])
@pytest.mark.parametrize("name", ["attention", "norm", "ffn", "loss"])
def test_in_every_mode_of_torch(name, scope, seed, ran, monkeypatch, caplog):
    module, call = MODULES[name][0](), MODULES[name][1]
    scopes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
              "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
              "dual_level": torch.autograd.forward_ad.dual_level}  # fmt: skip
    with on("gpu", monkeypatch), scopes[scope]():
        found = compare(module, call(module), ran, caplog)
    assert list(found.values()) == ["torch" if scope == "dual_level" else "triton"]


@pytest.mark.parametrize("name", ["norm by name", "ffn by name", "loss by name"])
def test_by_name_in_forward_mode_it_is_said_that_tangents_have_no_way(name, seed, ran, monkeypatch):
    """A call without tangents still runs there: what is frozen may stay on the kernels."""
    make, call = {
        "norm by name": (lambda: LayerNorm(8, impl="triton"), feed),
        "ffn by name": (lambda: GELUFFN(8, impl="triton"), feed),
        "loss by name": (lambda: LinearCrossEntropyLoss(8, 6, impl="triton"), judge),
    }[name]
    module = make()

    def with_tangents(weight: torch.Tensor) -> torch.Tensor:
        rows.extend(fastgpt.implementations(module))
        call(module)()
        named = next(name for name, _ in module.named_parameters())
        inputs = (torch.randn(3, 8), torch.tensor([0, 1, 2]))[: 2 if name.startswith("loss") else 1]
        return torch.func.functional_call(module, {named: weight}, inputs)

    rows: list[Any] = []
    weight = next(module.parameters()).detach()
    with on("gpu", monkeypatch), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(with_tangents, (weight,), (torch.ones_like(weight),))
    assert [(row.used, row.why) for row in rows] == [("", support.NO_FORWARD_MODE)]
    assert set.union(*ran.values()) == {"triton"}


SHAPES_ONLY = [name for name in MODULES if "float64" not in name and "without a weight" not in name]


@pytest.mark.parametrize("name", SHAPES_ONLY)
def test_a_module_without_data_does_what_the_table_says(name, seed, ran, monkeypatch, caplog):
    make, call, _ = MODULES[name]
    with on("cpu", monkeypatch), torch.device("meta"):
        module = make()
        compare(module, call(module), ran, caplog)


# ---- models of torch's, patched --------------------------------------------------------------------------------------


def encoder_layer(**options: Any) -> nn.Module:
    settings = {"dim_feedforward": 16, "activation": "gelu", "batch_first": True, "dropout": 0.0} | options
    layer = nn.TransformerEncoderLayer(8, 2, **settings)
    fastgpt.patch(layer)
    return layer


ENCODERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "in training": (encoder_layer, "triton"),
    "evaluated with gradients": (lambda: encoder_layer().eval(), "triton"),
    "evaluated, frozen": (lambda: encoder_layer().eval().requires_grad_(False), "torch"),
    "evaluated, frozen, with hooks": (lambda: hooked(encoder_layer().eval().requires_grad_(False), "norm1"), "triton"),
    "evaluated, frozen, time first": (lambda: encoder_layer(batch_first=False).eval().requires_grad_(False), "triton"),
    "evaluated, frozen, without biases": (lambda: encoder_layer(bias=False).eval().requires_grad_(False), "triton"),
    "evaluated, frozen, another activation": (
        lambda: encoder_layer(activation=F.silu).eval().requires_grad_(False), "triton"
    ),
    "evaluated, float64": (lambda: encoder_layer().eval().double(), "torch"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("place", ["gpu", "cpu"])
def test_torchs_encoder_layer_may_pass_our_modules_by(name, place, seed, ran, monkeypatch, caplog):
    make, used = ENCODERS[name]
    layer = make()
    x = torch.randn(2, 4, 8, dtype=next(layer.parameters()).dtype)
    with on(place, monkeypatch):
        if used == "torch" and "float64" not in name:  # norms go by too, without a function of their own
            assert {row.used for row in fastgpt.implementations(layer)} == {"torch"}
            layer(x)
            assert ran == {"attn": {"torch"}}
            return
        found = compare(layer, lambda: layer(x), ran, caplog)
    assert set(found.values()) == {used if place == "gpu" else "torch"}


def test_no_grad_around_a_trained_encoder_layer_is_what_counts(seed, ran, monkeypatch):
    layer, x = encoder_layer().eval(), torch.randn(2, 4, 8)
    with on("gpu", monkeypatch):
        assert {row.used for row in fastgpt.implementations(layer)} == {"triton"}
        with torch.no_grad():
            assert {row.used for row in fastgpt.implementations(layer)} == {"torch"}
            layer(x)
    assert ran == {"attn": {"torch"}}


# ---- GPT -------------------------------------------------------------------------------------------------------------

TINY = {"vocab_size": 32, "max_len": 8, "n_layers": 2, "n_heads": 2, "d_model": 16}
PARTS = ("attn", "norm", "ffn", "loss")


@pytest.mark.parametrize("request_", ["auto", "triton", "torch", "reference"])
@pytest.mark.parametrize("place", ["gpu", "cpu", "interpreter"])
def test_a_gpt_does_what_the_table_says(request_, place, seed, ran, monkeypatch, caplog):
    requests = {f"{part}_impl": "sdpa" if (part, request_) == ("attn", "torch") else request_ for part in PARTS}
    model, idx = GPT(GPTConfig(**TINY, **requests)), torch.randint(32, (1, 4))
    with on(place, monkeypatch):
        found = compare(model, lambda: model(idx, idx), ran, caplog)
    fused = (request_ == "triton" and place != "cpu") or (request_, place) == ("auto", "gpu")
    assert fused == (set(found.values()) == {"triton"})


def test_a_gpt_in_float64_and_with_children_replaced(seed, ran, monkeypatch, caplog):
    model, idx = GPT(GPTConfig(**TINY)), torch.randint(32, (1, 4))
    for block in model.blocks:
        with_child(block.ffn, "0", LoRA)
    model.head = LoRA(model.head)
    with on("gpu", monkeypatch):
        found = compare(model, lambda: model(idx, idx), ran, caplog)
        assert found == {"attn": "triton", "norm": "triton", "ffn": "torch", "loss": "torch"}
        ran.clear()
        model.double()
        found = compare(model, lambda: model(idx, idx), ran, caplog)
    assert found == {"attn": "sdpa", "norm": "torch", "ffn": "torch", "loss": "torch"}


def test_each_layer_has_its_own_answer(seed, monkeypatch):
    model = GPT(GPTConfig(**{**TINY, "n_layers": 3}))
    hooked(model.blocks[1].ffn, "2")
    with on("gpu", monkeypatch):
        rows = [(r.layers, r.used, r.why) for r in fastgpt.implementations(model) if r.part == "ffn"]
    assert rows == [
        ("0, 2", "triton", "fused kernels run on cpu in float32"),
        ("1", "torch", "children run one by one: a Linear has hooks"),
    ]


@pytest.mark.parametrize("make", [lambda: LayerNorm(8), lambda: GELUFFN(8), mha, lambda: GPT(GPTConfig(**TINY))])
def test_what_torch_compile_wraps_has_the_rows_of_what_is_inside(make):
    module = make()
    assert fastgpt.implementations(torch.compile(module)) == fastgpt.implementations(module)


# ---- models of transformers', patched --------------------------------------------------------------------------------


def patched(kind: str, training: bool = True, **fields: Any) -> nn.Module:
    model = hf_model(kind, **fields).train(training)
    fastgpt.patch(model)
    return model


def registered(kind: str, **fields: Any) -> nn.Module:
    """With our attention by its name alone, which `patch` would refuse."""
    from fastgpt.interop.attention_registry import register

    model = hf_model(kind, **fields).train()
    model.set_attn_implementation(register())
    parts = [part for part in model.modules() if type(part).__name__.endswith("Attention") and hasattr(part, "config")]
    if {part.config._attn_implementation for part in parts} == {"eager"}:
        pytest.skip(f"this transformers keeps {kind} to its eager attention")
    return model


FUSED = {"attn": "triton", "norm": "triton", "ffn": "triton", "loss": "triton"}
HF: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    # name: (model, what it uses where kernels can run)
    "gpt2": (lambda: patched("gpt2"), FUSED),
    "gpt2, evaluated": (lambda: patched("gpt2", False), FUSED | {"loss": "torch"}),
    "gpt2, frozen": (lambda: patched("gpt2").requires_grad_(False), FUSED),
    "gpt2, float64": (
        lambda: patched("gpt2").double(), {"attn": "sdpa", "norm": "torch", "ffn": "torch", "loss": "torch"}
    ),
    "gpt2 with hooks on lm_head": (lambda: hooked(patched("gpt2"), "lm_head"), FUSED | {"loss": "torch"}),
    "gpt2 with adapters": (lambda: with_adapters(patched("gpt2")), FUSED | {"ffn": "torch"}),
    "gpt2 with another loss": (lambda: with_a_loss(patched("gpt2")), FUSED | {"loss": "torch"}),
    "gpt2, dropout": (lambda: patched("gpt2", attn_pdrop=0.5, resid_pdrop=0.5), FUSED),
    "gpt2, dropout of all": (
        lambda: patched("gpt2", attn_pdrop=1.0, resid_pdrop=1.0), FUSED | {"attn": "sdpa", "ffn": "torch"}
    ),
    "gpt2, dropout of all, evaluated": (
        lambda: patched("gpt2", False, attn_pdrop=1.0), FUSED | {"loss": "torch"}
    ),
    "gpt2, head_dim 264": (lambda: patched("gpt2", n_embd=264, n_head=1, n_layer=1), FUSED | {"attn": "sdpa"}),
    "llama": (lambda: patched("llama"), {"attn": "triton"}),
    "llama, head_dim 264": (lambda: patched("llama", head_dim=264), {"attn": "sdpa"}),
    "gemma2, whose scores are capped": (lambda: registered("gemma2"), {"attn": "torch"}),
    "gpt_oss, which has sinks": (lambda: registered("gpt_oss"), {"attn": "torch"}),
    "t5, which has a position bias": (lambda: registered("t5"), {"attn": "sdpa"}),
}  # fmt: skip


def with_adapters(model: nn.Module) -> nn.Module:
    for block in model.transformer.h:
        block.mlp.c_fc = LoRA(block.mlp.c_fc)
    return model


def with_a_loss(model: nn.Module) -> nn.Module:
    causal = model.loss_function
    model.loss_function = lambda *args, **kwargs: causal(*args, **kwargs)
    return model


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("name", HF)
@pytest.mark.parametrize("place", ["gpu", "cpu"])
def test_a_transformers_model_does_what_the_table_says(name, place, seed, ran, monkeypatch, caplog):
    make, used = HF[name]
    model, idx = make(), torch.randint(3, 64, (1, 4))
    labels = {"labels": idx} if hasattr(model, "lm_head") else {}
    unsaid = ("its loss_function is another", "its attention caps its scores", "its attention has sinks")
    monkeypatch.setattr("tests.fastgpt.nn.test_implementations.SILENT", SILENT + unsaid)
    with on(place, monkeypatch):
        found = compare(model, lambda: model(idx, **labels), ran, caplog)
    if place == "gpu":
        assert found == used
    else:
        assert "triton" not in found.values()


@pytest.mark.needs("transformers")
def test_the_interpreter_runs_what_patch_converted(seed, ran, monkeypatch, caplog):
    """`impl="auto"` of our own modules leaves the interpreter alone; what stands in for others' runs in it."""
    model, idx = patched("gpt2"), torch.randint(3, 64, (1, 4))
    with on("interpreter", monkeypatch):
        assert compare(model, lambda: model(idx, labels=idx), ran, caplog) == FUSED


# ---- where it is asked -----------------------------------------------------------------------------------------------


def test_a_module_without_parameters_is_asked_for_torchs_default(monkeypatch):
    with on("gpu", monkeypatch):
        (row,) = fastgpt.implementations(LayerNorm(8, elementwise_affine=False))
        assert row.why == "fused kernels run on cpu in float32"
        (row,) = fastgpt.implementations(nn.Sequential(nn.Linear(8, 8).double(), LinearCrossEntropyLoss()))
        assert "not float64" in row.why


def test_each_part_of_a_model_has_its_own_dtype(monkeypatch):
    model = nn.ModuleList([LayerNorm(8).double(), LayerNorm(8)])
    with on("gpu", monkeypatch):
        assert [row.used for row in fastgpt.implementations(model)] == ["torch", "triton"]


def test_one_parameter_of_another_dtype_is_seen(monkeypatch):
    norm = LayerNorm(8)
    norm.bias = nn.Parameter(norm.bias.detach().double())
    with on("gpu", monkeypatch):
        (row,) = fastgpt.implementations(norm)
    assert (row.used, row.why) == ("torch", "the kernels take float32, float16 and bfloat16, not float64")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what is said of a GPU that is not there")
def test_another_device_may_be_asked_about(monkeypatch):
    model = nn.ModuleList([mha(), LayerNorm(8), GELUFFN(8), LinearCrossEntropyLoss(8, 6)])
    with on("cpu", monkeypatch):
        assert {row.used for row in fastgpt.implementations(model)} == {"torch"}
        assert {row.used for row in fastgpt.implementations(model, "cuda")} == {"triton"}


@pytest.mark.parametrize("device", ["gpu", "", 1.5, ["cuda"]])
def test_what_is_no_device_is_named(device):
    with pytest.raises(ValueError, match=r"^implementations: device=.* must be a device"):
        fastgpt.implementations(nn.ModuleList([LayerNorm(8)]), device)
