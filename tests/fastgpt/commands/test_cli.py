"""The command line: every option explained, configuration files, the commands end to end, one clear error each."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from fastgpt import cli
from fastgpt.commands import _read
from fastgpt.commands.train import Command as Train
from fastgpt.commands.train import ModelOptions
from fastgpt.kernels import _runtime
from fastgpt.study.demo import DemoConfig
from fastgpt.train.metrics import read_metrics

from ..training import tiny_model

pytestmark = pytest.mark.needs("tyro", "tiktoken")

TINY = [
    "--tokenizer", "shakespeare", "--n-layers", "1", "--n-heads", "2", "--d-model", "16", "--max-len", "16",
    "--batch-size", "2", "--steps", "3", "--eval-batches", "2", "--no-tensorboard", "--device", "cpu", "--no-progress",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTGPT_DEBUG", raising=False)
    monkeypatch.setenv("FASTGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", *TINY, "--runs-dir", str(folder), "--name", "a"]) == 0
    return str(folder / "a")


def error_of(capsys, *argv: str) -> str:
    assert cli.main(list(argv)) == 2
    return capsys.readouterr().err


def help_of(capsys, command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def leaves(group) -> list[str]:
    """Names of all options of a command, nested groups flattened."""
    names = []
    for field in dataclasses.fields(group):
        nested = dataclasses.is_dataclass(field.default_factory)
        names += leaves(field.default_factory) if nested else [field.name]
    return names


def test_usage_names_every_command(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fastgpt ")


@pytest.mark.parametrize("command", ["demo", "prepare", "train", "sample", "eval", "inspect", "verify"])
def test_help_shows_every_option_with_default_and_explanation(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "400")
    out = help_of(capsys, command)
    names = leaves(importlib.import_module(f"fastgpt.commands.{command}").Command)
    for name in names:
        assert f"--{name.replace('_', '-')}" in out or name.upper() in out, name
    assert out.count("(default:") + out.count("(required)") >= len(names)


@pytest.mark.parametrize(
    "owner",
    [DemoConfig, ModelOptions, "prepare", "train", "sample", "eval", "inspect", "verify"],
)
def test_every_option_has_an_explanation(owner):
    if isinstance(owner, str):
        owner = importlib.import_module(f"fastgpt.commands.{owner}").Command
    nested = {f.name for f in dataclasses.fields(owner) if dataclasses.is_dataclass(f.default_factory)}
    body = ast.parse(inspect.getsource(owner)).body[0].body
    for node, following in zip(body, [*body[1:], None]):
        if isinstance(node, ast.AnnAssign) and node.target.id not in nested:
            assert isinstance(following, ast.Expr), node.target.id
            assert isinstance(following.value.value, str), node.target.id


def test_unknown_command_and_option(capsys):
    assert "unknown command 'trian'; did you mean 'train'?" in error_of(capsys, "trian")
    assert error_of(capsys, "train", "--stepz", "3").endswith("unknown option --stepz; did you mean --steps?\n")


@pytest.mark.parametrize("suffix", ["toml", "yaml", "json"])
def test_config_file_and_overrides(here, suffix):
    settings = {
        "data": ["a.txt", "b.txt"], "val_fraction": 0.25, "model": {"n_layers": 3, "bias": False},
        "train": {"steps": 7, "lr": 2e-4, "tensorboard": False, "name": "mine"},
    }  # fmt: skip
    path = here / f"settings.{suffix}"
    if suffix == "toml":
        path.write_text(
            'data = ["a.txt", "b.txt"]\nval_fraction = 0.25\n[model]\nn_layers = 3\nbias = false\n'
            '[train]\nsteps = 7\nlr = 2e-4\ntensorboard = false\nname = "mine"\n'
        )
    elif suffix == "yaml":
        pytest.importorskip("yaml").safe_dump(settings, path.open("w"))
    else:
        path.write_text(json.dumps(settings))
    found = _read.parse(Train, ["--config", str(path), "--steps", "9", "--seed", "4"], "fastgpt train")
    assert found.data == ("a.txt", "b.txt")
    assert found.val_fraction == 0.25
    assert (found.model.n_layers, found.model.bias, found.model.d_model) == (3, False, None)
    assert (found.train.steps, found.train.seed, found.train.lr) == (9, 4, 2e-4)
    assert (found.train.tensorboard, found.train.name) == (False, "mine")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "[train]\nstepz = 3\n", "unknown setting 'train.stepz'; did you mean 'train.steps'?"),
        ("a.toml", "steps = [\n", "a.toml"),
        ("a.toml", "[data]\nx = 3\n", "'data' is a single setting, not a table"),
        ("a.ini", "steps = 3\n", "unknown kind '.ini'"),
        ("a.json", "[1]", "must be a table"),
    ],
)
def test_bad_config_file(here, capsys, name, content, message):
    (here / name).write_text(content)
    assert message in error_of(capsys, "train", "--config", name)


def test_yaml_without_pyyaml(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (here / "a.yaml").write_text("val_fraction: 0.1\n")
    assert "pip install 'fastgpt-triton[train]'" in error_of(capsys, "train", "--config", "a.yaml")


def test_missing_config_file(here, capsys):
    assert "gone.toml: no such file" in error_of(capsys, "train", "--config", "gone.toml")


def test_bad_value_in_config_file(here, capsys):
    (here / "a.toml").write_text('[train]\nsteps = "many"\n')
    assert "--config a.toml: train.steps = many must be an integer" in error_of(capsys, "train", "--config", "a.toml")


def test_train_on_own_text_then_eval(here, capsys):
    (here / "books").mkdir()
    (here / "books" / "a.txt").write_text("To be, or not to be, that is the question. " * 60)
    assert cli.main(["train", "--data", "books", "--val-fraction", "0.2", *TINY, "--name", "own"]) == 0
    assert "validation loss" in capsys.readouterr().out
    cached = list((here / "cache" / "tokens").iterdir())
    assert len(cached) == 1
    assert cli.main(["train", "--data", "books", *TINY, "--name", "own2"]) == 0
    assert list((here / "cache" / "tokens").iterdir()) == cached  # tokenized once
    capsys.readouterr()
    assert cli.main(["eval", "runs/own", "--data", "books/a.txt", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] > 100
    assert found["bits_per_byte"] > 1


def test_prepare_then_train_on_the_shards(here, capsys):
    (here / "a.txt").write_text("Now is the winter of our discontent. " * 60)
    assert cli.main(["prepare", "a.txt", "--out", "shards", "--tokenizer", "shakespeare"]) == 0
    assert "in 1 documents, 1 shards of uint16" in capsys.readouterr().out
    assert cli.main(["train", "--data", "shards", *TINY]) == 0
    error = error_of(capsys, "train", "--data", "shards", *TINY, "--tokenizer", "gpt2", "--name", "b")
    assert "made with another tokenizer" in error


def test_resume_from_the_settings_that_a_run_leaves(here, capsys):
    assert cli.main(["train", *TINY, "--name", "a"]) == 0
    again = ["train", "--config", "runs/a/settings.json", "--no-progress"]
    assert "holds a run of 3 steps" in error_of(capsys, *again)
    assert cli.main([*again, "--resume", "--steps", "5", "--allow-changes"]) == 0
    assert "step 5: saved runs/a/checkpoints/step-00000005" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(here / "runs" / "a" / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_run_goes_on_by_what_its_own_settings_would_forbid(here, capsys):
    """Ranks of a copy are no other strategy's, and a batch of all ranks sets how many micro-batches each has."""
    once = [*TINY, "--batch-size", "2", "--grad-accum", "2", "--strategy", "hsdp", "--shard-ranks", "1", "--name", "a"]
    assert cli.main(["train", *once, "--save-every", "2"]) == 0
    again = ["train", "--resume-from", "runs/a/checkpoints/step-00000002", "--no-progress", "--strategy", "ddp"]
    assert "--grad-accum 2, now 3" in error_of(capsys, *again, "--global-batch-size", "6")
    assert cli.main([*again, "--global-batch-size", "4"]) == 0
    settings = json.loads((here / "runs" / "a" / "settings.json").read_text())["train"]
    assert (settings["strategy"], settings["global_batch_size"], "shard_ranks" in settings) == ("ddp", 4, False)
    assert "--shard-ranks 1 is for strategy hsdp" in error_of(capsys, *again, "--shard-ranks", "1")


def test_train_from_the_weights_of_another_run(here, trained, capsys):
    assert cli.main(["train", *TINY, "--init-from", trained, "--lr", "0", "--name", "b"]) == 0
    options = ["--device", "cpu", "--max-batches", "2", "--json"]
    capsys.readouterr()
    losses = []
    for run in (trained, "runs/b"):
        assert cli.main(["eval", run, *options]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1]


def test_ctrl_c_saves_and_says_how_to_go_on(here):
    options = [*TINY, "--steps", "100000", "--eval-every", "0", "--name", "a"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgpt.cli", "train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log, deadline = here / "runs" / "a" / "metrics.jsonl", time.monotonic() + 90
        while not (log.exists() and len(read_metrics(log)) >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "go on with: fastgpt train --resume --name a" in out


def test_sample_from_argument_and_stdin(trained, capsys, monkeypatch):
    options = [trained, "--seed", "3", "--max-new-tokens", "12", "--top-k", "50", "--top-p", "0.9", "--device", "cpu"]
    assert cli.main(["sample", options[0], "To be", *options[1:]]) == 0
    first = capsys.readouterr().out
    assert first.startswith("To be")
    assert len(first) > len("To be\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("To be"))
    assert cli.main(["sample", options[0], "-", *options[1:]]) == 0
    assert capsys.readouterr().out == first
    assert cli.main(["sample", options[0], "To be", *options[1:], "--seed", "4"]) == 0
    assert capsys.readouterr().out != first
    assert cli.main(["sample", options[0], "", *options[1:], "--temperature", "0"]) == 0


def test_sample_prints_tokens_as_they_come(trained, monkeypatch):
    writes = []

    class Out(io.StringIO):
        def write(self, text):
            writes.append(text)

    monkeypatch.setattr(sys, "stdout", Out())
    assert cli.main(["sample", trained, "To be", "--seed", "3", "--max-new-tokens", "12", "--device", "cpu"]) == 0
    assert len([w for w in writes if w]) >= 8


def test_inspect_writes_png_and_html(here, trained, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["inspect", trained, "To be, or not", "--heads", "-1", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.split() == ["attention/attention.html", "attention/attention.png"]
    assert (here / "attention" / "attention.png").read_bytes()[:4] == b"\x89PNG"
    assert "layer 0, head 1" in (here / "attention" / "attention.html").read_text()


def test_inspect_without_matplotlib(here, trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["inspect", trained, "To be", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["attention/attention.html"]
    assert "fastgpt-triton[train]" in captured.err


def test_clear_errors(here, trained, capsys):
    for argv, message in (
        (["sample", "nowhere"], "nowhere: no such file or folder"),
        (["eval", trained, "--data", "gone.txt"], "gone.txt: no such file"),
        (["eval", trained, "--tokenizer", "gpt2"], "--tokenizer gpt2 is not the tokenizer that"),
        (["eval", trained, "--tokenizer", "gpt9"], "neither a bundled tokenizer"),
        (["inspect", trained, ""], "PROMPT '' is empty"),
        (["inspect", trained, "word " * 50], "the model's max_len is 16"),
        (["inspect", trained, "To be", "--layers", "7"], "there is no layer 7"),
        (["train", *TINY, "--n-heads", "3"], "--n-heads 3 must divide d_model (16)"),
        (["train", *TINY, "--seq-len", "17"], "--seq-len 17 exceeds the model's max_len=16"),
        (["train", *TINY, "--attn-impl", "magic"], "--attn-impl magic must be one of auto, triton"),
        (["train", *TINY, "--attn-impl", "triton"], "attn_impl=\"triton\" cannot run here"),
        (["train", *TINY, "--preset", "gpt5"], "--preset gpt5 must be one of gpt2"),
        (["train", *TINY, "--data", "gone"], "gone: no such file or folder"),
        (["train", *TINY, "--resume", "--name", "new"], "nothing to resume"),
    ):  # fmt: skip
        if "triton" in argv and (torch.cuda.is_available() or _runtime.is_interpreting()):
            continue
        assert message in error_of(capsys, *argv), argv
    (here / "binary.txt").write_bytes(b"\0\1\2")
    assert "binary.txt: binary data" in error_of(capsys, "train", *TINY, "--data", "binary.txt")
    assert not list((here / "runs").rglob("manifest.json"))


def test_model_folder_without_a_tokenizer(here, capsys):
    tiny_model(vocab_size=300).save_pretrained(here / "m")
    assert "holds no tokenizer; name the one" in error_of(capsys, "sample", "m", "hi")
    tiny_model(vocab_size=50304).save_pretrained(here / "gpt2like")
    assert cli.main(["sample", "gpt2like", "hi", "--max-new-tokens", "2", "--device", "cpu"]) == 0


def test_debugging_shows_the_traceback(here, monkeypatch):
    monkeypatch.setenv("FASTGPT_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["sample", "nowhere"])


@pytest.mark.parametrize("words", ["--help", "train --help"])
def test_stdout_on_a_full_disk(words):
    done = subprocess.run(
        f"{sys.executable} -m fastgpt.cli {words} > /dev/full", shell=True, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no space" in done.stderr


def test_closed_pipe_is_no_error(trained):
    command = f"{sys.executable} -m fastgpt.cli sample {trained} hi --device cpu --max-new-tokens 500 | head -c 5"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=120)  # five bytes may end inside a letter
    assert done.stderr == b""
