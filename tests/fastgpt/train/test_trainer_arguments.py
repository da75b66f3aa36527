"""What a Trainer cannot be made of is refused before anything is done, by the name of the argument."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.train.trainer import TrainConfig, Trainer

from ..training import tiny_data, tiny_model, tiny_trainer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt2"}, r"Trainer: model='gpt2' must be a torch\.nn\.Module"),
        (
            {"train_data": "data.txt"},
            r"Trainer: train_data='data\.txt' must be a TokenDataset: make one with prepare\(",
        ),
        ({"train_data": [1, 2, 3]}, r"Trainer: train_data=\[1, 2, 3\] must be a TokenDataset.*TokenDataset\.open\("),
        ({"train_data": None}, r"Trainer: train_data=None must be a TokenDataset"),
        ({"val_data": "data.txt"}, r"Trainer: val_data='data\.txt' must be a TokenDataset"),
        ({"config": "settings.json"}, r"Trainer: config='settings\.json' must be a TrainConfig"),
        ({"config": {"steps": 3}}, r"Trainer: config=\{'steps': 3\} must be a TrainConfig"),
        ({"settings": {"at": Path("x")}}, r"Trainer: settings=.* must be what JSON holds.*PosixPath is not JSON"),
        ({"settings": {"at": float("nan")}}, r"Trainer: settings=.* must be what JSON holds"),
        ({"settings": "settings.json"}, r"Trainer: settings='settings\.json' must be a dict, or None"),
        ({"tokenizer": "gpt2"}, r"Trainer: tokenizer='gpt2' must be a Tokenizer"),
        ({"config": TrainConfig(device="gpu")}, r"Trainer: device='gpu' must be one of auto, cpu"),
    ],
)
def test_arguments_that_are_none(options, message):
    arguments = {"model": tiny_model(), "train_data": tiny_data(), "config": TrainConfig(device="cpu")} | options
    with pytest.raises((SettingError, SettingTypeError), match=message):
        Trainer(**arguments)


def test_data_that_cannot_be_validated_with(tmp_path):
    with pytest.raises(SettingError, match=r"Trainer: val_data='tiny' has 1 tokens; at least 2 are needed"):
        Trainer(tiny_model(), tiny_data(), TrainConfig(device="cpu"), val_data=tiny_data(1))
    other = dataclasses.replace(tiny_data(), tokenizer_sha256="other")
    with pytest.raises(
        SettingError, match=r"val_data='tiny' was made with another tokenizer \(other\.\.\.\) than train"
    ):
        Trainer(tiny_model(), tiny_data(), TrainConfig(device="cpu"), val_data=other)


def test_data_that_does_not_fit_the_model(tmp_path):
    with pytest.raises(ValueError, match=r"ids up to 4095, the model's vocab_size is 100; build .*vocab_size=4096"):
        tiny_trainer(tmp_path, model=tiny_model(vocab_size=100))
    with pytest.raises(ValueError, match=r"seq_len=17 exceeds the model's max_len=16"):
        tiny_trainer(tmp_path, seq_len=17)


def test_a_model_that_cannot_be_saved_is_refused_before_training(tmp_path):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()
            self.config = self.inner.config

        def forward(self, idx, targets):
            return self.inner(idx, targets)

    trainer = tiny_trainer(tmp_path, model=Bare(), name="a")
    trainer.train_step()
    with pytest.raises(SettingTypeError, match=r"Trainer: model='Bare' has no method save_pretrained"):
        trainer.fit()
    assert not (tmp_path / "a").exists()
