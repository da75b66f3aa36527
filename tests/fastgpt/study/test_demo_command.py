"""`fastgpt demo`: says and writes everything, replaces nothing, refuses what cannot be, tells what a Ctrl-C left."""

from __future__ import annotations

import dataclasses
import os
import signal
import xml.etree.ElementTree as ET
from importlib.util import find_spec

import pytest
import torch

from fastgpt import cli
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.study import attention_maps, demo
from fastgpt.study.demo import DemoConfig, Interrupted, Setting, run_demo
from fastgpt.train import run_record
from fastgpt.train.metrics import read_metrics
from tests.fastgpt.pages.test_page import Parsed
from tests.support import command


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    setting = Setting(n_layers=1, n_heads=2, d_model=16, max_len=64, dropout=0.0, batch_size=4, lr=3e-2)
    monkeypatch.setitem(demo.SETTINGS, "cpu", setting)
    monkeypatch.setattr(demo, "shakespeare_tokens", lambda split, t: _shakespeare(split, t).split(0.03)[1])
    checks = demo.verify.verify
    monkeypatch.setattr(demo.verify, "verify", lambda device: checks(device, ("cross_entropy",)))
    return DemoConfig(runs_dir=str(tmp_path), steps=20, device="cpu", sample_tokens=8)


_shakespeare = demo.shakespeare_tokens


@pytest.mark.needs("tiktoken")
def test_demo_says_and_writes_everything(small_demo, tmp_path, capsys):
    said = []
    result = run_demo(small_demo, lambda line: said.append(line) or print(line))
    out = "\n".join(said)
    for part in (
        f"validation loss before training  {result.before.loss:.4f} nats/token, on all {result.before.tokens:,} tokens",
        f"unigram entropy of that text     {result.unigram_entropy:.4f}",
        str(result.table), result.sample, result.self_check.brief, "report.html",
    ):  # fmt: skip
        assert part in out
    # In a log file, lines: those of the validations on the way, and the last one, over the whole text, once.
    lines = capsys.readouterr().out.splitlines()
    validations = [line for line in lines if "  validation loss " in line]
    assert [int(line.split()[1]) for line in validations] == [4, 8, 12, 16, 20]
    assert f"validation loss {result.after.loss:.4f}" in validations[-1]
    assert "".join(lines).count(f"{result.after.loss:.4f}") == 1
    assert result.after.tokens == result.before.tokens
    assert read_metrics(tmp_path / "demo" / "metrics.jsonl")[-1]["val_loss"] == result.after.loss
    assert result.after.loss < result.before.loss
    assert result.margin == pytest.approx(result.unigram_entropy - result.after.loss)
    text = (tmp_path / "demo" / "report.html").read_text()
    page = Parsed(text)
    assert not page.external
    assert {"svg", "canvas", "table", "pre"} <= set(page.tags)
    for heading in ("Loss", "Sample", "Attention maps", "Implementations", "Self-check", "Settings", "Where this"):
        assert f"<h2>{heading}" in text
    for number in (result.before.loss, result.after.loss, result.unigram_entropy, result.margin):
        assert f"{number:.4f}" in text
    assert result.self_check.rows[0].label in text
    assert "<h1>fastgpt demo" in text  # not the report that every run has, in whose place it is; its record stays
    assert run_record.read(tmp_path / "demo").kept["stopped_by"] is None
    assert f"all {result.after.tokens:,} tokens of the validation text" in text
    drawn = ET.parse(tmp_path / "demo" / "demo.svg")
    tags = [element.tag.rpartition("}")[2] for element in drawn.iter()]
    assert tags.count("image") == (find_spec("matplotlib") is not None)
    assert {"training", "validation"} <= {element.text for element in drawn.iter() if element.text}


@pytest.mark.needs("tiktoken", "tyro")
def test_train_goes_on_with_a_demo(small_demo, tmp_path, capsys):
    run_demo(small_demo, lambda line: None)
    options = ["--name", "demo", "--runs-dir", str(tmp_path), "--resume", "--steps", "22", "--allow-changes"]
    assert cli.main(["train", *options, "--eval-every", "0", "--eval-batches", "1"]) == 0
    assert (tmp_path / "demo" / "checkpoints" / "step-00000022").is_dir()


@pytest.mark.needs("tiktoken")
def test_demo_without_matplotlib_or_triton(small_demo, tmp_path, monkeypatch):
    def missing():
        raise ImportError("drawing needs matplotlib")

    monkeypatch.setattr(attention_maps, "import_figure", missing)
    monkeypatch.setattr(demo.support, "has_triton", lambda: False)
    said = []
    result = run_demo(small_demo, said.append)
    assert "<image" not in result.picture.read_text()
    assert result.self_check is None
    assert "no attention maps in the picture: drawing needs matplotlib" in said
    text = (tmp_path / "demo" / "report.html").read_text()
    assert "Triton is not installed" in text
    assert "<svg" in text


@pytest.mark.needs("tiktoken")
def test_demo_fits_its_steps_into_the_time(small_demo, monkeypatch):
    tokenizer = Tokenizer.named("shakespeare")
    data = demo.shakespeare_tokens("val", tokenizer)
    clock = iter(range(10**6))
    monkeypatch.setattr(demo.time, "perf_counter", lambda: 0.05 * next(clock))  # a step takes 0.05 s
    for seconds, steps in ((20.0, 400), (1.0, demo.MIN_STEPS), (1000.0, 900), (1e308, 900)):
        config = dataclasses.replace(small_demo, steps=None, seconds=seconds, max_steps=900)
        assert demo.make_trainer(
            config, "demo", torch.device("cpu"), tokenizer, data, data
        ).config.steps == pytest.approx(steps, abs=1)


@pytest.mark.needs("tiktoken")
def test_demo_fails_where_the_model_learned_nothing(small_demo):
    result = run_demo(dataclasses.replace(small_demo, steps=1), lambda line: None)
    assert result.margin < demo.MARGIN
    assert not result.ok


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.needs("tiktoken")
def test_a_demo_replaces_nothing(small_demo, tmp_path):
    (tmp_path / "demo" / "checkpoints").mkdir(parents=True)  # of `fastgpt train --train.name demo`, say
    (tmp_path / "demo" / "checkpoints" / "mine").write_text("weeks of work")
    (tmp_path / "demo-2").write_text("not even a folder")
    before, said = contents(tmp_path), []
    folder = run_demo(small_demo, said.append).report.parent
    assert folder == tmp_path / "demo-3"
    assert "demo is there already and stays as it is; this demo writes" in said[0]
    assert str(folder) in said[0]
    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert run_demo(small_demo, said.append).report.parent == tmp_path / "demo-4"
    assert after.items() <= contents(tmp_path).items()


STAGES = {
    "make_trainer": ("nothing was written", False),
    "write_sample": ("the trained model is in .*step-00000020, the report of its training in .*report.html", True),
    "make_report": ("the trained model is in .*step-00000020, the report of its training in .*report.html", True),
}


@pytest.mark.needs("tiktoken")
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_tells_what_was_kept(small_demo, tmp_path, monkeypatch, stage):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, stage, stop)
    message, kept = STAGES[stage]
    config = dataclasses.replace(small_demo, runs_dir=str(tmp_path / "deep" / "runs"))
    with pytest.raises(Interrupted, match=message):
        run_demo(config, lambda line: None)
    assert (tmp_path / "deep" / "runs" / "demo" / "checkpoints").exists() == kept
    assert kept or not (tmp_path / "deep").exists()


@pytest.mark.needs("tiktoken")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_training_keeps_the_model(small_demo, tmp_path, monkeypatch, capsys, name, status):
    step = demo.Trainer.begin_step

    def stopped(self):
        if self.step == 4:
            os.kill(os.getpid(), getattr(signal, name))
        return step(self)

    monkeypatch.setattr(demo.Trainer, "begin_step", stopped)
    with pytest.raises(Interrupted, match=r"stopped at step 5 of 20: the model so far is in .*step-00000005") as caught:
        run_demo(small_demo, lambda line: None)
    assert caught.value.stopped_by == name
    argv = ["demo", "--runs-dir", str(tmp_path), "--steps", "20", "--device", "cpu"]
    capsys.readouterr()
    assert cli.main(argv) == status
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"fastgpt train --resume --name demo-2 --runs-dir {tmp_path} goes on" in told[0]
    assert len(list(tmp_path.glob("demo*/checkpoints/*/model.safetensors"))) == 2


MISTAKES = {
    "--seconds -1": "--seconds -1 must be a number, above 0",
    "--seconds 0": "--seconds 0 must be a number, above 0",
    "--seconds nan": "--seconds nan must be a number, above 0",
    "--seconds inf": "--seconds inf must be a number, above 0",
    "--steps 0": "--steps 0 must be an integer, at least 1",
    "--max-steps 0": "--max-steps 0 must be an integer, at least 1",
    "--sample-tokens -1": "--sample-tokens -1 must be an integer, at least 0",
    "--seed -1": "--seed -1 must be an integer, at least 0",
    "--device gpu": "--device gpu must be one of auto, cpu, cuda",
    "--prompt=": "--prompt '' must be a text of one character or more",
    "--runs-dir file": "--runs-dir file must be a folder that can be written to (File exists); name another",
    "--runs-dir file/runs": "--runs-dir file/runs must be a folder that can be written to (Not a directory)",
}


@pytest.mark.needs("tyro", "rich", "tiktoken")
@pytest.mark.parametrize("options", MISTAKES)
def test_mistakes(options, tmp_path):
    (tmp_path / "file").touch()
    done = command.run("demo", *options.split(), cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("fastgpt demo: error: " + MISTAKES[options])
    assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
