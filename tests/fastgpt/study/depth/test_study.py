"""Whole studies, tiny: interrupted and gone on with, with runs that fail, in folders of others."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch

from fastgpt.base.settings import SettingError
from fastgpt.data import TokenDataset
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.study.depth import measures
from fastgpt.study.depth.config import Cell, DepthConfig
from fastgpt.study.depth.runs import Runs
from fastgpt.study.depth.study import run_study
from fastgpt.study.depth.variants import make
from fastgpt.study.interrupted import Interrupted
from fastgpt.study.study_runs import StudyTrainer
from tests.support.browser import overflow

LETTERS = b"abcdefgh"


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("tiktoken")
    import base64

    lines = b"".join(base64.b64encode(bytes([n])) + f" {n}\n".encode() for n in range(256))
    return Tokenizer("bytes", lines)


@pytest.fixture(scope="module")
def data(tokenizer):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(97, 105, (4000,), generator=generator).tolist()
    return tuple(
        TokenDataset.from_documents([part], tokenizer, name) for name, part in (("a", ids[:3000]), ("b", ids[3000:]))
    )


@pytest.fixture
def config(tmp_path):
    return DepthConfig(
        layers=(1, 2), widths=(16,), heads=(2,), tokens=640, batch_size=4, micro_batch=2, seq_len=16, eval_tokens=64,
        runs_dir=str(tmp_path / "runs"), name="s", device="cpu",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def few_points_of_memory(monkeypatch):
    for name, values in (("LAYERS", (1, 2)), ("LENGTHS", (32, 64)), ("HEADS", (1, 2))):
        monkeypatch.setattr(measures, name, values)
    monkeypatch.setattr(measures, "ROUNDS", 3)


def study(config, data, tokenizer, said=None):
    return run_study(
        config, *data, tokenizer, progress=said is not None, say=[].append if said is None else said.append
    )


def figures(result):
    """What does not depend on the clock."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "seconds_per_update")}
        for row in json.loads((result.folder / "study.json").read_text())["rows"]
    ]


def test_a_study_from_beginning_to_end(config, data, tokenizer):
    said = []
    result = study(config, data, tokenizer, said)
    found = json.loads((result.folder / "study.json").read_text())
    assert [row["status"] for row in found["rows"]] == ["finished"] * 4
    assert [row["norm"] for row in found["rows"]] == [True, True, False, False]
    assert len(found["verdicts"]) == len(result.verdicts) == 8
    for row in found["rows"]:
        assert row["perplexity"] == pytest.approx(math.exp(row["val_loss"]))
        assert row["tokens"] == (640 if row["norm"] else 128)
        assert row["peak_memory_is"] == "counted"
        assert row["peak_memory_bytes"] > 16 * row["parameters"]  # weights, gradients and AdamW's moments
        assert 0 < row["seconds_per_update"] < row["seconds"] * 64
        assert len(row["gradient_norms"]) == row["layers"] == len(row["smoothing"]) - 1
        assert row["bits_per_byte"] == pytest.approx(
            row["val_loss"] / math.log(2), rel=0.03
        )  # a token is a byte, or the end
    assert found["timing"].keys() == {"1x16x2-seed0", "2x16x2-seed0"}
    assert {row["implementation"] for row in found["memory"]} == {"fastgpt", "torch", "reference"}
    assert dict(found["environment"])["torch"] == torch.__version__
    assert {p.name for p in result.folder.iterdir()} >= {"study.json", "study.html", "study.svg", "1x16x2-seed0"}
    assert "run 1 of 4: 1 layers, width 16, 2 heads, seed 0" in said[0]


def test_finished_runs_are_not_made_again(config, data, tokenizer, monkeypatch):
    first = study(config, data, tokenizer)
    monkeypatch.setattr(Runs, "train", lambda *args: pytest.fail("made again"))
    monkeypatch.setattr(measures, "step_times", lambda *args: pytest.fail("timed again"))
    assert figures(study(config, data, tokenizer)) == figures(first)


def test_a_grid_may_grow(config, data, tokenizer):
    import dataclasses

    first = study(config, data, tokenizer)
    made = {p: p.stat().st_mtime_ns for p in first.folder.glob("*/checkpoints/*/*")}
    larger = study(dataclasses.replace(config, seeds=(0, 1), without_norm=False), data, tokenizer)
    assert len(larger.rows) == 6
    assert {p: p.stat().st_mtime_ns for p in made} == made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_gone_on_with_equals_undisturbed(config, data, tokenizer, monkeypatch, number):
    import dataclasses

    undisturbed = study(dataclasses.replace(config, name="whole"), data, tokenizer)
    begin_step = StudyTrainer.begin_step

    def stopped(self):
        if (self.config.name, self.step) == ("2x16x2-seed0", 4):
            os.kill(os.getpid(), number)
        return begin_step(self)

    monkeypatch.setattr(StudyTrainer, "begin_step", stopped)
    with pytest.raises(Interrupted, match=r"1 of 4 runs are finished, .*; the same command goes on") as stop:
        study(config, data, tokenizer)
    assert stop.value.stopped_by == number.name
    monkeypatch.undo()
    few = {"LAYERS": (1, 2), "LENGTHS": (32, 64), "HEADS": (1, 2), "ROUNDS": 3}
    for name, value in few.items():
        monkeypatch.setattr(measures, name, value)
    assert figures(study(config, data, tokenizer)) == figures(undisturbed)


def test_a_run_that_fails_is_reported_and_the_rest_goes_on(config, data, tokenizer, monkeypatch):
    begin_step = StudyTrainer.begin_step

    def diverges(self):
        if (self.config.name, self.config.grad_accum) == ("1x16x2-seed0", 2) and self.step == 3:  # no timing
            raise FloatingPointError("Trainer: loss nan")
        return begin_step(self)

    monkeypatch.setattr(StudyTrainer, "begin_step", diverges)
    said = []
    result = study(config, data, tokenizer, said)
    assert result.failed == ["1x16x2-seed0"]
    assert "1 layers, width 16, 2 heads, seed 0: failed (FloatingPointError: Trainer: loss nan" in "".join(said)
    assert [row["status"] for row in result.rows] == ["failed", "finished", "finished", "finished"]
    assert "failed: FloatingPointError" in result.page.read_text()
    monkeypatch.setattr(StudyTrainer, "begin_step", begin_step)
    assert not study(config, data, tokenizer).failed


def test_a_full_disk_ends_the_study(config, data, tokenizer, monkeypatch):
    from fastgpt.train.checkpoint import CheckpointError

    def full(self):
        raise CheckpointError("no space is left on the disk")

    monkeypatch.setattr(StudyTrainer, "write", full)
    with pytest.raises(CheckpointError, match="no space"):
        study(config, data, tokenizer)


def test_other_settings_other_data_other_folders(config, data, tokenizer, tmp_path):
    import dataclasses

    study(config, data, tokenizer)
    with pytest.raises(ValueError, match=r"begun with --lr 0.0003, now 0.1; --dropout 0.0, now 0.5; give it the same"):
        study(dataclasses.replace(config, lr=0.1, dropout=0.5), data, tokenizer)
    with pytest.raises(ValueError, match=r"begun with --tokens 640, now 1280"):
        study(dataclasses.replace(config, tokens=1280), data, tokenizer)
    with pytest.raises(ValueError, match=r"begun with other train data \(a\) than b"):
        study(config, data[::-1], tokenizer)
    path = tmp_path / "runs" / "s" / "study.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"study": "smoothing"}))
    with pytest.raises(FileExistsError, match="holds a study of smoothing; choose another name"):
        study(config, data, tokenizer)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"study.json: corrupted .* name another folder with --name"):
        study(config, data, tokenizer)
    path.unlink()
    with pytest.raises(FileExistsError, match="holds files that are no study's"):
        study(config, data, tokenizer)
    with pytest.raises(FileExistsError, match="holds a run; choose another name"):
        study(dataclasses.replace(config, runs_dir=config.runs_dir + "/s", name="1x16x2-seed0"), data, tokenizer)


def test_data_too_small(config, data, tokenizer):
    import dataclasses

    tiny = TokenDataset.from_documents([[97] * 20], tokenizer, "tiny")
    with pytest.raises(SettingError, match="tokens=640 is more than 20 epochs of tiny"):
        study(config, (tiny.renamed("tiny"), data[1]), tokenizer)
    with pytest.raises(
        SettingError, match="micro_batch=4 of 4 sequences of 16 tokens is more than the 21 tokens of tiny"
    ):
        study(dataclasses.replace(config, micro_batch=4), (tiny, data[1]), tokenizer)


def test_a_budget_is_told_and_kept(config, data, tokenizer, monkeypatch):
    import dataclasses

    monkeypatch.setattr(Runs, "seconds_per_token", lambda self, cell: 1e-3)
    said = []
    config = dataclasses.replace(config, tokens=None, budget="2s")
    first = study(config, data, tokenizer, said)
    tokens = int(0.9 * 2 / (2.5e-3)) // 64 * 64
    assert said[0].startswith(f"--budget 2s: {tokens} tokens a run, {tokens // 64} updates of 4 x 16")
    monkeypatch.setattr(Runs, "seconds_per_token", lambda self, cell: pytest.fail("timed again"))
    assert {row["tokens"] for row in study(config, data, tokenizer).rows if row["norm"]} == {tokens}
    assert first.rows


def test_without_layer_norm_nothing_is_normalised(data, tokenizer):
    """The same parameters under the same names, and a stream that is their plain sum."""
    cell = Cell(2, 16, 2, 0)
    config = cell.model_config(257, DepthConfig(seq_len=16))
    torch.manual_seed(0)
    plain, without = make(config, norm=True), make(config, norm=False)
    without.load_state_dict(plain.state_dict())
    idx = torch.arange(10)[None]
    x = without.token_emb(idx) + without.pos_emb.weight[:10]
    for block in without.blocks:
        x = x + block.attn(x)
        x = x + block.ffn(x)
    torch.testing.assert_close(without(idx).hidden, x)
    assert not torch.allclose(plain(idx).hidden, x)


def test_gradient_norms_are_those_of_each_block(data, tokenizer):
    torch.manual_seed(0)
    model = make(Cell(2, 16, 2, 0).model_config(257, DepthConfig(seq_len=16)), norm=True)
    idx = torch.randint(257, (2, 17))
    found = measures.gradient_norms(model, idx[:, :-1], idx[:, 1:])
    model(idx[:, :-1], idx[:, 1:]).loss.backward()
    for block, norm in zip(model.blocks, found, strict=True):
        flat = torch.cat([p.grad.flatten() for p in block.parameters()])
        assert norm == pytest.approx(float(flat.norm()), rel=1e-5)


def test_a_thinned_curve_keeps_its_mean_and_its_end():
    points = [(n, float(n % 7)) for n in range(1, 1001)]
    thin = measures.thinned(points, 100)
    assert len(thin) == 100
    assert thin[-1][0] == 1000
    assert sum(y for _, y in thin) / 100 == pytest.approx(sum(y for _, y in points) / 1000)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_the_page_in_a_browser(opened, config, data, tokenizer, width, dark):
    result = study(config, data, tokenizer)
    page = opened(result.page, width=width, dark=dark)
    assert overflow(page) == 0
    text = page.inner_text("body")
    for verdict in result.verdicts:
        assert verdict.claim in text
        assert verdict.numbers in text
    assert f"{result.rows[0]['perplexity']:.1f}" in text
    assert page.locator("figure").count() >= 9


def test_another_tokenizer_is_named(config, data, tokenizer):
    study(config, data, tokenizer)
    path = config.folder.path / "study.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"tokenizer": {"name": "gpt2", "vocab_size": 50257}}))
    with pytest.raises(ValueError, match=f"begun with --tokenizer gpt2, now {tokenizer.name}; give it the same"):
        study(config, data, tokenizer)


def test_a_damaged_record_is_one_line_or_read_again(config, data, tokenizer):
    study(config, data, tokenizer)
    path = config.folder.path / "study.json"
    whole = json.loads(path.read_text())
    for part in ("recipe", "tokens", "data", "tokenizer", "rows"):
        for damaged in ({k: v for k, v in whole.items() if k != part}, whole | {part: 3 if part != "tokens" else None}):
            if part == "recipe" and part not in damaged:
                continue  # then it is the record of another command
            path.write_text(json.dumps(damaged))
            with pytest.raises((ValueError, FileExistsError), match=r"corrupted|holds a study of"):
                study(config, data, tokenizer)
    first = whole["rows"][0]
    for row in (
        first | {"layers": None},
        first | {"smoothing": None},
        {k: v for k, v in first.items() if k != "perplexity"},
    ):
        path.write_text(json.dumps(whole | {"rows": [row, *whole["rows"][1:]], "timing": None, "memory": 3}))
        again = study(config, data, tokenizer)
        assert not again.failed
        assert again.rows[0]["perplexity"] == pytest.approx(first["perplexity"])


def test_a_model_that_finds_no_room_is_told_before_anything_is_made(config, data, tokenizer):
    import dataclasses

    for field, value in (("layers", (1, 10**9)), ("widths", (10**7,))):
        with pytest.raises(SettingError, match=rf"{field}={value[-1]} makes .* lower it") as told:
            study(dataclasses.replace(config, **{field: value}), data, tokenizer)
        assert told.value.name == field
    assert not config.folder.path.exists()


def test_what_failed_in_another_grid_is_not_this_ones_failure(config, data, tokenizer):
    study(config, data, tokenizer)
    path = config.folder.path / "study.json"
    whole = json.loads(path.read_text())
    failed = {k: whole["rows"][0][k] for k in ("layers", "width", "heads", "seed", "norm")}
    failed |= {"name": "9x16x2-seed0", "layers": 9, "status": "failed", "error": "x"}
    path.write_text(json.dumps(whole | {"rows": [*whole["rows"], failed]}))
    again = study(config, data, tokenizer)
    assert again.failed == []
    assert again.rows[-1]["status"] == "failed"


def test_a_budget_too_short_leaves_no_folder(config, data, tokenizer):
    import dataclasses

    with pytest.raises(SettingError, match="is too short"):
        study(dataclasses.replace(config, tokens=None, budget="0.001s"), data, tokenizer)
    assert not config.folder.path.exists()
