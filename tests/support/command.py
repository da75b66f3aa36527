"""The installed command `fastgpt`, as a user types it: a process of its own for each call, in a few milliseconds.

    done = command.run("train", "--steps", "0", cwd=tmp_path)
    done.code, done.out, done.err

A server process imports once what every call needs, and forks for each: the child has its own folder, environment and
streams, and runs the function behind the console script. What depends on how Python itself starts (Ctrl-C while modules
are imported, LC_ALL=C) must start a real process: `command.start`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(sys.executable).with_name("fastgpt")
_ROOT = Path(__file__).parents[2]
_lock = threading.Lock()


@dataclass(frozen=True)
class Done:
    """Exit status (-N: ended by signal N), what was written to stdout and stderr."""

    code: int
    out: str
    err: str


def run(
    *argv: str, cwd: str | os.PathLike[str], stdin: str | None = None, timeout: float = 60.0,
    interrupt_after: float | None = None, **env: str | None,
) -> Done:  # fmt: skip
    """`fastgpt *argv` in folder `cwd`; no stdin unless given; `env` replaces (None: removes) environment variables.
    Ctrl-C comes `interrupt_after` seconds, if given."""
    with tempfile.TemporaryDirectory() as folder:
        if stdin is not None:
            Path(folder, "in").write_text(stdin, encoding="utf-8")
        call = {"argv": argv, "cwd": str(cwd), "env": env, "folder": folder, "stdin": stdin is not None}
        with _lock:
            server = _server()
            server.stdin.write(json.dumps(call | {"timeout": timeout, "interrupt_after": interrupt_after}) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err"))
    assert code != -signal.SIGALRM, f"fastgpt {' '.join(argv)}: not done after {timeout} s\n{out}\n{err}"
    return Done(code, out, err)


def start(*argv: str, cwd: str | os.PathLike[str], **options: Any) -> subprocess.Popen[str]:
    """The console script in a process that starts from nothing, stdout and stderr piped."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, str(SCRIPT), *argv], cwd=cwd, text=True, **(pipes | options))


@functools.cache
def _server() -> subprocess.Popen[str]:
    # Threads do not survive a fork: one each, so that libraries start none.
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.command"], cwd=_ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def _serve() -> None:
    import importlib

    modules = "tyro torch torch._dynamo rich.progress rich.table safetensors.torch fastgpt.cli fastgpt.model.gpt"
    for module in modules.split():  # torch._dynamo: an optimizer imports it
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        call = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(call)
        if call["interrupt_after"] is not None:
            time.sleep(call["interrupt_after"])
            os.kill(child, signal.SIGINT)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _child(call: dict[str, Any]) -> None:
    folder = Path(call["folder"])
    signal.setitimer(signal.ITIMER_REAL, call["timeout"])
    streams = (os.open(folder / "in" if call["stdin"] else os.devnull, os.O_RDONLY),)
    streams += tuple(os.open(folder / name, os.O_WRONLY | os.O_CREAT) for name in ("out", "err"))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    encoding = call["env"].get("PYTHONIOENCODING", "utf-8")
    sys.stdin = os.fdopen(0, encoding=encoding)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding=encoding), os.fdopen(2, "w", 1, encoding=encoding)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.chdir(call["cwd"])
    for name, value in call["env"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = ["fastgpt", *call["argv"]]
    from fastgpt.cli import main

    os._exit(status_of(lambda: sys.exit(main())))


def status_of(call: Callable[[], object]) -> int:
    """What a process that makes this call ends with; all that it has said is written."""
    code = 0
    try:
        call()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
