"""A process with the shim before libc and all modules imported, which forks for each case.

    python -m tests.faults.server           a line of JSON in: {"record": scenario} or a case; a line of JSON out

A case is: its scenario's folder, made anew; the run, disturbed; what is left, looked at; the run once more,
undisturbed; what is then there, compared with what an undisturbed run leaves.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import checks, shim
from .cases import SCENARIOS, Case, phase_of, write_texts

_ROOT = Path(__file__).parents[2]
_MODULES = (
    "tyro torch torch._dynamo rich.progress rich.table safetensors.torch tiktoken tensorboard.compat.proto.event_pb2 "
    "tensorboard.summary.writer.record_writer fastgpt.cli fastgpt.model.gpt fastgpt.train.trainer fastgpt.interop "
    "fastgpt.data.token_cache fastgpt.commands.train fastgpt.commands.prepare"
)
_SECONDS = 60  # a run that takes longer hangs


class Server:
    """The process, from outside. `ask` one thing at a time; `close` ends it."""

    def __init__(self, library: Path) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"], cwd=_ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | one | {"LD_PRELOAD": str(library), "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    def ask(self, what: dict[str, Any]) -> Any:
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server died at {what}")
        return json.loads(answer)

    def calls(self, scenario: str) -> list[tuple[str, str]]:
        """(kind, path) of every call of an undisturbed run."""
        return [tuple(call) for call in self.ask({"record": scenario})]

    def judge(self, case: Case) -> Verdict:
        return Verdict(**self.ask(dataclasses.asdict(case)) | {"case": case})

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """case, where its first fault struck, what is wrong (nothing: passed), seconds, what the run said on stderr."""

    case: Case
    phase: str
    problems: list[str]
    seconds: float
    err: str


# ---- inside ----------------------------------------------------------------------------------------------------


def serve() -> None:
    for module in _MODULES.split():
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    beside = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync costs nothing
    with tempfile.TemporaryDirectory(prefix="fastgpt-faults-", dir=beside) as folder:
        bench = Bench(Path(folder).resolve())
        for line in sys.stdin:
            asked = json.loads(line)
            answer = bench.record(asked["record"]) if "record" in asked else bench.judge(Case.from_dict(asked))
            print(json.dumps(answer), file=answers, flush=True)


class Bench:
    """Where cases are run: the scenarios' folders as they are before and after an undisturbed run."""

    def __init__(self, root: Path) -> None:
        self.root, self._number = root, 0

    def before(self, name: str) -> Path:
        """The folder of a scenario as a run of it finds it."""
        scenario, path = SCENARIOS[name], self.root / f"{name}-before"
        if not path.exists():
            path.mkdir()
            write_texts(path)
            for how in scenario.first:
                forked(how.run, path, self.root / "streams", moment=how.moment)
        return path

    def after(self, name: str) -> Path:
        """The same, after an undisturbed run."""
        path = self.root / f"{name}-after"
        if not path.exists():
            self.record(name)
        return path

    def record(self, name: str) -> list[list[str]]:
        path = self.root / f"{name}-after"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.before(name), path)
        done = forked(SCENARIOS[name].run, path, self.root / "streams", part=SCENARIOS[name].part)
        assert done.code == 0, done
        return [call.split(" ", 1) for call in done.calls]

    def judge(self, case: Case) -> dict[str, Any]:
        began = time.perf_counter()
        scenario = SCENARIOS[case.scenario]
        before, after = self.before(case.scenario), self.after(case.scenario)
        self._number += 1
        path = self.root / "case" / str(self._number) / "here"
        streams = path.with_name("streams")
        shutil.copytree(before, path)
        done = forked(
            scenario.run, path, streams, part=scenario.part, plans=case.plans, moment=case.moment, seconds=case.seconds
        )
        looked = checks.Look(scenario, case, done, before, path, after)
        problems = looked.at_the_end()
        again = forked(looked.again(), path, streams)
        problems += looked.once_more(again)
        struck = [call[1:].split(" ", 1) for call in done.calls if call.startswith("*")]
        phase = phase_of(*struck[0]) if struck else case.at
        shutil.rmtree(path.parent, ignore_errors=True)
        return {
            "phase": phase, "problems": problems, "seconds": time.perf_counter() - began, "err": done.err,
        }  # fmt: skip


def forked(
    work: Callable[[], int | None], folder: Path, streams: Path, *, part: str = "", plans: tuple[shim.Plan, ...] = (),
    moment: tuple[str, int, tuple[str, ...]] | None = None, seconds: tuple[float, str] | None = None,
) -> checks.Done:  # fmt: skip
    """`work` in a process of its own in `folder`: disturbed by `plans`, at a `moment` (a function, which of its calls,
    signals before it), or after so many `seconds` by a signal."""
    streams.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err", "calls"):  # not by the child, which may be killed before
        (streams / name).write_bytes(b"")
    child = os.fork()
    if child == 0:
        _child(work, folder, streams, part, plans, moment)
    timer = None
    if seconds is not None:
        timer = threading.Timer(seconds[0], lambda: _send(child, getattr(signal, seconds[1])))
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer is not None:
        timer.cancel()
    texts = [(streams / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err", "calls")]
    return checks.Done(os.waitstatus_to_exitcode(status), texts[0], texts[1], texts[2].splitlines())


def _send(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _child(
    work: Callable[[], int | None], folder: Path, streams: Path, part: str, plans: tuple[shim.Plan, ...],
    moment: tuple[str, int, tuple[str, ...]] | None,
) -> None:  # fmt: skip
    code = 70
    try:
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)
        atexit._clear()  # the server's; what the work registers runs at its end
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(streams / name, os.O_WRONLY), number)
        log = os.open(streams / "calls", os.O_WRONLY | os.O_APPEND)
        sys.stdin = os.fdopen(0, encoding="utf-8")
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", 1, encoding="utf-8")
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        os.chdir(folder)
        os.environ["FASTGPT_CACHE"] = str(folder / "cache")
        if moment is not None:
            _at(*moment)
        shim.arm(folder, part, log, list(plans))
        try:
            code = work() or 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _at(function: str, which: int, signals: tuple[str, ...]) -> None:
    """Send `signals` to this process as the `which`-th call of `function` ("module:Class.name") begins."""
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *way, name = path.split(".")
    for step in way:
        owner = getattr(owner, step)
    real, seen = getattr(owner, name), 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == which:
            for number in signals:
                os.kill(os.getpid(), getattr(signal, number))
        return real(*args, **kwargs)

    setattr(owner, name, called)


if __name__ == "__main__":
    serve()
