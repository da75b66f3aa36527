"""Over-smoothing's measures: constructed representations whose values are known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastgpt
from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.study import smoothing
from fastgpt.study.measures import attention_entropy, dirichlet_energy
from fastgpt.study.smoothing_layers import residual_streams, smoothing_by_layer


def orthonormal(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64))[0][:rows]


def test_equal_tokens():
    found = smoothing(torch.randn(3, 1, 8).expand(3, 5, 8))
    assert found.cosine == pytest.approx(1)
    assert found.centred_cosine == 0
    assert (found.effective_rank, found.top_share) == pytest.approx((1, 1))


def test_what_rounding_leaves_of_equal_tokens_is_no_direction():
    for count in range(3, 40):
        assert smoothing(torch.full((1, count, 8), 0.1, dtype=torch.float64)).centred_cosine == 0


def test_orthogonal_tokens():
    """Centred, T orthonormal tokens have cosine -1 / (T - 1)."""
    found = smoothing(7.0 * orthonormal(5, 8)[None])
    assert found.cosine == pytest.approx(0, abs=1e-12)
    assert found.centred_cosine == pytest.approx(-1 / 4)
    assert (found.effective_rank, found.top_share) == pytest.approx((5, 1 / 5))


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_rank_k(seed, rank):
    """k equal singular values: effective rank k, top share 1 / k."""
    hidden = orthonormal(rank, 12).mT @ orthonormal(rank, 20)
    found = smoothing(hidden[None])
    assert (found.effective_rank, found.top_share) == pytest.approx((rank, 1 / rank))


def test_cosines_are_means_over_pairs_of_different_tokens(seed):
    hidden = torch.randn(2, 7, 5, dtype=torch.float64) + 3.0
    for name, x in (("cosine", hidden), ("centred_cosine", hidden - hidden.mean(1, keepdim=True))):
        pairs = [
            F.cosine_similarity(x[b, i], x[b, j], dim=0) for b in range(2) for i in range(7) for j in range(7) if i != j
        ]
        assert getattr(smoothing(hidden), name) == pytest.approx(float(torch.stack(pairs).mean()))


def test_a_token_of_zeros_counts_as_zero():
    hidden = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    assert smoothing(hidden).cosine == pytest.approx(1 / 3)


def test_one_token_has_no_pair_and_zeros_no_direction():
    one = smoothing(torch.randn(1, 1, 4))
    assert math.isnan(one.cosine)
    assert math.isnan(one.centred_cosine)
    assert (one.effective_rank, one.top_share) == pytest.approx((1, 1))
    assert math.isnan(smoothing(torch.zeros(1, 3, 4)).effective_rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_strides(seed, dtype):
    wide = torch.randn(8, 2, 12).to(dtype)
    view = wide.transpose(0, 1)[..., ::2]
    assert smoothing(view) == pytest.approx(smoothing(view.contiguous().double()))
    assert smoothing(view.requires_grad_()) == pytest.approx(smoothing(view.double()))


@pytest.mark.parametrize(
    ("hidden", "error", "match"),
    [
        ([1.0], SettingTypeError, "hidden='list' must be a floating-point tensor"),
        (torch.ones(1, 2, 3, dtype=torch.int64), SettingTypeError, "must be a floating-point tensor"),
        (torch.ones(2, 3), SettingError, r"hidden=\(2, 3\) must be \(B, T, D\)"),
        (torch.ones(2, 0, 3), SettingError, "none of them 0"),
        (torch.full((1, 2, 3), math.nan), SettingError, "must hold finite numbers"),
    ],
)
def test_what_is_no_representation(hidden, error, match):
    with pytest.raises(error, match=match):
        smoothing(hidden)


def test_dirichlet_energy_is_its_formula(seed):
    a, x = torch.rand(2, 3, 5, 5, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            expected += 0.5 * a[:, :, i, j] * (x[:, i] - x[:, j]).square().sum(-1)[:, None]
    expected /= x.square().sum((1, 2))[:, None]
    torch.testing.assert_close(dirichlet_energy(a, x), expected.mean(0))
    assert float(dirichlet_energy(a, x[:, :1].expand(2, 5, 4)).abs().max()) < 1e-12


def test_entropy_of_even_and_of_sharp_attention():
    even = torch.full((1, 1, 4, 4), 0.25)
    sharp = torch.eye(4)[None, None]
    assert attention_entropy(torch.cat([even, sharp], 1)).tolist() == pytest.approx([math.log(4), 0])


def test_sizes_that_do_not_fit():
    with pytest.raises(SettingError, match="does not fit hidden's"):
        dirichlet_energy(torch.ones(1, 1, 3, 3), torch.ones(1, 4, 2))


def test_the_residual_stream_by_layer(seed):
    """Behind block i stands embeddings + all that i blocks have added; the last one, normalised, is `hidden`."""
    config = fastgpt.GPTConfig(vocab_size=31, max_len=9, n_layers=3, n_heads=2, d_model=16, dropout=0.5)
    model = fastgpt.GPT(config).train()
    idx = torch.randint(31, (2, 9))
    streams = residual_streams(model, idx)
    assert model.training
    model.eval()
    x = model.token_emb(idx) + model.pos_emb.weight[:9]
    torch.testing.assert_close(streams[0], x)
    for block, stream in zip(model.blocks, streams[1:], strict=True):
        h = F.layer_norm(x, (16,), block.ln1.weight, block.ln1.bias)
        x = x + block.attn(h)
        x = x + block.ffn(F.layer_norm(x, (16,), block.ln2.weight, block.ln2.bias))
        torch.testing.assert_close(stream, x)
    torch.testing.assert_close(F.layer_norm(x, (16,), model.ln_f.weight, model.ln_f.bias), model(idx).hidden)


def test_measures_by_layer(seed):
    config = fastgpt.GPTConfig(vocab_size=31, max_len=9, n_layers=2, n_heads=2, d_model=16)
    model = fastgpt.GPT(config)
    idx = torch.randint(31, (2, 9))
    found = smoothing_by_layer(model, idx)
    streams, maps = residual_streams(model, idx), model.attention_maps(idx)
    assert [one.layer for one in found] == [0, 1, 2]
    assert [one.effective_rank for one in found] == [smoothing(stream).effective_rank for stream in streams]
    assert found[1].entropy == attention_entropy(maps[1]).tolist()
    assert found[1].energy == dirichlet_energy(maps[1], streams[1]).tolist()
    assert found[2].entropy is None
