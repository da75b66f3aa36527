"""The commands that time checkpoints and token folders run; their figures are their own."""

import pytest

from benchmarks import checkpoint_cost, shards_cost
from fastgpt import GPTConfig
from fastgpt.train import checkpoint

TINY = GPTConfig(vocab_size=16, max_len=8, n_layers=1, n_heads=1, d_model=8)


@pytest.mark.parametrize("row", checkpoint_cost.ROWS)
def test_every_row_of_a_checkpoint_runs(row, tmp_path):
    trained = checkpoint_cost.Trained(TINY, tmp_path)
    trained.save()
    pattern, act = checkpoint_cost.ROWS[row]
    assert [path for path in trained.path.glob(pattern) if path.stat().st_size]
    act(trained)
    checkpoint.verify(trained.path)


def test_a_token_folder_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(shards_cost, "READS", 3)
    monkeypatch.setenv("FASTGPT_CACHE", "")  # which it sets for itself
    shards_cost.main(0.0001)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "0.0001", "read", "opened", "a", "the", "pickled",
    ]  # fmt: skip
