"""Model 3's published properties, at its documented size and at other lengths."""

import json
import math

import pytest
import torch

from fastgpt import GPT, GPTConfig, OneHeadLM, interop, presets
from tests.fastgpt.training import VOCAB_SIZE, tiny_trainer


def documented(seed_):
    torch.manual_seed(seed_)
    return OneHeadLM(vocab_size=50257, d_model=64, max_len=8), torch.randint(0, 50257, (5, 8))


def small(T, D=64, max_len=256, B=2):
    return OneHeadLM(vocab_size=97, d_model=D, max_len=max_len), torch.randint(0, 97, (B, T))


def test_documented_size(seed):
    model, idx = documented(seed)
    output = model(idx)
    assert output._fields == ("logits", "causal_mask", "qk_scaled", "qk_softmax")
    assert output.logits.shape == (5, 8, 50257)
    assert output.causal_mask.shape == (8, 8)
    assert output.qk_scaled.shape == output.qk_softmax.shape == (5, 8, 8)
    assert {name for name, _ in model.named_parameters()} == {
        *("token_emb.weight", "pos_emb.weight", "ln.weight", "ln.bias"),
        *("W_Q.weight", "W_K.weight", "W_V.weight", "W_0.weight"),
    }


@pytest.mark.parametrize("T", [1, 2, 8, 33, 256])
def test_softmax_rows_are_distributions_over_the_past(seed, T):
    model, idx = small(T)
    output = model(idx)
    assert output.logits.shape == (2, T, 97)
    assert torch.equal(output.causal_mask, torch.ones(T, T, dtype=torch.bool).triu(1))
    torch.testing.assert_close(output.qk_softmax.sum(-1), torch.ones(2, T))
    assert (output.qk_softmax >= 0).all()
    assert (output.qk_softmax[:, output.causal_mask] == 0).all()


def test_every_formula(seed):
    """The same model written out with loops, in float64."""
    model, idx = small(6, D=8)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    output = model(idx)
    E, P = model.token_emb.weight, model.pos_emb.weight
    for b in range(2):
        x = [E[idx[b, t]] + P[t] for t in range(6)]
        h = [(v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt() * model.ln.weight + model.ln.bias for v in x]
        for t in range(6):
            scores = torch.stack(
                [(model.W_Q.weight @ h[t]) @ (model.W_K.weight @ h[s]) / math.sqrt(8) for s in range(6)]
            )
            weights = scores[: t + 1].softmax(0)
            mixed = sum(w * (model.W_V.weight @ h[s]) for s, w in enumerate(weights))
            logits = E @ (x[t] + model.W_0.weight @ mixed)
            torch.testing.assert_close(output.qk_scaled[b, t], scores, rtol=0, atol=1e-10)
            torch.testing.assert_close(output.qk_softmax[b, t, : t + 1], weights, rtol=0, atol=1e-10)
            torch.testing.assert_close(output.logits[b, t], logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("D", [64, 256])
def test_near_uniform_at_random_weights(seed, D):
    """How near: scores have standard deviation s = D σ² (σ = 0.02), so weights over n tokens are (1 ± s) / n.

    h has D components of mean square 1. A component of q = W_Q h is a sum of D terms N(0, σ²): variance D σ². A score
    is the sum of D products of such components over √D: variance D · (D σ²)² / D. First order of softmax in small
    scores: n · weight - 1 = score - mean score of the row, of RMS s √(1 - 1/n). Entropy is ln n - s²/2.
    """
    model, idx = small(128, D, B=4)
    output = model(idx)
    s = D * 0.02**2
    assert output.qk_scaled.std().item() == pytest.approx(s, rel=0.2)
    n = 128
    last = output.qk_softmax[:, n - 1]
    stray = (n * last - 1).square().mean().sqrt().item()
    assert 0.6 * s < stray < 1.5 * s
    assert (n * last - 1).abs().max() < math.exp(2 * 5 * s) - 1  # five standard deviations, in score and in the mean
    entropy = -(last * last.log()).sum(-1)
    assert (math.log(n) - entropy < 2 * s**2).all()


def test_nothing_leaks_from_the_future(seed):
    model, idx = small(12)
    changed = idx.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 97
    before, after = model(idx), model(changed)
    assert torch.equal(before.logits[:, :7], after.logits[:, :7])
    assert torch.equal(before.qk_softmax[:, :7], after.qk_softmax[:, :7])
    assert not torch.equal(before.logits[:, 7:], after.logits[:, 7:])


def test_loss_is_close_to_ln_v(seed):
    """Logits are sums of D = 64 products of numbers near 0.02: at most a few hundredths."""
    model, idx = documented(seed)
    loss = model.loss(idx, torch.randint(0, 50257, (5, 8))).item()
    assert loss == pytest.approx(math.log(50257), rel=0.005)


def test_it_learns(seed):
    model, idx = small(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model.loss(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(p.grad is None for p in model.parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="OneHeadLM: d_model=0 must be an integer, at least 1"):
        OneHeadLM(d_model=0)
    with pytest.raises(TypeError, match="OneHeadLM: vocab_size='50' must be an integer"):
        OneHeadLM("50")


def test_the_steps_are_four_and_with_targets_the_loss_is_last(seed):
    model, idx = small(12)
    targets = idx.roll(-1, 1)
    logits, causal_mask, qk_scaled, qk_softmax = model(idx)
    assert model(idx).loss is None
    output = model(idx, targets)
    assert output._fields == ("logits", "causal_mask", "qk_scaled", "qk_softmax", "loss")
    for ours, theirs in zip(output, (logits, causal_mask, qk_scaled, qk_softmax)):
        assert torch.equal(ours, theirs)
    rows = -logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(output.loss, rows.mean())
    torch.testing.assert_close(output.loss, model.loss(idx, targets))
    targets[:, 3:] = -100
    torch.testing.assert_close(model(idx, targets).loss, rows[:, :3].mean())


def test_generation_is_the_likeliest_token_of_a_plain_forward_past_max_len_too(seed):
    model, idx = small(3, D=16, max_len=5)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    expected = idx
    for _ in range(6):
        token = model(expected[:, -5:]).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, token], dim=1)
    assert torch.equal(model.generate(idx, 6, temperature=0.0), expected)
    assert torch.equal(torch.stack(list(model.stream(idx, 6, temperature=0.0)), 1), expected[:, 3:])


def test_attention_maps_are_those_of_the_forward(seed):
    model, idx = small(7)
    model.train()
    maps = model.attention_maps(idx)
    assert list(maps) == [0]
    assert torch.equal(maps[0], model(idx).qk_softmax[:, None])
    assert model.attention_maps(idx, layers=[-1], heads=0)[0].shape == (2, 1, 7, 7)
    assert not maps[0].requires_grad
    with pytest.raises(IndexError, match="there is no head 1; the model has 1"):
        model.attention_maps(idx, heads=[1])


def test_saved_and_read_again(seed, tmp_path):
    model, idx = small(7)
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields == {"model_type": "fastgpt-one-head", "vocab_size": 97, "d_model": 64, "max_len": 256}
    for back in (OneHeadLM.from_pretrained(tmp_path), interop.open_model(tmp_path)):
        assert type(back) is OneHeadLM
        assert not back.training
        assert back.config == model.config
        assert torch.equal(back(idx).logits, model(idx).logits)
    assert OneHeadLM.from_pretrained(tmp_path, dtype=torch.float64).ln.weight.dtype == torch.float64
    assert interop.open_config(tmp_path) == model.config


def test_files_of_another_model_are_named(seed, tmp_path):
    model, _ = small(7)
    model.save_pretrained(tmp_path / "one")
    GPT(GPTConfig(97, 8, 1, 1, 16)).save_pretrained(tmp_path / "gpt")
    assert type(interop.open_model(tmp_path / "gpt", attn_impl="reference")) is GPT
    with pytest.raises(ValueError, match=r"read it with OneHeadLM\.from_pretrained"):
        GPT.from_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match=r"not a OneHeadLM; read it with GPT\.from_pretrained"):
        OneHeadLM.from_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match="attn_impl='triton' is not a setting of the OneHeadLM"):
        interop.open_model(tmp_path / "one", attn_impl="triton")
    config = tmp_path / "one" / "config.json"
    config.write_text(config.read_text().replace("97", "96"))
    with pytest.raises(ValueError, match=r"token_emb.weight has shape \(97, 64\) and the config asks for \(96, 64\)"):
        OneHeadLM.from_pretrained(tmp_path / "one")
    config.write_text(config.read_text().replace("96", "0"))
    with pytest.raises(ValueError, match=r"config.json: OneHeadLM: vocab_size=0 must be"):
        OneHeadLM.from_pretrained(tmp_path / "one")


def test_presets(seed):
    model = presets.build("one-head", vocab_size=97)
    assert type(model) is OneHeadLM
    assert model.config.to_dict() == {"vocab_size": 97, "d_model": 64, "max_len": 128}
    assert presets.build("One-Head", vocab_size=97, d_model=8, max_len=4).config.d_model == 8
    gpt = presets.build("depth-2x256x4", vocab_size=97, n_layers=1, max_len=8)
    assert gpt.config == GPTConfig.preset("depth-2x256x4", vocab_size=97, n_layers=1, max_len=8)
    assert presets.models() == [*presets.names(), "one-head"]
    with pytest.raises(ValueError, match="n_layers=2 is no setting of preset one-head, which has vocab_size, d_model"):
        presets.build("one-head", n_layers=2)
    with pytest.raises(ValueError, match=r"preset='onehead' must be one of gpt2, .*, one-head"):
        presets.build("onehead")
    with pytest.raises(ValueError, match=r"preset='one-head' is no GPT; fastgpt\.presets\.build makes it"):
        GPTConfig.preset("one-head")


def test_the_trainer_trains_it(seed, tmp_path):
    model = presets.build("one-head", vocab_size=VOCAB_SIZE, d_model=16, max_len=16)
    result = tiny_trainer(tmp_path, model=model, steps=40).fit()
    assert result.losses[-1] < 0.8 * result.losses[0]
    back = interop.open_model(result.checkpoint)
    assert torch.equal(back.W_Q.weight, model.W_Q.weight)
