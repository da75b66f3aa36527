"""Generation: with and without cache, sampling settings, seeds, batches, streaming, bad input."""

import itertools

import pytest
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.model import sampling
from fastgpt.model.gpt import KVCache
from fastgpt.model.sampling import SamplingConfig, sample

SHAPE = {"vocab_size": 31, "max_len": 20, "n_layers": 2, "n_heads": 4, "d_model": 32}


@pytest.fixture
def model(seed):
    """A float64 model with decided opinions: ties would hide differences."""
    model = GPT(GPTConfig(**SHAPE, n_kv_heads=2, attn_impl="sdpa", dropout=0.3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3)
    return model


def prompt(B=3, T=5):
    return torch.randint(0, 31, (B, T))


@pytest.mark.parametrize("attn_impl", ["sdpa", "reference"])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"seed": 3}, {"seed": 3, "top_k": 5, "top_p": 0.9}])
def test_cache_changes_nothing(model, sampling, attn_impl):
    """Past max_len too, where the window slides: 5 + 30 tokens with max_len 20."""
    model.use_implementations(attn_impl=attn_impl)
    idx = prompt()
    cached = model.generate(idx, 30, **sampling)
    assert cached.shape == (3, 35)
    assert torch.equal(cached, model.generate(idx, 30, use_cache=False, **sampling))


@pytest.mark.parametrize("attn_impl", ["sdpa", "reference"])
@pytest.mark.parametrize("pieces", [(17,), (1,) * 17, (5, 1, 1, 10), (16, 1)])
def test_cached_hidden_states_are_those_of_one_pass(model, attn_impl, pieces):
    model.use_implementations(attn_impl=attn_impl).eval()
    idx = prompt(T=17)
    cache = KVCache(model, 17)
    with torch.no_grad():
        parts = [model.hidden_states(piece, cache) for piece in idx.split(pieces, dim=1)]
        whole = model.hidden_states(idx)
    assert cache.length == 17
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_the_likeliest_token_of_a_plain_forward(model, use_cache):
    """Of the last max_len tokens, where there are more: 5 + 20 of them with max_len 20."""
    model.eval()
    idx = prompt()
    for _ in range(20):
        token = model(idx[:, -20:]).logits[:, -1].argmax(-1, keepdim=True)
        idx = torch.cat([idx, token], dim=1)
    assert torch.equal(model.generate(idx[:, :5], 20, temperature=0.0, use_cache=use_cache), idx)


def test_the_model_sees_the_last_tokens(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model, "_next_logits", lambda idx, cache: seen.append(idx) or torch.randn(3, 31))
    whole = model.generate(prompt(), 30, use_cache=False)
    for t, idx in enumerate(seen, start=5):
        assert torch.equal(idx, whole[:, max(0, t - 20) : t])


def test_a_prompt_longer_than_the_context_is_refused(model):
    with pytest.raises(ValueError, match=r"idx has 21 tokens and max_len is 20"):
        model.generate(prompt(T=21), 1)


def test_a_row_of_a_batch_is_what_it_is_alone(model):
    idx = prompt()
    together = model.generate(idx, 8, temperature=0.0)
    for row in range(3):
        assert torch.equal(model.generate(idx[row : row + 1], 8, temperature=0.0)[0], together[row])


def test_seed_and_generator(model):
    idx = prompt()
    assert torch.equal(model.generate(idx, 9, seed=1), model.generate(idx, 9, seed=1))
    assert not torch.equal(model.generate(idx, 9, seed=1), model.generate(idx, 9, seed=2))
    ours = model.generate(idx, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours, model.generate(idx, 9, seed=1))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model.generate(idx, 3, seed=1)
    assert torch.equal(before, torch.get_rng_state()), "a seeded call must leave torch's own generator alone"


def test_stream_yields_the_tokens_of_generate_one_by_one(model):
    idx = prompt()
    stream = model.stream(idx, 7, seed=4)
    first = list(itertools.islice(stream, 2))
    assert first[0].shape == (3,)
    new = torch.stack(first + list(stream), dim=1)
    assert torch.equal(torch.cat([idx, new], dim=1), model.generate(idx, 7, seed=4))


def test_generation_leaves_the_training_mode_and_no_graph(model):
    model.train()
    stream = model.stream(prompt(), 3)
    token = next(stream)
    assert model.training
    assert not token.requires_grad
    model.eval()
    model.generate(prompt(), 2)
    assert not model.training


def test_dropout_is_off(model):
    model.train()
    idx = prompt()
    assert torch.equal(model.generate(idx, 9, temperature=0.0), model.eval().generate(idx, 9, temperature=0.0))


def test_eos_stops_a_row_and_then_everything(model):
    idx = prompt()
    free = model.generate(idx, 12, seed=2)
    eos = int(free[0, 7])
    stopped = model.generate(idx, 12, seed=2, eos=eos)
    for row in range(3):
        new, old = stopped[row, 5:].tolist(), free[row, 5:].tolist()
        end = old.index(eos) if eos in old else None
        assert new == (old[: len(new)] if end is None else (old[:end] + [eos] * len(new))[: len(new)])
    alone = model.generate(idx[:1], 12, temperature=0.0, eos=int(model.generate(idx[:1], 1, temperature=0.0)[0, -1]))
    assert alone.shape[1] == 6


def test_zero_new_tokens(model):
    idx = prompt()
    assert torch.equal(model.generate(idx, 0), idx)


LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -9.0]])


def frequencies(n=20000, **settings):
    draws = sample(LOGITS.expand(n, -1), SamplingConfig(**settings), torch.Generator().manual_seed(0))
    return torch.bincount(draws, minlength=5) / n


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 5),
        ({"top_k": 2}, 2),
        ({"top_k": 99}, 5),
        ({"top_p": 0.6}, 1),  # the likeliest has 0.644
        ({"top_p": 0.65}, 2),
        ({"top_p": 0.9}, 3),  # 0.644 + 0.237 = 0.881 is short of it
        ({"top_k": 3, "top_p": 0.9}, 2),  # of the three kept: 0.665 + 0.245 = 0.910
        ({"top_p": 1.0}, 5),
        ({"top_p": 5e-324}, 1),  # 0 in float32
    ],
)
def test_top_k_and_top_p_keep_the_likeliest_with_their_ratios(settings, kept):
    expected = torch.zeros(5)
    expected[:kept] = LOGITS[0, :kept].softmax(-1)
    assert (frequencies(**settings) - expected).abs().max() < 0.012


def test_temperature_scales_the_logits():
    assert (frequencies(temperature=2.0) - (LOGITS[0] / 2).softmax(-1)).abs().max() < 0.012
    assert frequencies(temperature=1e-4)[0] == 1
    assert frequencies(temperature=0.0)[0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be a number, at least 0; 0 takes the likeliest token"),
        ({"temperature": float("nan")}, "temperature=nan must be a number"),
        ({"temperature": float("inf")}, "temperature=inf must be a number"),
        ({"temperature": "0.8"}, "temperature='0.8' must be a number"),
        ({"temperature": None}, "temperature=None must be a number"),
        ({"top_k": 0}, "top_k=0 must be an integer, at least 1; leave it out to draw from all tokens"),
        ({"top_k": 2.0}, "top_k=2.0 must be an integer"),
        ({"top_k": 32}, "top_k=32 must be at most 31, the model's vocabulary"),
        ({"top_p": 0.0}, "top_p=0.0 must be a number, above 0 and at most 1; leave it out to draw from all tokens"),
        ({"top_p": 1.5}, "top_p=1.5 must be a number"),
        ({"top_p": float("nan")}, "top_p=nan must be a number"),
        ({"seed": 1, "generator": torch.Generator()}, "seed or generator, not both"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be an integer, at least -9223372036854775808"),
        ({"seed": 1.0}, "seed=1.0 must be an integer"),
        ({"generator": 3}, "generator=3 must be a torch.Generator; for a number use seed"),
        ({"eos": 31}, r"eos=31 must be a token id in \[0, 31\)"),
        ({"eos": [3, -1]}, "eos=-1 must be an integer, at least 0"),
        ({"eos": "end"}, "eos='end' must be an integer"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 must be an integer, at least 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 must be an integer"),
        ({"max_new_tokens": "3"}, "max_new_tokens='3' must be an integer"),
        ({"use_cache": "no"}, "use_cache='no' must be True or False"),
        ({"topk": 3}, "there is no setting 'topk'; did you mean 'top_k'"),
        ({"beams": 3}, "there is no setting 'beams'; there are temperature, top_k"),
        ({"idx": torch.zeros(1, 0, dtype=torch.long)}, "idx has no tokens"),
        ({"idx": torch.full((1, 2), 31)}, r"token id 31 is outside"),
    ],
)
def test_bad_settings_are_named_at_the_call(model, settings, message):
    settings = {"idx": prompt(), "max_new_tokens": 1, **settings}
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        model.stream(**settings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1e-40}, [0, 1, 0, 0]),
        ({"temperature": 1e-300}, [0, 1, 0, 0]),
        ({"temperature": 1e-8}, [0, 1, 0, 0]),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 1e30}, [1 / 3, 1 / 3, 1 / 3, 0]),
        ({"top_p": 1e-40}, [0, 1, 0, 0]),
        ({"top_p": 1.0, "temperature": 1e30}, [1 / 3, 1 / 3, 1 / 3, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 4, "top_p": 0.999999, "temperature": 1e30}, [1 / 3, 1 / 3, 1 / 3, 0]),
    ],
)
def test_settings_at_their_edges(dtype, settings, expected):
    logits = torch.tensor([[-3e4, 3e4, -float("inf"), 0.0]], dtype=dtype)[:, [3, 1, 0, 2]].expand(6000, -1)
    draws = sample(logits, SamplingConfig(**settings), torch.Generator().manual_seed(0))
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert (shares - torch.tensor(expected, dtype=shares.dtype)).abs().max() < 0.03


def test_ties_are_drawn_evenly_at_any_temperature():
    logits = torch.tensor([[2.0, 1.0, 2.0]]).expand(4000, -1)
    for temperature in (1e-40, 1e-8):
        draws = sample(logits, SamplingConfig(temperature=temperature), torch.Generator().manual_seed(0))
        shares = torch.bincount(draws, minlength=3) / len(draws)
        assert shares[1] == 0
        assert abs(shares[0] - 0.5) < 0.04


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused_by_their_rows(settings, bad):
    logits = torch.zeros(4, 5)
    logits[1, 2] = bad
    logits[3] = -float("inf")
    with pytest.raises(FloatingPointError, match=r"logits of rows \[1, 3\] hold NaN or infinity"):
        sample(logits, SamplingConfig(**settings))


def test_a_model_whose_weights_are_nan_is_refused(model):
    with torch.no_grad():
        model.blocks[0].ffn[0].weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"rows \[0, 1, 2\] hold NaN"):
        model.generate(prompt(), 2)


def test_on_a_gpu_the_same_is_found_one_token_late(model, monkeypatch):
    monkeypatch.setattr(sampling, "_looking_waits", lambda device: True)
    idx = prompt()
    expected = model.generate(idx, 3, seed=1)
    assert torch.equal(model.generate(idx, 3, seed=1), expected)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    stream = model.stream(idx, 3)
    assert next(stream).shape == (3,)
    with pytest.raises(FloatingPointError, match="hold NaN"):
        next(stream)
    with pytest.raises(FloatingPointError, match="hold NaN"):
        model.generate(idx, 1)


@pytest.mark.parametrize("seed_", [-1, -(2**63), 2**63, 2**64 - 1, 0])
def test_every_seed_that_torch_takes(model, seed_):
    idx = prompt()
    assert torch.equal(model.generate(idx, 4, seed=seed_), model.generate(idx, 4, seed=seed_))


def test_several_ends(model):
    idx = prompt()
    free = model.generate(idx, 12, seed=2)
    ends = (int(free[0, 6]), int(free[1, 9]))
    stopped = model.generate(idx, 12, seed=2, eos=list(ends))
    for row in range(3):
        new, old = stopped[row, 5:].tolist(), free[row, 5:].tolist()
        end = next((i for i, token in enumerate(old) if token in ends), len(old))
        assert new == (old[: end + 1] + [new[min(end, len(new) - 1)]] * len(new))[: len(new)]
    assert torch.equal(model.generate(idx, 12, seed=2, eos=[ends[0]]), model.generate(idx, 12, seed=2, eos=ends[0]))


def test_shapes_alone(model):
    with torch.device("meta"):
        assert model.to("meta").generate(torch.zeros(2, 3, dtype=torch.long), 4).shape == (2, 7)


def test_no_rows(model):
    assert model.generate(torch.zeros(0, 3, dtype=torch.long), 2, eos=3).shape[0] == 0
    assert model.generate(torch.zeros(0, 3, dtype=torch.long), 2).shape == (0, 5)


def kept(logits, top_k=None, top_p=None):
    """The probabilities that the settings mean, by their definition; logits (V,)."""
    if top_k is not None:
        logits = torch.where(logits < logits.sort(descending=True).values[top_k - 1], -torch.inf, logits)
    p = logits.softmax(-1)
    if top_p is not None:
        order = p.argsort(descending=True)
        first = int((p[order].cumsum(-1) < top_p).sum()) + 1
        p[order[first:]] = 0
    return p / p.sum()


@pytest.mark.parametrize("waits", [False, True], ids=["cpu", "as on a gpu"])
@pytest.mark.parametrize("top_k", [None, 1, 7, 49, 50])
@pytest.mark.parametrize("top_p", [None, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("ties", [False, True])
def test_draws_have_the_distribution_that_the_settings_mean(monkeypatch, top_k, top_p, ties, waits):
    """A chi-square test, five standard deviations wide; nothing is drawn that is not kept."""
    monkeypatch.setattr(sampling, "_looking_waits", lambda device: waits)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    if ties:
        logits[logits.argsort(descending=True)[4:12]] = logits.sort(descending=True).values[6]
        top_p = top_p and 0.999  # which of ties a mass cuts away is open
    expected = kept(logits, top_k, top_p)
    n = 4000
    config = SamplingConfig(top_k=top_k, top_p=top_p)
    draws = sample(logits.expand(n, -1), config, torch.Generator().manual_seed(2))
    counts = torch.bincount(draws, minlength=50).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi2 = ((counts - n * expected)[possible] ** 2 / (n * expected[possible])).sum()
    freedom = max(int(possible.sum()) - 1, 1)
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 5, "top_p": 0.5}])
def test_the_first_and_last_of_all_random_numbers_draw_a_token_that_is_possible(monkeypatch, settings):
    logits = torch.tensor([[-torch.inf, 0.0, -1.0, 1.0, 3.0, -2.0, -torch.inf, -torch.inf]])
    for number in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda shape, number=number, **options: torch.full(shape, number).double())
        for scale in (1.0, 0.3, 1e-4):
            assert 1 <= int(sample(logits * scale, SamplingConfig(**settings))) <= 5


def test_generate_changes_modes_once_and_a_stream_for_every_token(model, monkeypatch):
    model.train()
    changes = []
    monkeypatch.setattr(model, "eval", lambda: changes.append(1) or type(model).eval(model))
    model.generate(prompt(), 6)
    assert len(changes) == 1
    list(model.stream(prompt(), 6))
    assert len(changes) == 7
    assert model.training


def test_what_reaches_top_p_exactly_is_enough():
    config = SamplingConfig(top_p=0.5)
    assert len(sample(torch.zeros(500, 2), config).unique()) == 1  # 0.5 and 0.5: the first of them is all


def test_the_least_of_what_top_p_keeps_is_drawn(seed):
    """Also one that is little above (1 - top_p) / V, below which none is needed."""
    probabilities = torch.tensor([0.4, 0.2, 0.15, 0.15, 0.1])  # 0.6 is short of 0.62: the first of 0.15 counts
    drawn = sample(probabilities.log().expand(2000, 5), SamplingConfig(top_p=0.62)).bincount(minlength=5) / 2000
    shares = [drawn[0], drawn[1], drawn[2] + drawn[3], drawn[4]]
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.4, 0.2, 0.15, 0.0]) / 0.75, rtol=0, atol=0.05)
