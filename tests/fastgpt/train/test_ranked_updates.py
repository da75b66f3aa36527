"""Several ranks make the updates of one: same losses, same norms, whatever is ignored; and skip a step together."""

from __future__ import annotations

import math

import pytest
import torch

from fastgpt.train import run_record
from fastgpt.train.metrics import read_metrics

from ...support.ranks import run_ranks
from .ranked import STEPS, fitted, trained, updates, whole_weights


def alone() -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    made = updates()
    found = [made.train_step() for _ in range(STEPS)]
    return [loss for loss, _, _ in found], [norm for _, norm, _ in found], whole_weights(made.model)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_make_the_updates_of_one(kind):
    losses, norms, weights = alone()
    ranks = run_ranks(trained, 2, 2, kind)
    assert ranks[0]["empty"] + ranks[1]["empty"] > 0  # micro-batches without a target that counts
    for found in ranks:
        assert found["losses"] == pytest.approx(losses, abs=1e-5)
        assert found["norms"] == pytest.approx(norms, rel=1e-4)
        for name, value in weights.items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-3, atol=1e-4)
        assert found["tokens"] == 4 * 13
        assert found["stops"] == [0] * (STEPS // 2) + [15] * (STEPS // 2)  # rank 1's signal, from that step on
        assert found["memory"] == ranks[0]["memory"]
        # One rank's NaN is everybody's.
        assert all(map(math.isnan, found["spoiled"]))
        assert found["skipped"] == 1
        assert found["unchanged"]
        assert found["moments' steps"]
        assert found["whole"]
    assert ranks[0]["losses"] == ranks[1]["losses"]
    assert ranks[1]["said"] == []
    (said,) = ranks[0]["said"]
    assert said.endswith("the first that is not finite is the output of blocks.1.ffn")


def test_all_ranks_end_at_one_step(tmp_path):
    """By a signal that came to one of them, at most two steps later; and by NaN that one of them has."""
    ranks = run_ranks(fitted, 2, "ddp", str(tmp_path))
    assert ranks[0]["told"] == ranks[1]["told"]
    step, stopped_by, losses = ranks[0]["told"]
    assert (stopped_by, losses) == ("SIGTERM", step)
    assert 4 <= step <= 6
    for found in ranks:
        assert "at step 5, the last of 3 in a row that were skipped; the first that is not finite is" in found["bad"]
    for name, count in (("told", step), ("bad", 5)):
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, count + 1))
    assert [line.get("skipped") for line in lines] == [None, None, 1, 2, 3]
    assert run_record.read(tmp_path / "told").tokens == step * 2 * 16
    assert (tmp_path / "told" / "checkpoints" / f"step-{step:08d}").is_dir()
