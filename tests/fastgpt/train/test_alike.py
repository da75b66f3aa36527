"""All ranks of a job have the same data and settings, or are told which has not."""

from __future__ import annotations

import pytest

from fastgpt.train import run_folder

from ..training import tiny_trainer

RECORD = {"lr": 0.1, "data": ["a.txt"], "train_sha256": "a" * 64, "n_tokens": 7, "name": "a"}


def test_ranks_that_are_alike():
    run_folder.check_alike([RECORD])
    run_folder.check_alike([RECORD, RECORD | {"name": "b"}, RECORD | {"data": ["other/a.txt"]}])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"lr": 0.2}, r"rank 2 has lr 0\.2 \(rank 0: 0\.1\); give every rank"),
        ({"train_sha256": "b" * 64}, r"rank 2 has other training data \(sha256 bbbbbbbb, rank 0's aaaaaaaa\); give"),
    ],
)
def test_one_that_differs_is_named(other, words):
    with pytest.raises(ValueError, match=words):
        run_folder.check_alike([RECORD, RECORD, RECORD | other])


def test_fit_asks_before_anything_is_written(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, name="a")
    told = trainer._record()
    monkeypatch.setattr(
        type(trainer.world), "objects",
        lambda world, mine: [mine, told | {"lr": 7.0}] if isinstance(mine, dict) else [mine],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"rank 1 has lr 7\.0"):
        trainer.fit()
    assert not (tmp_path / "a").exists()
