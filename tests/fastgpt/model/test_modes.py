"""Whatever needs eval mode leaves every module in the mode that its owner gave it."""

import itertools

import pytest
import torch
from torch import nn

from fastgpt import GPT, GPTConfig
from fastgpt.model.modes import evaluating
from tests.fastgpt.training import tiny_model, tiny_trainer

IDX = torch.ones(1, 2, dtype=torch.long)


@pytest.fixture
def model():
    """Training, but for a frozen block and, inside of an eval block, one module that trains."""
    model = GPT(GPTConfig(vocab_size=16, max_len=8, n_layers=3, n_heads=2, d_model=8, dropout=0.5)).train()
    model.blocks[0].eval()
    model.blocks[2].eval()
    model.blocks[2].ffn[0].train()
    return model


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def boom(*args):
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.generate(IDX, 2),
        lambda m: m.generate(IDX, 2, use_cache=False),
        lambda m: m.generate(IDX.repeat(1, 3), 4),
        lambda m: list(itertools.islice(m.stream(IDX, 5), 2)),
        lambda m: m.attention_maps(IDX),
    ],
    ids=["generate", "uncached", "sliding", "stream left early", "attention_maps"],
)
def test_modes_are_what_they_were(model, use):
    before = modes(model)
    use(model)
    assert modes(model) == before
    model.blocks[1].ffn.register_forward_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        use(model)
    assert modes(model) == before


def test_between_two_tokens_of_a_stream_the_modes_are_the_owners(model):
    before = modes(model)
    stream = model.stream(IDX, 4)
    for _ in range(2):
        next(stream)
        assert modes(model) == before
    model.eval()  # in the middle: it stays so
    next(stream)
    assert not any(modes(model).values())
    stream.close()
    assert not any(modes(model).values())


def test_evaluating_is_eval_inside_and_undone_after_an_exception(model):
    before = modes(model)

    def look_around():
        with evaluating(model):
            assert not any(modes(model).values())
            with evaluating(model):
                pass
            assert not any(modes(model).values())
            boom()

    with pytest.raises(RuntimeError, match="boom"):
        look_around()
    assert modes(model) == before


def test_a_trainer_leaves_the_parts_of_a_training_model_as_they_are(tmp_path):
    model = tiny_model()
    model.blocks[0].eval()
    before = modes(model)
    tiny_trainer(tmp_path, model=model, steps=2, eval_every=1).fit()
    assert modes(model) == before
    model.eval()
    tiny_trainer(tmp_path, model=model, steps=1, name="again").fit()
    assert all(modes(model).values())


class Merging(nn.Linear):
    """As LoRA layers do: eval() folds the adapter into the weight, train() takes it out again."""

    merged = False

    def train(self, mode=True):
        if mode == self.merged:
            self.weight.data += -1 if mode else 1
            self.merged = not mode
        return super().train(mode)


def test_methods_that_do_more_than_set_the_flag_are_called():
    model = nn.Sequential(Merging(2, 2), nn.Sequential(Merging(2, 2)).eval()).train()
    model[1].eval()
    weights = [p.clone() for p in model.parameters()]
    with evaluating(model):
        assert all(m.merged for m in model.modules() if isinstance(m, Merging))
    assert (model[0].merged, model[1][0].merged) == (False, True)
    for parameter, before in zip(model.parameters(), weights):
        assert torch.allclose(parameter, before)


class Stubborn(nn.Linear):
    """Knows only eval mode by its method, as frozen BatchNorms do, whatever its flag was set to."""

    def train(self, mode=True):
        return super().train(False)


def test_a_flag_that_the_method_would_not_set_is_set_back():
    model = nn.Sequential(Stubborn(2, 2))
    model[0].training = True
    with evaluating(model):
        assert not model[0].training
    assert model[0].training
