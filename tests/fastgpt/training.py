"""A tiny model, a tiny corpus and a tiny run that the training tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.data import TokenDataset
from fastgpt.data.tokenizer import BUNDLED
from fastgpt.train.trainer import TrainConfig, Trainer

VOCAB_SIZE = 4096  # the bundled small tokenizer's


def tiny_model(seed: int = 0, **options) -> GPT:
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB_SIZE, "max_len": 16, "n_layers": 1, "n_heads": 2, "d_model": 16, "dropout": 0.1}
    return GPT(GPTConfig(**(shape | options)))


def tiny_data(n: int = 700, seed: int = 0) -> TokenDataset:
    ids = np.random.default_rng(seed).integers(0, 50, n).astype(np.uint16)
    return TokenDataset((ids,), np.zeros(1, np.int64), VOCAB_SIZE, BUNDLED["shakespeare"][1], "tiny")


def tiny_trainer(folder: Path, *, model: GPT | None = None, tokenizer=None, val: bool = True, **options) -> Trainer:
    settings = {
        "runs_dir": str(folder), "steps": 8, "batch_size": 3, "eval_every": 0, "save_every": 0, "lr": 1e-2,
        "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    return Trainer(
        model or tiny_model(), tiny_data(), TrainConfig(**(settings | options)),
        val_data=tiny_data(200, seed=1) if val else None, tokenizer=tokenizer, show_progress=False,
    )  # fmt: skip
