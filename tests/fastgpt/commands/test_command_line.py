"""How the command line speaks: help in any locale and width, words in any order, one wording of errors."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from typing import Annotated

import pytest
import torch

from fastgpt import cli
from fastgpt.base.settings import SettingError
from fastgpt.commands import _mistakes, _options, _read
from fastgpt.commands.train import Command as Train
from tests.support import command

pytest.importorskip("tyro")
from tyro.conf import Positional, arg


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTGPT_DEBUG", raising=False)
    return tmp_path


LOCALES = {
    "C": {"LC_ALL": "C"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C, no UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
}


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("name", [*cli.COMMANDS, "help"])
def test_help_in_any_locale(here, locale, name):
    words = [name] if name == "help" else [*name.split(), "--help"]
    done = command.run(*words, cwd=here, **LOCALES[locale])
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "?" not in done.out.replace("is that normal?", "")


def test_text_in_any_locale(here):
    """What is no decoration stays as UTF-8 where LC_ALL=C makes Python take UTF-8, and is "?" where bytes lack it."""
    for locale, shown in (("C", "caf\u00e9 \u2014"), ("ascii", "caf? -"), ("C, no UTF-8", "caf? -")):
        done = command.run("sample", "caf\u00e9 \u2014", cwd=here, **LOCALES[locale])
        assert done.code == 2
        assert shown in done.err, locale


def test_the_console_script_in_the_c_locale(here):
    process = command.start("plan", "--help", cwd=here, env=dict(os.environ, LC_ALL="C"))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.isascii()


@pytest.mark.parametrize("name", [*cli.COMMANDS, "help"])
def test_help_fits_80_columns(here, name):
    done = command.run(*([name] if name == "help" else [*name.split(), "--help"]), cwd=here, COLUMNS="80")
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["plan", "train"])
def test_help_on_a_wide_screen_is_120_columns(here, name):
    lines = command.run(name, "--help", cwd=here, COLUMNS="200").out.splitlines()
    boxes = [line for line in lines if line[:1] in tuple("╭╰│|+")]
    assert boxes
    assert {len(line) for line in boxes} == {120}
    assert max(map(len, lines)) == 120


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], []], ids=lambda words: " ".join(words) or "nothing")
def test_ways_to_ask_for_help(here, words):
    done = command.run(*words, cwd=here)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: fastgpt <command>")
    assert "examples:" in done.out


@pytest.mark.parametrize(
    "words", [["train", "--help"], ["train", "-h"], ["help", "train"], ["--help", "train"], ["train", "help"]]
)
def test_ways_to_ask_for_the_help_of_a_command(here, words):
    done = command.run(*words, cwd=here)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: fastgpt train")
    assert "--batch-size" in done.out


def test_version(here):
    import fastgpt

    for word in ("-V", "--version"):
        assert command.run(word, cwd=here) == command.Done(0, f"fastgpt {fastgpt.__version__}\n", "")


HELP = """
import contextlib, io, sys
sys.argv = ["/usr/bin/fastgpt"]
from fastgpt import cli
with contextlib.redirect_stdout(io.StringIO()):
    cli.main(["help"])
    loaded = {"tyro", "rich"} & set(sys.modules)
    for name in cli.COMMANDS:
        with contextlib.suppress(SystemExit):
            cli.main([*name.split(), "--help"])
        cli.main([*name.split(), "--nosuch"])
print(sorted(loaded), sorted({"torch", "numpy", "triton"} & set(sys.modules)))
"""


def test_help_and_mistakes_load_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[] []\n", done.stderr
    assert done.stderr.count("unknown option --nosuch") == len(cli.COMMANDS)


def test_what_is_not_the_command_has_all_at_once():
    code = "import sys, fastgpt; print('torch' in sys.modules); import torch; torch.ops.fastgpt.layer_norm_fwd"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_options_in_any_order_and_spelling(here):
    command_class = importlib.import_module("fastgpt.commands.inspect").Command
    for words in (
        ["m", "hi", "--layers", "0", "-1", "--top", "x"][:-2],
        ["--layers", "0", "-1", "m", "hi"],
        ["--layers", "0", "-1", "--", "m", "hi"],
        ["m", "--layers=3", "--layers", "0", "-1", "--", "hi"],
    ):
        found = _read.parse(command_class, words, "fastgpt inspect")
        assert (found.model, found.prompt, found.layers) == ("m", "hi", (0, -1)), words
    evaluate = importlib.import_module("fastgpt.commands.eval").Command
    found = _read.parse(evaluate, ["--seq_len=5", "--data", "a.txt", "b.txt", "m"], "fastgpt eval")
    assert (found.model, found.data, found.seq_len) == ("m", ("a.txt", "b.txt"), 5)
    found = _read.parse(Train, ["--no-bias", "--tie-weights", "--lr", "1", "--lr", "2"], "fastgpt train")
    assert (found.model.bias, found.model.tie_weights, found.train.lr) == (False, True, 2.0)
    found = _read.parse(Train, ["--bias", "False", "--tie-weights=True"], "fastgpt train")
    assert (found.model.bias, found.model.tie_weights) == (False, True)


@pytest.mark.parametrize("prompt", ["-1", "- item", "--", "-x", "--steps"])
def test_a_prompt_that_begins_with_a_dash(prompt):
    sample = importlib.import_module("fastgpt.commands.sample").Command
    found = _read.parse(sample, ["m", "--", prompt], "fastgpt sample")
    assert found.prompt == prompt
    if prompt in ("-1", "- item"):
        assert _read.parse(sample, ["m", prompt], "fastgpt sample").prompt == prompt


ERRORS = [
    (FileNotFoundError(2, "No such file or directory", "out/a"), "--out out: out/a: no such file or folder; check"),
    (PermissionError(13, "Permission denied", "out"), "--out out: permission denied; choose another path"),
    (PermissionError(13, "Permission denied", "/etc/x"), "/etc/x: permission denied; choose another path"),
    (IsADirectoryError(21, "Is a directory", "out"), "--out out: is a folder, where a file is meant"),
    (OSError(28, "No space left on device"), "no space is left on the disk; free some"),
    (OSError(36, "File name too long", "out/" + "x" * 300), "the name is too long; choose a shorter one"),
    (ModuleNotFoundError("No module named 'rich.bar'", name="rich.bar"), "rich is not installed, or not whole; `pip"),
    (MemoryError(), "out of memory; lower --batch-size or --seq-len"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "out of memory; lower --batch-size or --seq-len"),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you"),
        "out of memory",
    ),
    (SettingError("evaluate", "batch_size", 0, "must be at least 1"), "--batch-size 0 must be at least 1"),
    (SettingError("evaluate", "lr", float("nan"), "must be a number"), "--lr NaN must be a number"),
    (SettingError("prepare", "foo_bar", 3, "must be 4"), "foo bar 3 must be 4"),
    (SettingError("eval", "model", "m n", "must be a folder"), "MODEL 'm n' must be a folder"),
    (ValueError("two\nlines"), "two lines"),
    (FileNotFoundError("out: no such run"), "--out out: no such run"),
    (ValueError("a run; use overwrite=True (--overwrite) or keep_it (--keep)"), "a run; use --overwrite or --keep"),
    (ValueError("x (in Python: fit(resume=...) of it)"), "x"),
    (ValueError("'out' is damaged ([Errno 2] gone)"), "--out out: 'out' is damaged (gone)"),
    (ValueError("Tokenizer.load: of no use"), "of no use"),
    (ValueError(), "ValueError"),
]


@dataclasses.dataclass
class Options:
    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    out: str = "out"
    batch_size: int = 8
    seq_len: int | None = None
    lr: float = 0.1


@pytest.mark.parametrize(("error", "line"), ERRORS, ids=[line[:40] for _, line in ERRORS])
def test_what_is_said_of_an_error(error, line):
    given = _options.Given(Options, "fastgpt x", _options.options_of(Options))
    _read.read(given, ["m n", "--out", "out", "--lr", "NaN"])
    said = _mistakes.describe(error, given)
    assert line in said
    assert not [word for word in ("Errno", "Python", "=True", "keep_it", "Tokenizer.load", "\n") if word in said]


@pytest.mark.parametrize("typed", ["my_model", "Mine", "./my_model", "generate"])
def test_a_path_that_looks_like_what_raised_the_error_stays(typed):
    given = _options.Given(Options, "fastgpt x", _options.options_of(Options))
    _read.read(given, [typed])
    said = _mistakes.describe(ValueError(f"{typed.removeprefix('./')}: holds no tokenizer"), given)
    assert said.endswith(f"{typed.removeprefix('./')}: holds no tokenizer")


@pytest.mark.parametrize(
    "error", [AttributeError("x"), AssertionError(), TypeError("x"), KeyError("x"), RecursionError()]
)
def test_a_bug_keeps_its_traceback(here, capsys, monkeypatch, error):
    def run(self):
        raise error

    monkeypatch.setattr("fastgpt.commands.plan.Command.run", run)
    assert cli.main(["plan"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("fastgpt plan: this is a bug of fastgpt; please report it, with the lines above\n")


def test_help_in_a_closed_pipe(here):
    script = f"{sys.executable} {command.SCRIPT} train --help | head -1; {sys.executable} {command.SCRIPT} help >&-"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("usage: fastgpt train [options]\n", "")


def test_settings_may_be_named_by_the_command(here):
    @dataclasses.dataclass
    class Resumable(Options):
        @classmethod
        def settings_file(cls, values):
            return here / "left.json" if values.get("out") == "again" else None

    (here / "left.json").write_text('{"batch_size": 3, "lr": 0.5}')
    found = _read.parse(Resumable, ["m", "--out", "again", "--lr", "1"], "fastgpt x")
    assert (found.batch_size, found.lr) == (3, 1.0)
    assert _read.parse(Resumable, ["m"], "fastgpt x").batch_size == 8


def test_a_path_that_is_not_the_prompts_is_not_called_so():
    from fastgpt.commands.sample import Command

    given = _options.Given(Command, "fastgpt sample", _options.options_of(Command))
    _read.read(given, ["m", "x", "--tokenizer", "own.txt"])
    error = PermissionError(13, "Permission denied", "own.txt")
    assert _mistakes.describe(error, given).startswith("--tokenizer own.txt: permission denied")
