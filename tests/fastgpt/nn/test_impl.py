"""Which implementation is used, why, and that they all compute the same model."""

import logging

import pytest
import torch

import fastgpt
from fastgpt import GPT, GPTConfig
from fastgpt.kernels import _notice, _runtime, support
from fastgpt.nn import impl
from fastgpt.nn import implementations as table
from tests.support.modules import assert_same_module

TINY = {"vocab_size": 128, "max_len": 16, "n_layers": 2, "n_heads": 2, "d_model": 16}
PARTS = {"attn": "sdpa", "norm": "torch", "ffn": "torch", "loss": "torch"}
REFERENCE = {f"{part}_impl": "reference" for part in PARTS}
TRITON = {f"{part}_impl": "triton" for part in PARTS}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

TEXT = b"""First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved rather to die than to famish?
"""


def text_batches(steps, B=2, T=16):
    """(idx, targets) of consecutive windows of Shakespeare, one byte a token."""
    tokens = torch.tensor(list(TEXT))
    starts = torch.arange(steps * B) * 7 % (len(tokens) - T - 1)
    windows = torch.stack([tokens[s : s + T + 1] for s in starts.tolist()]).view(steps, B, T + 1)
    return [(w[:, :-1], w[:, 1:]) for w in windows]


def away_from_init(model):
    """Random values everywhere, large enough that a forgotten bias or the wrong GELU shows."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3)


def train(model, batches, device, lr=1e-2):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for idx, targets in batches:
        loss = model(idx.to(device), targets.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


class Maps(torch.nn.Module):
    """The attention maps of a model's second head."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, idx):
        return list(self.model.attention_maps(idx, heads=[1]).values())


@pytest.mark.parametrize("tie", [True, False])
def test_ten_steps_on_text_give_the_references_losses(device, seed, tie):
    reference = GPT(GPTConfig(**TINY, **REFERENCE, tie_weights=tie)).to(device)
    model = GPT(GPTConfig(**TINY, **TRITON, tie_weights=tie)).to(device)
    model.load_state_dict(reference.state_dict())
    batches = text_batches(10)
    theirs, ours = train(reference, batches, device), train(model, batches, device)
    assert theirs[-1] < theirs[0] - 0.5, "nothing was learned"
    assert max(abs(a - b) for a, b in zip(ours, theirs)) < 1e-4, f"{ours} {theirs}"


@pytest.mark.parametrize("part", PARTS)
def test_each_part_in_triton_gives_the_references_gradients(device, seed, part):
    shape = {**TINY, "n_kv_heads": 1, "gelu": "tanh"}
    reference = GPT(GPTConfig(**shape, **REFERENCE)).to(device)
    model = GPT(GPTConfig(**shape, **{**REFERENCE, f"{part}_impl": "triton"})).to(device)
    away_from_init(reference)
    model.load_state_dict(reference.state_dict())
    ((idx, targets),) = text_batches(1)
    idx, targets = idx.to(device), targets.to(device)
    assert_same_module(model, reference, idx, targets, pick=lambda output: output.loss)


def test_attention_maps_and_generation_in_triton(device, seed):
    reference = GPT(GPTConfig(**TINY, **REFERENCE, n_kv_heads=1)).to(device)
    model = GPT(GPTConfig(**TINY, **TRITON, n_kv_heads=1)).to(device)
    away_from_init(reference)
    model.load_state_dict(reference.state_dict())
    idx = text_batches(1)[0][0].to(device)
    assert_same_module(Maps(model), Maps(reference), idx)
    prompt = idx[:, :5]
    ours = model.generate(prompt, 6, temperature=0.0)
    assert torch.equal(ours, reference.generate(prompt, 6, temperature=0.0))


def test_fused_loss_makes_no_logits_unless_asked(device, seed):
    model = GPT(GPTConfig(**TINY, **{**REFERENCE, "loss_impl": "triton"})).to(device)
    idx, targets = (x.to(device) for x in text_batches(1)[0])
    output = model(idx, targets)
    assert output.computed_logits is None
    torch.testing.assert_close(output.logits, model(idx).logits)
    assert model(idx, targets, return_logits=True).computed_logits is not None


def test_autocast_keeps_the_residual_stream_in_float32(device, seed):
    model = GPT(GPTConfig(**TINY, **TRITON)).to(device)
    idx, targets = (x.to(device) for x in text_batches(1)[0])
    exact = model(idx, targets).loss
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = model(idx, targets)
        x = torch.ones(1, 2, 16, device=device)
        normed, residual = model.blocks[0].ln2(x, x)
    assert (output.hidden.dtype, output.loss.dtype) == (torch.bfloat16, torch.float32)
    assert (normed.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
    assert abs(output.loss - exact) < 0.05
    output.loss.backward()
    assert model.token_emb.weight.grad.dtype == torch.float32


def test_swapping_changes_no_parameter(seed):
    model = GPT(GPTConfig(**TINY, **REFERENCE))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.use_implementations(attn_impl="sdpa", norm_impl="torch", ffn_impl="torch", loss_impl="torch") is model
    assert model.config.attn_impl == "sdpa"
    assert [b.attn.impl for b in model.blocks] == ["sdpa", "sdpa"]
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("part", PARTS)
def test_triton_on_a_cpu_says_what_to_do(part, monkeypatch):
    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
    model = GPT(GPTConfig(**TINY, **{f"{part}_impl": "triton"}))
    idx, targets = text_batches(1)[0]
    with pytest.raises(RuntimeError, match=rf'{part}_impl="triton" cannot run here: .*move them to a GPU, .*interpret'):
        model(idx, targets)


def test_auto_without_a_gpu_falls_back_and_says_why_once(caplog):
    impl.forget()
    _notice._said.clear()
    model = GPT(GPTConfig(**TINY))
    with caplog.at_level(logging.INFO, logger="fastgpt"):
        for _ in range(3):
            model(*text_batches(1)[0])
    said = [r.getMessage() for r in caplog.records if r.name == "fastgpt"]
    assert len(said) == 4
    for part, fallback in PARTS.items():
        assert any(s.startswith(f'{part}_impl="auto" uses "{fallback}": ') for s in said)


def pretend_gpu(monkeypatch):
    monkeypatch.setattr(support, "machine_why_not", lambda device: None if device.type == "meta" else "no")
    impl.forget()
    return torch.device("meta")


def test_auto_on_a_gpu_is_triton(monkeypatch):
    gpu = pretend_gpu(monkeypatch)
    with torch.device("meta"):
        model = GPT(GPTConfig(**TINY))
    rows = fastgpt.implementations(model, gpu)
    assert {(r.part, r.layers, r.used) for r in rows} == {
        ("attn", "0-1", "triton"),
        ("norm", "0-1, ln_f", "triton"),
        ("ffn", "0-1", "triton"),
        ("loss", "head", "triton"),
    }
    assert all(r.why == "fused kernels run on meta in float32" for r in rows)
    impl.forget()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "why"),
    [(torch.float64, 64, "float32, float16 and bfloat16, not float64"), (torch.float32, 257, "head_dim 257 is over")],
)
def test_auto_on_a_gpu_passes_over_what_kernels_cannot_take(monkeypatch, caplog, dtype, head_dim, why):
    gpu = pretend_gpu(monkeypatch)
    choice = impl.explain("attn", "auto", gpu, dtype, head_dim)
    assert choice.name == "sdpa"
    assert why in choice.why
    with pytest.raises(RuntimeError, match=why):
        impl.choose("attn", "triton", gpu, dtype, head_dim)
    impl.forget()


def test_auto_on_a_gpu_takes_heads_up_to_the_limit_and_no_forward_mode(monkeypatch):
    gpu = pretend_gpu(monkeypatch)
    assert impl.explain("attn", "auto", gpu, torch.bfloat16, 256).name == "triton"
    with torch.autograd.forward_ad.dual_level():
        choice = impl.explain("attn", "auto", gpu, torch.bfloat16, 256)
    assert choice == ("sdpa", "the kernels have no forward-mode derivative (jvp, jacfwd)")
    impl.forget()


def test_layers_in_a_row_are_one_span():
    assert table._spans(["0", "1", "2", "5", "ln_f", "7", "8"]) == "0-2, 5, 7-8, ln_f"


def test_auto_does_not_interpret(interpreter):
    """Inside interpret() too: a whole model in the interpreter is what nobody wants by default."""
    choice = impl.explain("attn", "auto", interpreter, torch.float32, 64)
    assert choice.name == "sdpa"
    assert "the CPU interpreter is for tests and teaching" in choice.why


def test_table_names_layer_request_and_reason(seed):
    model = GPT(GPTConfig(**{**TINY, "n_layers": 4}, **REFERENCE))
    model.blocks[2].attn.impl = "sdpa"
    rows = [r for r in fastgpt.implementations(model) if r.part == "attn"]
    assert [(r.layers, r.requested, r.used, r.why) for r in rows] == [
        ("0-1, 3", "reference", "reference", "requested"),
        ("2", "sdpa", "sdpa", "requested"),
    ]
    lines = str(fastgpt.implementations(model)).splitlines()
    assert lines[0].split() == ["part", "layers", "requested", "used", "why"]
    assert any(line.split() == ["attn", "2", "sdpa", "sdpa", "requested"] for line in lines)


def test_table_shows_what_cannot_run(monkeypatch):
    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
    assert "cannot run" in str(fastgpt.implementations(GPT(GPTConfig(**TINY, attn_impl="triton"))))


def test_table_of_a_foreign_model_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no part that fastgpt implements; .*fastgpt.patch"):
        fastgpt.implementations(torch.nn.Linear(2, 2))


def test_without_triton_only_triton_raises(monkeypatch):
    monkeypatch.setattr(support, "has_triton", lambda: False)
    impl.forget()
    idx, targets = text_batches(1)[0]
    GPT(GPTConfig(**TINY))(idx, targets)
    with pytest.raises(RuntimeError, match=r'attn_impl="triton": triton is not installed; `pip install triton`'):
        GPT(GPTConfig(**TINY, attn_impl="triton"))
    impl.forget()


def test_a_head_dim_that_no_kernel_takes_is_refused_when_made():
    with pytest.raises(ValueError, match="head_dim 264 is over the kernels' limit of 256; use more heads"):
        GPT(GPTConfig(16, 16, 1, 1, 264, attn_impl="triton"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [({"attn_impl": "flash"}, "attn_impl='flash' must be one of auto"), ({"attn": "sdpa"}, "unknown field 'attn'")],
)
def test_unknown_request_is_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        GPT(GPTConfig(**TINY)).use_implementations(**request_)


def test_unknown_implementation_set_on_a_module_is_refused_when_called():
    model = GPT(GPTConfig(**TINY))
    model.blocks[1].ffn.impl = "tritn"
    with pytest.raises(ValueError, match="ffn_impl='tritn' must be one of auto"):
        model(text_batches(1)[0][0])


def test_a_moved_model_chooses_again(device, seed):
    """The choice is made at each call: the same model object runs here and, converted, in float64."""
    model = GPT(GPTConfig(**TINY, attn_impl="triton", norm_impl="torch", ffn_impl="torch", loss_impl="torch")).to(
        device
    )
    idx = text_batches(1)[0][0].to(device)
    model(idx)
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16, not float64"):
        model.double()(idx)


def test_triton_parts_compile_whole(device, seed):
    """fullgraph, without a GPU: traced with the choice that a real call makes, checked in eager."""
    model = GPT(GPTConfig(**TINY, **TRITON)).to(device)
    idx, targets = (x.to(device) for x in text_batches(1)[0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(idx, targets)
    torch.testing.assert_close(output.loss, model(idx, targets).loss)
    output.loss.backward()
    assert model.blocks[0].attn.in_proj_weight.grad.abs().sum() > 0
