"""Scores of heads: constructed attention has the scores that it was made for, chance those of counting."""

from __future__ import annotations

import math

import pytest
import torch

from fastgpt.study.head_scores import NAMES, HeadScores, chance_scores, head_scores

IDS = torch.tensor([5, 7, 5, 9, 7, 5])  # 5 again at 2 and 5, 7 again at 4
T = len(IDS)


def looking_at(keys: list[list[int]]) -> torch.Tensor:
    """(1, T, T): query t gives its weight in equal parts to keys[t]."""
    head = torch.zeros(len(keys), len(keys))
    for t, seen in enumerate(keys):
        head[t, seen] = 1 / len(seen)
    return head[None]


def scores(head: torch.Tensor, ids: torch.Tensor = IDS) -> dict[str, float]:
    return {name: float(score[0]) for name, score in head_scores(head, ids)._asdict().items()}


def test_each_score_is_1_of_the_head_that_does_it():
    previous = scores(looking_at([[max(t - 1, 0)] for t in range(T)]))
    assert previous["previous_token"] == 1
    assert previous["entropy"] == previous["normalised"] == 0
    assert previous["first_token"] == pytest.approx(1 / 5)  # query 1, whose previous token is the first
    assert scores(looking_at([[0]] * T))["first_token"] == 1
    same = scores(looking_at([[0], [1], [0], [3], [1], [0, 2]]))
    assert same["same_token"] == 1
    assert same["induction"] == 0
    # What followed 5: 7 at 1, 9 at 3; what followed 7: 5 at 2.
    induction = scores(looking_at([[0], [0], [1], [0], [2], [1, 3]]))
    assert induction["induction"] == 1
    assert induction["same_token"] == 0


def test_a_token_that_comes_twice_in_a_row_followed_itself():
    """Of x = 4 4, the key after the first 4 is the query's own, which looks back at nothing."""
    assert math.isnan(scores(looking_at([[0], [1]]), torch.tensor([4, 4]))["induction"])
    assert scores(looking_at([[0], [0]]), torch.tensor([4, 4]))["same_token"] == 1


def test_chance_is_counted():
    found = {name: float(score[0]) for name, score in chance_scores(IDS)._asdict().items()}
    assert found["entropy"] == pytest.approx(sum(math.log(t + 1) for t in range(T)) / T, rel=1e-12)
    assert found["normalised"] == pytest.approx(1, rel=1e-12)
    each = sum(1 / (t + 1) for t in range(1, T)) / (T - 1)
    assert found["previous_token"] == found["first_token"] == pytest.approx(each, rel=1e-12)
    assert found["same_token"] == pytest.approx((1 / 3 + 1 / 5 + 2 / 6) / 3, rel=1e-12)
    assert found["induction"] == pytest.approx((1 / 3 + 1 / 5 + 2 / 6) / 3, rel=1e-12)


def test_scores_are_those_of_the_formulas_written_out(seed):
    ids = torch.randint(0, 4, (9,))
    weights = torch.softmax(torch.randn(3, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf), -1)
    found = head_scores(weights, ids)
    assert found._fields == HeadScores._fields == tuple(NAMES)
    assert all(score.dtype == torch.float64 and score.shape == (3,) for score in found)
    for h, a in enumerate(weights.double().tolist()):
        per_query = [-sum(w * math.log(w) for w in a[t][: t + 1]) for t in range(9)]
        same = [(t, [j for j in range(t) if ids[j] == ids[t]]) for t in range(9)]
        after = [(t, [k for k in range(1, t) if ids[k - 1] == ids[t]]) for t in range(9)]
        expected = [
            sum(per_query) / 9,
            sum(per_query[t] / math.log(t + 1) for t in range(1, 9)) / 8,
            sum(a[t][t - 1] for t in range(1, 9)) / 8,
            sum(a[t][0] for t in range(1, 9)) / 8,
            *(mean([sum(a[t][j] for j in keys) for t, keys in pairs if keys]) for pairs in (same, after)),
        ]
        assert [float(score[h]) for score in found] == pytest.approx(expected, rel=1e-9)


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def test_what_no_query_can_do_is_nan():
    found = scores(torch.ones(1, 1, 1), torch.tensor([3]))
    assert found["entropy"] == 0
    assert all(math.isnan(found[name]) for name in NAMES if name != "entropy")
    nothing_twice = scores(looking_at([[0], [0], [0]]), torch.arange(3))
    assert math.isnan(nothing_twice["same_token"])
    assert math.isnan(nothing_twice["induction"])


EVEN = looking_at([[0], [0, 1]])


@pytest.mark.parametrize(
    ("weights", "ids", "message"),
    [
        ([[1.0]], torch.tensor([1]), "weights='list' must be a floating-point tensor"),
        (EVEN.long(), torch.tensor([1, 2]), "weights=torch.int64 must be a floating-point tensor"),
        (EVEN[None], torch.tensor([1, 2]), r"weights=\(1, 1, 2, 2\) must be \(H, T, T\).*; give one sequence"),
        (EVEN[:, :0, :0], torch.tensor([1, 2]), "none of them 0"),
        (EVEN, torch.tensor([1.0, 2.0]), "ids=torch.float32 must be a tensor of token ids"),
        (EVEN, torch.tensor([1]), r"ids=\(1,\) must be \(2,\), an id for each query"),
        (EVEN * torch.nan, torch.tensor([1, 2]), "must hold finite numbers alone"),
        (EVEN.mT, torch.tensor([1, 2]), "must give no weight to later keys"),
    ],
)
def test_what_are_no_weights_is_refused(weights, ids, message):
    with pytest.raises((ValueError, TypeError), match=f"head_scores: .*{message}"):
        head_scores(weights, ids)
    with pytest.raises(TypeError, match="chance_scores: ids='list' must be a tensor"):
        chance_scores([1, 2])
