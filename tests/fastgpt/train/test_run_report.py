"""runs/<name>/report.html: there after every run, with the run's own numbers, and never a run's end."""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest

from fastgpt.base import files
from fastgpt.pages.page import Page, is_ours
from fastgpt.train import run_record, run_report
from fastgpt.train.metrics import read_metrics
from tests.support.browser import overflow

from ..training import tiny_trainer

SETTINGS = {
    "model": {"max_len": 64, "d_model": 16},
    "train": {"name": "a", "steps": 40, "batch_size": 4, "grad_accum": 2, "seq_len": 8, "seed": 7, "lr": 0.125},
    "tokenizer": "gpt2",
}
PER_STEP = 4 * 2 * 8


@pytest.fixture
def run(tmp_path):
    """30 steps, of which the 30th is validated: loss 9 - step / 10, at 128 tokens per second."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    lines = [
        {"step": n, "loss": 9 - n / 10, "lr": n / 1000, "grad_norm": 1.0 + n, "tokens_per_second": 128.0, "mfu": None}
        for n in range(1, 31)
    ]
    lines[-1] |= {"val_loss": 6.5, "val_perplexity": 665.1, "val_bits_per_byte": 2.25}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_report_has_the_numbers_of_the_run(run, opened):
    """Each of them worked out by hand, from what the run's folder says."""
    found = run_record.read(run)
    assert (found.step, found.tokens_per_step, found.tokens) == (30, PER_STEP, 30 * PER_STEP)
    assert found.update_seconds == pytest.approx(30 * PER_STEP / 128)
    assert found.training_loss == pytest.approx(9 - sum(range(11, 31)) / 20 / 10)
    run_report.page_of(found).save(run / "report.html")
    shown = opened(run / "report.html")
    text = shown.inner_text("body")
    assert "1,920 tokens seen, 30 of 40 steps, 15 s of updates." in text
    assert "Training loss 6.9500 nats per token (mean of the last 20 steps), validation loss 6.5000" in text
    assert "perplexity 665.1, 2.2500 bits per byte." in text
    tables = [[row.split("\t") for row in table.inner_text().split("\n")] for table in shown.locator("table").all()]
    by_head = {tuple(rows[0]): rows[1:] for rows in tables if rows[0][0]}
    assert ["30", "1,920", "6.5000", "665.1", "2.2500"] in by_head[
        "step", "tokens seen", "loss, nats per token", "perplexity", "bits per byte"
    ]
    settings = dict(by_head["setting", "value"])
    assert settings.items() >= {"lr": "0.125", "seed": "7", "d_model": "16", "tokenizer": "gpt2"}.items()
    origin = dict(by_head["what", "value"])
    assert (origin["seed"], origin["tokens seen"], origin["time taken"]) == ("7", "1,920", "15 s in updates")
    assert origin["machine, versions, command"] == "not recorded"
    titles = [svg.get_attribute("aria-label").partition(":")[0] for svg in shown.locator("svg:visible").all()]
    assert titles == ["Training and validation loss", "Learning rate", "Gradient", "Speed"]
    assert overflow(shown) == 0
    assert overflow(opened(run / "report.html", width=400, dark=True)) == 0


def test_garbled_and_missing_measurements_are_left_out(run):
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(
            b'{"step": 31, "loss": null, "lr": "fast", "tokens_per_second": 0, "val_loss": true}\n{"step": 32, "lo\n'
            b'\xff\xfe\n[1]\n{"step": 33, "loss": 1e400, "val_loss": 5.0}\n{"step": -1}\n{"loss": 3}\n\0\0\0'
        )
    found = run_record.read(run)
    assert found.step == 33
    assert len(found.points("loss")) == 30
    assert found.points("val_loss") == [(30, 6.5), (33, 5.0)]
    assert found.update_seconds == pytest.approx(15)
    assert "validation loss 5.0000, perplexity 665.1" not in run_report.lead(found)  # of one validation, or of none
    run_report.page_of(found).html()
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "1 of 40 steps" in run_report.page_of(run_record.read(run)).html()


@pytest.mark.parametrize("kept", ["[1]", "{", '{"implementations": 3, "provenance": [[1], "x", [1, 2]]}', "[" * 99_999])
def test_what_a_report_kept_may_have_been_edited(run, kept):
    page = Page("edited")
    page.add(f'<script type="application/json" id="fastgpt-run">{kept}</script>')
    page.save(run / "report.html")
    run_report.page_of(run_record.read(run)).html()


def test_fit_writes_it_with_what_only_the_process_knows(tmp_path):
    trainer = tiny_trainer(tmp_path, eval_every=4)
    trainer.fit()
    report = tmp_path / "run" / "report.html"
    assert is_ours(report)
    found = run_record.read(tmp_path / "run")
    assert (
        found.parameters
        == trainer.model.num_parameters()
        == run_record._counted(tmp_path / "run" / "checkpoints" / "step-00000008")
    )
    assert found.tokens == 8 * 3 * 16
    assert found.settings["dtype"] == "float32"  # "auto", as it was asked for
    assert 0 < found.update_seconds < found.kept["seconds"]
    assert {row[0] for row in found.kept["provenance"]} >= {"date", "command", "commit", "torch", "CPU"}
    assert {row[3] for row in found.kept["implementations"]} == {"torch", "sdpa"}
    loss = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val_loss"]
    assert f"validation loss {loss:.4f}" in report.read_text()
    again = run_report.page_of(found).html()
    assert again == report.read_text()  # made again, it has what the first one had


def test_a_stopped_and_a_resumed_run_have_theirs(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path)
    step = trainer.begin_step

    def stopping():
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    monkeypatch.setattr(trainer, "begin_step", stopping)
    assert trainer.fit().stopped_by == "SIGTERM"
    report = tmp_path / "run" / "report.html"
    assert "5 of 8 steps, stopped by SIGTERM" in report.read_text()
    tiny_trainer(tmp_path).fit(resume=True)
    assert "8 of 8 steps, " in report.read_text()
    assert "stopped by" not in report.read_text()


def test_a_report_that_a_killed_process_owes_is_written_when_the_run_is_resumed(tmp_path):
    tiny_trainer(tmp_path, val=False).fit()
    report = tmp_path / "run" / "report.html"
    before = report.read_bytes()
    tiny_trainer(tmp_path, val=False).fit(resume=True)
    assert report.read_bytes() == before
    report.unlink()
    tiny_trainer(tmp_path, val=False).fit(resume=True)
    assert is_ours(report)
    page = Page("of fewer steps")
    page.save(report)
    os.utime(report, (1, 1))
    tiny_trainer(tmp_path, val=False).fit(resume=True)
    assert "8 of 8 steps" in report.read_text()


def test_a_report_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch, caplog):
    replace_file = files.replace_file

    def full(path, write):
        if path.name == "report.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        replace_file(path, write)

    monkeypatch.setattr(files, "replace_file", full)
    result = tiny_trainer(tmp_path).fit()
    assert result.step == 8
    assert result.checkpoint.is_dir()
    (said,) = [record.getMessage() for record in caplog.records if "report.html" in record.getMessage()]
    assert "No space left on device" in said
    assert "all else is written" in said


@pytest.mark.parametrize("what", ["file", "folder", "link", "pipe"])
def test_what_somebody_else_has_put_in_its_place_stays(tmp_path, caplog, what):
    report = tmp_path / "run" / "report.html"
    report.parent.mkdir()
    make = {
        "file": lambda: report.write_text("mine"), "folder": report.mkdir, "link": lambda: report.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(report),
    }  # fmt: skip
    make[what]()
    inode = report.lstat().st_ino
    tiny_trainer(tmp_path).fit()
    tiny_trainer(tmp_path).fit(overwrite=True)
    assert report.lstat().st_ino == inode
    said = [record.getMessage() for record in caplog.records if "report.html" in record.getMessage()]
    assert len(said) == 2
    assert "did not write this, so it stays" in said[0]


def test_a_run_that_is_started_over_has_a_new_one(tmp_path, monkeypatch):
    """The old one is gone by then, as all of the old run: if the new one is killed, nothing tells of another run."""
    tiny_trainer(tmp_path, steps=3).fit()
    report = tmp_path / "run" / "report.html"
    trainer, was_there = tiny_trainer(tmp_path, steps=2), []
    step = trainer.begin_step
    monkeypatch.setattr(trainer, "begin_step", lambda: was_there.append(report.exists()) or step())
    trainer.fit(overwrite=True)
    assert was_there == [False, False]
    assert "2 of 2 steps" in report.read_text()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such run"),
        (lambda folder: folder.write_text(""), "a file, no run's folder"),
        (lambda folder: folder.mkdir(), "not a run: it has no metrics.jsonl"),
        (lambda folder: (folder.mkdir(), (folder / "metrics.jsonl").write_text("{}\n")), "no step in it"),
        (
            lambda folder: ((folder / "x").mkdir(parents=True), (folder / "x" / "metrics.jsonl").write_text("")),
            "a folder of runs; give one of them: x",
        ),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, make, message):
    make(tmp_path / "a")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run_record.read(tmp_path / "a")
