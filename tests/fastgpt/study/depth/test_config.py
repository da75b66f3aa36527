"""The grid, the recipe, and the tokens that a budget is time for."""

from __future__ import annotations

import pytest

from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.study.depth.config import NO_NORM_SHARE, Cell, DepthConfig, seconds_of, tokens_within

SMALL = {"layers": (1, 2), "widths": (32,), "heads": (2,), "batch_size": 4, "micro_batch": 2, "seq_len": 16}


def test_the_papers_grid_is_the_default():
    config = DepthConfig(without_norm=False)
    assert len(config.cells()) == 4 * 2 * 2
    assert {(c.layers, c.width, c.heads) for c in config.cells()} == {
        (l, d, h) for l in (2, 4, 8, 12) for d in (256, 512) for h in (4, 8)
    }
    train = Cell(2, 256, 4, 0).train_config(DepthConfig(tokens=10 * 256 * 512))
    assert (train.lr, train.warmup_fraction, train.steps) == (3e-4, 0.05, 10)
    assert train.batch_size * train.grad_accum == 256
    model = Cell(8, 512, 4, 0).model_config(100, config)
    assert (model.n_layers, model.d_model, model.n_heads, model.d_ff, model.max_len) == (8, 512, 4, 2048, 512)


def test_cells_of_a_part_of_the_grid():
    """Names tell them apart, and runs without LayerNorm are one a depth, of a fraction of the tokens."""
    config = DepthConfig(**SMALL | {"seeds": (3, 1)}, tokens=100 * 64)
    cells = config.cells()
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 2 + 2
    assert [cell.norm for cell in cells] == [True] * 4 + [False] * 2
    assert {cell.seed for cell in cells if not cell.norm} == {3}
    assert [cell.updates(config) for cell in cells] == [100] * 4 + [int(100 * NO_NORM_SHARE)] * 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400), ("1m 30s", 90)]
)
def test_budgets(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"layers": ()}, SettingError, "layers=\\(\\) is empty"),
        ({"layers": (0,)}, SettingError, "layers=0 must be an integer, at least 1"),
        ({"layers": (2, 2)}, SettingError, "names a number twice"),
        ({"layers": (2.5,)}, SettingTypeError, "must be an integer"),
        ({"layers": 2}, SettingTypeError, "must be a tuple of integers"),
        ({"heads": (3,)}, SettingError, "heads=3 must divide each width, 32 too; choose from 1, 2, 4, 8, 16, 32"),
        ({"seeds": (-1,)}, SettingError, "seeds=-1 must be an integer, at least 0"),
        ({"batch_size": 5}, SettingError, r"must be a multiple of micro_batch \(2\)"),
        ({"tokens": 63}, SettingError, "tokens=63 must be an integer, at least 64"),
        ({"budget": "soon"}, SettingError, "must be a time, e.g. 30m"),
        ({"budget": "10"}, SettingError, "must be a time"),
        ({"budget": "0m"}, SettingError, "above 0"),
        ({"budget": 30}, SettingTypeError, "must be a time"),
        ({"budget": "1m", "tokens": 6400}, SettingError, "cannot be given beside tokens"),
        ({"lr": 0.0}, SettingError, "must be a number, above 0"),
        ({"name": "a/b"}, SettingError, "plain name of a folder"),
    ],
)
def test_what_is_no_grid(settings, error, match):
    with pytest.raises(error, match=match):
        DepthConfig(**SMALL | settings)


def test_a_budget_is_filled_and_not_overdrawn():
    config = DepthConfig(**SMALL, budget="1m")
    cost = {1: 1e-4, 2: 3e-4}
    tokens, seconds = tokens_within(config, lambda cell: cost[cell.layers], 10**9)
    whole = (1 + NO_NORM_SHARE) * (1e-4 + 3e-4)  # seconds a token of both depths, with and without LayerNorm
    assert tokens % config.tokens_per_update == 0
    assert 0.9 * 60 - whole * 64 < tokens * whole <= 0.9 * 60
    assert seconds == pytest.approx(tokens * whole / 0.9)


def test_a_budget_too_short_or_too_long():
    with pytest.raises(SettingError, match=r"budget='1s' is too short: 4 runs of 10 updates take about 355556 s here"):
        tokens_within(DepthConfig(**SMALL, budget="1s"), lambda cell: 200.0, 10**9)
    with pytest.raises(SettingError, match="more than 20 epochs of the training data"):
        tokens_within(DepthConfig(**SMALL, budget="1h"), lambda cell: 1e-6, 10_000)
