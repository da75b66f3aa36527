"""Ctrl-C and SIGTERM at any moment of any command: one line, no traceback, the shell's exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastgpt.data.tokenizer import Tokenizer
from tests.support import command

from ..training import tiny_model

pytestmark = pytest.mark.needs("tyro")

MODULE = [sys.executable, "-m", "fastgpt"]


def stopped(process: subprocess.Popen[str], after: float, number: signal.Signals) -> tuple[int, str]:
    """Status and stderr of a process that gets a signal `after` seconds after Python itself has started."""
    deadline = time.monotonic() + 60
    while not catches_sigterm(process.pid) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(after)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


def catches_sigterm(pid: int) -> bool:
    """Which Python does not of itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("after", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("how", ["script", "module"])
def test_ctrl_c_while_modules_are_imported(tmp_path, how, after):
    argv = ["train", "--steps", "100000", "--tokenizer", "shakespeare", "--device", "cpu", "--no-tensorboard"]
    if how == "script":
        process = command.start(*argv, cwd=tmp_path)
    else:
        process = subprocess.Popen([*MODULE, *argv], cwd=tmp_path, text=True, stderr=subprocess.PIPE)
    code, err = stopped(process, after, signal.SIGINT)
    assert code == 130, err
    if after < 1:
        assert err == "fastgpt train: interrupted; nothing was done\n"
        assert not list(tmp_path.iterdir())
    assert err.startswith("fastgpt train: interrupted"), err  # after a second it may be at work
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")]
)
def test_sigterm_and_sighup_while_modules_are_imported(tmp_path, number, status, word):
    code, err = stopped(command.start("verify", cwd=tmp_path), 0.3, number)
    assert (code, err) == (status, f"fastgpt verify: {word}; nothing was done\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # of a background job, by nohup
def test_what_is_ignored_stays_ignored(tmp_path, number):
    ignoring = {"preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
    code, err = stopped(command.start("eval", cwd=tmp_path, **ignoring), 0.0, number)
    assert code == 2, err


@pytest.mark.needs("tiktoken", "rich")
def test_a_closed_terminal_saves(tmp_path):
    """SIGHUP comes, and nothing can be said any more."""
    master, terminal = os.openpty()
    (tmp_path / "a.txt").write_text("To be, or not to be. " * 50)
    argv = ["train", "--data", "a.txt", "--steps", "100000", "--tokenizer", "shakespeare", "--max-len", "16"]
    argv += ["--d-model", "16", "--n-layers", "1", "--n-heads", "2", "--device", "cpu", "--no-tensorboard"]
    environment = dict(os.environ, FASTGPT_CACHE=str(tmp_path / "cache"))
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = command.start(*argv, "--no-progress", cwd=tmp_path, env=environment, start_new_session=True, **streams)
    os.close(terminal)
    log, deadline = tmp_path / "runs" / "run" / "metrics.jsonl", time.monotonic() + 60
    try:
        while not (log.exists() and log.stat().st_size > 500):
            assert time.monotonic() < deadline
            assert process.poll() is None, os.read(master, 4096)
            time.sleep(0.02)
        os.close(master)
        process.send_signal(signal.SIGHUP)  # as the system does to what runs in a terminal
        assert process.wait(60) == 129
    finally:
        process.kill()
    steps = len(log.read_text().splitlines())
    assert [path.name for path in (tmp_path / "runs" / "run" / "checkpoints").iterdir()] == [f"step-{steps:08d}"]


CALL = """
import os, signal, sys, types
sys.argv, sys.modules["torch"] = ["fastgpt", "verify"], types.ModuleType("torch")  # which takes seconds to load
from fastgpt.commands import verify
def run(self):
    try:
        os.kill(os.getpid(), signal.{number})
    except KeyboardInterrupt:
        raise KeyboardInterrupt({kept}) from None
verify.Command.run = run
from fastgpt.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("number", "kept", "code", "line"),
    [
        ("SIGINT", "", 130, "fastgpt verify: interrupted; nothing was written\n"),
        ("SIGINT", "'the shards are intact'", 130, "fastgpt verify: interrupted; the shards are intact\n"),
        ("SIGTERM", "'the shards are intact'", 143, "fastgpt verify: terminated; the shards are intact\n"),
    ],
)
def test_a_command_says_what_it_kept(number, kept, code, line):
    program = CALL.format(number=number, kept=kept)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, line)


def test_ctrl_c_while_python_ends_is_no_traceback():
    """torch's operators take a second to go, which is long enough for an impatient one."""
    late = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    program = late + CALL.format(number="SIGINT", kept="")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "fastgpt verify: interrupted; nothing was written\n")


WORK = {
    "prepare": "prepare large.txt --tokenizer shakespeare --out tokens",
    "eval": "eval runs/tiny --data large.txt --batch-size 1",
    "sample": "sample runs/tiny hi --max-new-tokens 1000000 --no-stop-at-end",
    "plan": "plan gpt2-xl",
    "bench": "bench gpt2 --device cpu --steps 1000",
    "verify": "verify",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    tiny_model(vocab_size=4096).save_pretrained(folder / "runs" / "tiny")
    Tokenizer.named("shakespeare").save(folder / "runs" / "tiny")
    (folder / "large.txt").write_text("Now is the winter of our discontent. " * 1_000_000)
    return folder


@pytest.mark.parametrize("name", WORK)
def test_ctrl_c_at_work(here, name):
    before = sorted(here.rglob("*"))
    done = command.run(*WORK[name].split(), cwd=here, interrupt_after=0.7, XDG_CACHE_HOME=str(here / "cache"))
    assert done.code == 130, done
    assert done.err.startswith(f"fastgpt {name}: interrupted; "), done.err
    assert done.err.count("\n") == 1, done.err
    assert [path for path in sorted(here.rglob("*")) if path.name != "cache"] == before
