"""Model 3's published properties, at its documented size and at other lengths."""

import math

import pytest
import torch

from fastgpt import OneHeadLM


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


@pytest.mark.parametrize(
    ("idx", "error", "message"),
    [
        (torch.zeros(1, 9, dtype=torch.long), ValueError, "9 tokens and max_len is 8; make it with max_len=9"),
        (torch.full((1, 2), 50), IndexError, r"token id 50 is outside \[0, 50\)"),
        (torch.zeros(1, 2), TypeError, "token ids must be int64 or int32, got torch.float32"),
        (torch.zeros(1, 2, dtype=torch.uint8), TypeError, "token ids must be int64 or int32, got torch.uint8"),
        (torch.full((1, 2), -1), IndexError, r"token id -1 is outside \[0, 50\)"),
    ],
)
def test_bad_input_is_named(idx, error, message):
    with pytest.raises(error, match=message):
        OneHeadLM(50, 16, max_len=8)(idx)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="d_model must be at least 1, got 0"):
        OneHeadLM(d_model=0)
