"""The comparison of dropout and weight decay: runs are made once, gone on with, and compared in pairs."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from fastgpt.base.settings import SettingError
from fastgpt.data import TokenDataset
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.model.gpt import GPT
from fastgpt.study import smoothing_record
from fastgpt.study.interrupted import Interrupted
from fastgpt.study.smoothing_comparison import Comparison
from fastgpt.study.smoothing_comparison_page import comparison_page, effect_rows, verdict
from fastgpt.study.smoothing_config import ComparisonConfig
from fastgpt.study.smoothing_effects import effects, figures
from fastgpt.study.smoothing_page import MEASURES
from fastgpt.train.trainer import Trainer
from tests.support.browser import overflow

pytestmark = pytest.mark.needs("tiktoken")  # bits per byte

NAMES = ["dropout0-decay0-seed0", "dropout0-decay0.5-seed0", "dropout0.5-decay0-seed0", "dropout0.5-decay0.5-seed0"]


def config_in(folder: Path, **changes) -> ComparisonConfig:
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 8, "max_len": 8, "batch_size": 2, "steps": 3}
    knobs = {"dropout": 0.5, "weight_decay": 0.5, "lr": 0.05}
    return ComparisonConfig(**sizes | knobs | {"runs_dir": str(folder / "runs"), "name": "c"} | changes)


@pytest.fixture(scope="module")
def data():
    tokenizer = Tokenizer.named("shakespeare")
    ids = torch.randint(200, (2, 400), generator=torch.Generator().manual_seed(0)).tolist()
    return [TokenDataset.from_documents([one], tokenizer, name) for one, name in zip(ids, ("train", "val"))], tokenizer


def comparison(config, data, **options) -> Comparison:
    datasets, tokenizer = data
    return Comparison(config, *datasets, tokenizer, device="cpu", **{"sequences": 3} | options)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """(config, result, what was said, updates told of) of a comparison that has ended."""
    config, said, told = config_in(tmp_path_factory.mktemp("done")), [], []
    found = comparison(config, data)
    assert found.updates_left() == 12
    return config, found.run(lambda: told.append(1), said.append), said, told


def test_four_runs_that_differ_in_dropout_and_weight_decay(done, data):
    config, result, said, told = done
    assert len(told) == 12
    assert said == [
        "run 1 of 4: neither, seed 0", "run 2 of 4: decay 0.5, seed 0", "run 3 of 4: dropout 0.5, seed 0",
        "run 4 of 4: dropout 0.5 and decay 0.5, seed 0",
    ]  # fmt: skip
    assert result.failed == []
    assert [row["name"] for row in result.record["rows"]] == NAMES
    begun = set()
    for row in result.record["rows"]:
        settings = json.loads((config.folder.path / row["name"] / "settings.json").read_text())
        assert settings["model"]["dropout"] == row["dropout"]
        assert settings["train"]["weight_decay"] == row["weight_decay"]
        lines = [
            json.loads(line) for line in (config.folder.path / row["name"] / "metrics.jsonl").read_text().splitlines()
        ]
        begun.add(lines[0]["loss"] if row["dropout"] == 0 else None)
        assert row["val_loss"] == lines[-1]["val_loss"]
        assert row["tokens"] == 3 * 2 * 8
        kept = 1.0
        for line in lines:
            kept *= 1 - line["lr"] * row["weight_decay"]
        assert row["shrunk"] == pytest.approx(1 - kept)
    assert len(begun - {None}) == 1  # the same weights and batches
    assert len({row["val_loss"] for row in result.record["rows"]}) == 4


def test_the_measures_are_those_of_the_trained_models_without_dropout(done, data):
    config, result, _, _ = done
    ids = data[0][1].read(0, 400).tolist()
    idx = smoothing_record.windows(ids, 8, 3)
    for row in result.record["rows"]:
        newest = config.folder.path / row["name"] / "checkpoints" / "step-00000003"
        model = GPT.from_pretrained(newest, dropout=0.0)
        assert row["layers"] == smoothing_record.row_of("", model, idx)["layers"]
    assert (
        json.loads((config.folder.path / "study.json").read_text())["rows"][0]["layers"]
        == result.record["rows"][0]["layers"]
    )


def test_finished_runs_are_not_made_again_and_new_seeds_are(done, data, monkeypatch):
    config, result, _, _ = done
    fitted, fit = [], Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, **how: fitted.append(self.config.name) or fit(self, **how))
    again = comparison(config, data)
    assert again.updates_left() == 0
    assert [row["layers"] for row in again.run().record["rows"]] == [row["layers"] for row in result.record["rows"]]
    assert fitted == []


def test_an_interrupted_comparison_goes_on_where_it_was(done, data, tmp_path):
    config, told = config_in(tmp_path), []

    def stop() -> None:
        told.append(1)
        if len(told) == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(
        Interrupted, match="1 of 4 runs are finished, and what the others have learned so far is"
    ) as stopped:
        comparison(config, data).run(stop, lambda text: None)
    assert stopped.value.stopped_by == "SIGTERM"
    assert json.loads((config.folder.path / "study.json").read_text())["rows"] == []
    again = comparison(config, data)
    assert again.updates_left() == 12 - 5
    rows = again.run(say=lambda text: None).record["rows"]
    for found, undisturbed in zip(rows, done[1].record["rows"], strict=True):
        assert found["layers"] == undisturbed["layers"]
        assert found["val_loss"] == undisturbed["val_loss"]


def test_a_run_that_fails_is_told_and_the_rest_goes_on(data, tmp_path, monkeypatch):
    fit, said = Trainer.fit, []

    def failing(self, **how):
        if self.config.weight_decay:
            raise FloatingPointError("the loss is nan")
        return fit(self, **how)

    monkeypatch.setattr(Trainer, "fit", failing)
    result = comparison(config_in(tmp_path), data).run(say=said.append)
    assert result.failed == NAMES[1::2]
    assert "dropout0-decay0.5-seed0: failed (FloatingPointError: the loss is nan); the rest goes on" in said
    assert {effect["knob"] for effect in result.record["effects"]} == {"dropout"}
    assert {row[4] for row in effect_rows(result.record)} == {"–"}


def row_with(dropout, weight_decay, seed, number):
    layers = [
        {"layer": n} | {m.key: [number + n, number + n] if m.by_head else number + n for m in MEASURES} for n in (0, 1)
    ]
    layers.append({"layer": 2} | {m.key: None if m.by_head else number + 2 for m in MEASURES})
    return {
        "dropout": dropout, "weight_decay": weight_decay, "seed": seed, "val_loss": 10 * number, "train_loss": number,
        "layers": layers,
    }  # fmt: skip


def test_effects_are_differences_of_pairs_that_differ_in_nothing_else():
    numbers = {(0, 0, 0): 1.0, (0, 1, 0): 4.0, (0.1, 0, 0): 2.0, (0.1, 1, 0): 7.0, (0, 0, 1): 5.0, (0.1, 0, 1): 3.0}
    rows = [row_with(*key, number) for key, number in numbers.items()]
    assert figures(rows[0])["Effective rank"] == 3.0
    assert figures(rows[0])["Entropy of attention"] == 2.0
    found = {(one.knob, one.what): one for one in effects(rows)}
    dropout = found["dropout", "validation loss"]
    assert (dropout.change, dropout.alike, dropout.pairs) == (pytest.approx(10 * (1 + 3 - 2) / 3), 2, 3)
    decay = found["weight_decay", "Effective rank"]
    assert (decay.change, decay.alike, decay.pairs) == (4.0, 2, 2)
    assert effects(rows[:1]) == []


@pytest.mark.parametrize(
    ("what", "change", "alike", "said"),
    [
        ("Cosine of two tokens", -0.1, 2, "less alike"), ("Cosine of two tokens", 0.1, 2, "more alike"),
        ("Effective rank", 0.1, 2, "less alike"), ("Effective rank", -0.1, 2, "more alike"),
        ("Effective rank", -0.1, 1, "no clear sign"),
    ],
)  # fmt: skip
def test_what_a_change_says(what, change, alike, said):
    assert verdict({"what": what, "change": change, "alike": alike, "pairs": 2}) == said


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page(opened, done, tmp_path, width):
    record = done[1].record
    assert done[1].page == done[0].folder.path / "study.html"
    page = opened(done[1].page, width=width, dark=width == 400)
    assert overflow(page) == 0
    assert page.locator("figure svg:visible").count() == 1 + len(MEASURES)
    table = page.locator("table.sortable", has_text="by dropout tokens are").first
    for row, what in zip(table.locator("tbody tr").all(), figures(record["rows"][0]), strict=True):
        cells = row.locator("td").all()
        assert cells[0].inner_text() == what
        values = [float(cells[n].get_attribute("data-value")) for n in (1, 2, 4)]
        by_name = {row["group"]: figures(row)[what] for row in record["rows"]}
        neither, decay, dropout, both = by_name.values()
        expected = [neither, (dropout - neither + both - decay) / 2, (decay - neither + both - dropout) / 2]
        assert values == pytest.approx(expected)
    text = page.inner_text("body")
    assert "One seed: a change that is smaller" in text
    assert "training time of all runs" in text
    said = [cell.inner_text() for cell in table.locator("tbody tr td:nth-child(4)").all()]
    assert f"With dropout 0.5, of 6 measures: {said.count('less alike')} say that tokens are less alike" in text
    assert said[:2] == ["–", "–"]
    assert said.count("less alike") + said.count("more alike") + said.count("no clear sign") == 6


def test_seeds_are_drawn_as_bars(done):
    rows = [row | {"seed": seed} for seed in (0, 1) for row in done[1].record["rows"]]
    html = comparison_page(done[1].record | {"rows": rows}).html()
    assert "2 seeds: bars below reach from the lowest to the highest" in html
    assert "Bars: lowest and highest seed." in html


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": ()}, "seeds=.. is empty"), ({"seeds": (1, 1)}, "names a number twice"),
        ({"dropout": 0.0}, "dropout=0.0 must be a number, above 0"), ({"steps": 0}, "steps=0 must be an integer"),
        ({"weight_decay": 0.0}, "weight_decay=0.0 must be a number, above 0"), ({"max_len": 1}, "at least 2"),
        ({"n_heads": 3}, "n_heads=3 must divide"), ({"name": "a/b"}, "must be the plain name"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(tmp_path, changes, match):
    with pytest.raises(SettingError, match=match):
        config_in(tmp_path, **changes)


def test_folders_that_hold_something_else(done, tmp_path):
    config = config_in(tmp_path)
    assert config.earlier() is None
    config.folder.make()
    (config.folder.path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files that are no study's; choose another name"):
        config.earlier()
    (config.folder.path / "settings.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds a run; choose another name"):
        config.earlier()
    (config.folder.path / "study.json").write_text('{"study": "depth", "recipe": {}, "rows": []}')
    with pytest.raises(FileExistsError, match="holds a study of depth; choose another name"):
        config.earlier()
    (config.folder.path / "study.json").write_text("{")
    with pytest.raises(ValueError, match="corrupted"):
        config.earlier()
    with pytest.raises(SettingError, match="cannot be a folder of runs"):
        config_in(tmp_path, runs_dir=str(config.folder.path / "mine")).earlier()
    other = config_in(done[0].folder.path.parents[1], steps=4)
    with pytest.raises(ValueError, match="was begun with --steps 3, now 4; give it the same, or another --name"):
        other.earlier()


def test_data_that_is_too_small_and_a_second_process(data, tmp_path):
    with pytest.raises(SettingError, match="batch_size=60 of 8 tokens each is more than the 401 tokens of train"):
        comparison(config_in(tmp_path, batch_size=60), data)
    config = config_in(tmp_path)
    config.folder.make()
    found = comparison(config, data)
    with (
        config.folder.alone(),
        pytest.raises(FileExistsError, match="another process works there"),
    ):
        found.run()


def test_its_page_is_none_that_a_look_at_one_model_replaces():
    from fastgpt.study import smoothing_comparison_page, smoothing_page

    assert not smoothing_comparison_page.GENERATOR.startswith(smoothing_page.GENERATOR)
