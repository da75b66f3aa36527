"""The loss over a text: whatever the batch size; and each module stays in its mode."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.train.trainer import evaluate

from ..training import tiny_data, tiny_model, tiny_trainer


def test_evaluation_does_not_depend_on_the_batch_size():
    model, data, cpu = tiny_model(), tiny_data(205), torch.device("cpu")
    losses = [evaluate(model, data, batch_size=b, seq_len=16, device=cpu).loss for b in (1, 3, 50)]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "evaluate: batch_size=0 must be an integer, at least 1"),
        ({"max_batches": 0}, "evaluate: max_batches=0 must be an integer, at least 1"),
        ({"seq_len": 0}, "evaluate: seq_len=0 must be an integer, at least 1"),
        ({"seq_len": 17}, "evaluate: seq_len=17 exceeds the model's max_len=16"),
        ({"data": tiny_data(1)}, "evaluate: data='tiny' has 1 tokens; at least 2 are needed"),
        ({"data": "a.txt"}, "evaluate: data='a.txt' must be a TokenDataset"),
    ],
)
def test_evaluate_refuses(options, message):
    arguments = {"data": tiny_data(50), "batch_size": 2, "device": torch.device("cpu")} | options
    with pytest.raises((SettingError, SettingTypeError), match=message):
        evaluate(tiny_model(), **arguments)


def test_evaluate_leaves_each_module_its_mode():
    model, arguments = tiny_model().train(), {"batch_size": 2, "device": torch.device("cpu")}
    model.blocks[0].eval()  # frozen by its owner
    before = [module.training for module in model.modules()]
    evaluate(model, tiny_data(50), **arguments)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(IndexError):
        evaluate(model, dataclasses.replace(tiny_data(50), shards=(np.full(50, 4999),)), **arguments)
    assert [module.training for module in model.modules()] == before


def test_evaluate_of_a_model_that_gives_nan():
    model = tiny_model()
    with torch.no_grad():
        model.ln_f.weight[0] = math.nan
    found = evaluate(model, tiny_data(50), batch_size=2, device=torch.device("cpu"))
    assert math.isnan(found.loss)
    assert not found.is_finite


def test_a_batch_of_the_trainers_is_of_an_updates_sequences(tmp_path):
    """So that a validation is the same, however micro-batches and ranks share an update."""
    whole = tiny_trainer(tmp_path, name="a", batch_size=4, eval_batches=2).validate()
    parts = tiny_trainer(tmp_path, name="b", batch_size=1, grad_accum=4, eval_batches=2).validate()
    assert parts.tokens == whole.tokens
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)
