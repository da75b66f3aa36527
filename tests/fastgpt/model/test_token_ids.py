"""Token ids and targets: any integer dtype is taken, by every implementation; what cannot be is named with the fix."""

import re

import pytest
import torch

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.kernels import interpret

V, T = 97, 5
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
IMPLS = ["reference", "torch", "triton"]


def gpt(impl="auto"):
    if impl == "triton":
        pytest.importorskip("triton")
    impls = {f"{part}_impl": "sdpa" if (part, impl) == ("attn", "torch") else impl for part in ("attn", "norm", "ffn")}
    return GPT(GPTConfig(V, 8, 1, 1, 16, loss_impl=impl, **impls)).eval()


MODELS = {"GPT": gpt, "OneHeadLM": lambda: OneHeadLM(V, 16, max_len=8).eval()}


@pytest.fixture(params=MODELS)
def owner(request):
    return request.param


@pytest.fixture
def model(seed, owner):
    return MODELS[owner]()


def batch():
    return torch.randint(0, V, (2, T)), torch.randint(0, V, (2, T))


@pytest.mark.parametrize("impl", IMPLS)
def test_the_loss_of_any_integer_dtype_is_that_of_int64(seed, impl):
    model, (idx, targets) = gpt(impl), batch()
    with interpret():
        expected = model(idx, targets).loss
        for dtype in INTEGERS:
            assert torch.equal(model(idx.to(dtype), targets.to(dtype)).loss, expected), dtype


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_entrance_takes_any_integer_dtype(seed, model, owner, dtype):
    idx, targets = batch()
    assert torch.equal(model(idx.to(dtype)).logits, model(idx).logits)
    assert torch.equal(model(idx.to(dtype), targets.to(dtype)).loss, model(idx, targets).loss)
    longer = model.generate(idx.to(dtype), 6, seed=1)
    assert longer.dtype == torch.int64
    assert torch.equal(longer, model.generate(idx, 6, seed=1))
    if owner == "GPT":
        assert torch.equal(model.attention_maps(idx.to(dtype))[0], model.attention_maps(idx)[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_targets_that_do_not_count(seed, impl):
    model, (idx, targets) = gpt(impl), batch()
    targets[:, 1:] = -100
    with interpret():
        loss = model(idx, targets, reduction="sum").loss
        assert torch.equal(model(idx, targets.to(torch.int8), reduction="sum").loss, loss)
        with pytest.raises(
            IndexError, match=r"GPT: target -1 is outside \[0, 97\); what does not count is -100 here: "
        ):
            model(idx, targets.masked_fill(targets == -100, -1))


@pytest.mark.parametrize(
    ("idx", "error", "message"),
    [
        ([[1, 2]], TypeError, r"idx=\[\[1, 2\]\] must be a tensor of token ids .*torch.tensor\(\[\["),
        ((1, 2), TypeError, r"idx=\(1, 2\) must be a tensor .*torch.tensor\(\[\["),
        ("To be", TypeError, r"idx='To be' must be a tensor of token ids .*tokenizer.encode\(text\)"),
        (None, TypeError, "idx=None must be a tensor of token ids .*end_of_text"),
        (3, TypeError, "idx=3 must be a tensor of token ids"),
        ({"idx": 1}, TypeError, "idx=.* must be a tensor of token ids .*got dict"),
        (torch.zeros(1, 3), TypeError, r"idx must hold integers \(token ids\), got torch.float32; convert with .long"),
        (torch.ones(1, 3, dtype=torch.bool), TypeError, "idx must hold integers .* got torch.bool"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"idx must be \(batch, tokens\), got shape \(3,\); idx\[None\]"),
        (torch.tensor(3), ValueError, r"got shape \(\); idx\[None, None\]"),
        (torch.zeros(1, 2, 3, dtype=torch.long), ValueError, r"got shape \(1, 2, 3\); drop dimensions"),
        (torch.zeros(1, 9, dtype=torch.long), ValueError, r"idx has 9 tokens and max_len is 8; pass idx\[:, -8:\]"),
        (torch.full((1, 3), V), IndexError, r"token id 97 is outside \[0, 97\)"),
        (torch.tensor([[0, -1]]), IndexError, r"token id -1 is outside \[0, 97\)"),
        (torch.tensor([[200]], dtype=torch.uint8), IndexError, r"token id 200 is outside \[0, 97\)"),
    ],
)
def test_bad_ids_are_named_at_every_entrance(model, owner, idx, error, message):
    calls = [model, lambda i: model.generate(i, 1), lambda i: model.stream(i, 1)]
    calls += [model.attention_maps] if owner == "GPT" else []
    for call in calls:
        with pytest.raises(error, match=f"^{owner}: .*{message}"):
            call(idx)


def test_numpy_is_named(model, owner):
    np = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match=rf"{owner}: idx=.*must be a tensor .*torch.from_numpy"):
        model(np.zeros((1, 3), np.int64))


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([[1]], TypeError, r"targets=\[\[1\]\] must be a tensor of token ids"),
        (torch.zeros(2, T), TypeError, "targets must hold integers .*, got torch.float32; convert with .long"),
        (torch.zeros(2, T, dtype=torch.bool), TypeError, "targets must hold integers .*, got torch.bool"),
        (
            torch.zeros(2, 4, dtype=torch.long),
            ValueError,
            r"targets have shape \(2, 4\) and idx \(2, 5\); make them equal",
        ),
        (torch.zeros(2, T, V), TypeError, "targets must hold integers"),
        (torch.full((2, T), V), IndexError, r"target 97 is outside \[0, 97\)"),
        (torch.full((2, T), -1), IndexError, r"target -1 .*targets.masked_fill\(targets == -1, -100\)"),
    ],
)
def test_bad_targets_are_named(model, owner, targets, error, message):
    with pytest.raises(error, match=f"^{owner}: .*{message}"):
        model(batch()[0], targets)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_no_tokens_and_no_sequences_are_what_torch_makes_of_them(seed, impl, shape):
    model, none = gpt(impl), torch.zeros(shape, dtype=torch.long)
    with interpret():
        outputs = {reduction: model(none, none, reduction=reduction) for reduction in ("mean", "sum", "none")}
    assert outputs["mean"].logits.shape == (*shape, V)
    assert outputs["mean"].loss.isnan()
    assert outputs["sum"].loss == 0
    assert outputs["none"].loss.shape == shape


def test_an_unknown_reduction_is_named(seed):
    with pytest.raises(ValueError, match=re.escape("GPT: reduction='avg' must be one of mean, sum, none")):
        gpt()(*batch(), reduction="avg")


def test_values_are_not_looked_at_where_that_would_wait(seed):
    with torch.device("meta"):
        model = gpt()
        assert model(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)).loss.is_meta
