"""Jobs of torchrun under faults, each in a few seconds: `Launcher.run`.

A server process has imported what every process of a job needs; for each job it forks torchrun's own launcher, and that
forks the ranks (torch elastic's start method for functions, where the command's is a new Python). All else is torch's:
rendezvous, the watching of ranks, restarts, the handling of signals. `fresh=True` starts real processes all the way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.command import status_of
from .rank_worker import Fault, work

_ROOT = Path(__file__).parents[2]
_SECONDS = 150  # a job that takes longer hangs
_MODULES = (
    "tyro torch torch._dynamo rich.progress rich.table safetensors.torch torch.distributed.run "
    "torch.distributed.fsdp torch.distributed.checkpoint torch.distributed.checkpoint.state_dict "
    "torch.nn.parallel.distributed fastgpt.cli fastgpt.commands.train fastgpt.train.sharded fastgpt.interop "
    "fastgpt.data.token_cache fastgpt.train.trainer fastgpt.study.small_models"
)


@dataclass(frozen=True)
class Done:
    """One job. code: of the launcher (-N: ended by signal N, None: it hung and was killed); err: what the ranks said,
    `log` the launcher; attempts: how often the ranks were started; seconds; orphans: ids of processes that outlived it;
    struck: the numbers of the faults that took place; calls: rank -> "kind path" of its calls, in the first attempt."""

    code: int | None
    out: str
    err: str
    log: str
    attempts: int
    seconds: float
    orphans: list[int]
    struck: list[int]
    calls: dict[int, list[str]]


class Launcher:
    """The server, from outside; one job at a time. library: the shim; None: no calls are counted."""

    def __init__(self, library: Path | None) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        preload = {} if library is None else {"LD_PRELOAD": str(library)}
        self._environment = os.environ | one | preload | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": str(_ROOT)}
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, argv: list[str], folder: Path, *faults: Fault, ranks: int = 2, restarts: int = 3, fresh: bool = False,
        torchrun: tuple[str, ...] = ("--standalone",), **env: str,
    ) -> Done:  # fmt: skip
        """`torchrun --nproc-per-node ranks --max-restarts restarts -m fastgpt *argv` in `folder`."""
        log = folder.with_name(f"{folder.name}-log")
        for number in range(10**6):
            if not (log / str(number)).exists():
                log = log / str(number)
                break
        log.mkdir(parents=True)
        told = {"log": str(log), "faults": [dataclasses.asdict(fault) for fault in faults]}
        words = [*torchrun, "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
        words += ["--monitor-interval", "0.1", "-m", "tests.faults.rank_worker", *argv]
        call = {
            "argv": words, "cwd": str(folder), "log": str(log),
            "env": {"FAULTS": json.dumps(told), "FASTGPT_CACHE": str(folder / "cache"), **env},
        }  # fmt: skip
        began = time.monotonic()
        code = _fresh(call, self._environment) if fresh else self._ask(call)
        seconds = time.monotonic() - began
        orphans = _left(str(log))
        calls = {}
        for rank in range(ranks):
            path = log / f"calls-0-{rank}"
            calls[rank] = path.read_text().splitlines() if path.exists() else []
        struck = [number for number, fault in enumerate(faults) if _is_struck(log, number, fault)]
        text = {name: (log / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")}
        err, launcher = _parted(text["err"])
        attempts = {path.name.split("-")[1] for path in log.glob("pid-*")}
        return Done(code, text["out"], err, launcher, len(attempts), seconds, orphans, struck, calls)

    def _ask(self, call: dict[str, Any]) -> int | None:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.rank_jobs"], cwd=_ROOT, env=self._environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(call) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()


def _fresh(call: dict[str, Any], environment: dict[str, str]) -> int | None:
    streams = {name: open(Path(call["log"], name), "w") for name in ("out", "err")}  # noqa: SIM115
    with streams["out"], streams["err"]:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *call["argv"]], cwd=call["cwd"],
            env=environment | call["env"], stdin=subprocess.DEVNULL, stdout=streams["out"], stderr=streams["err"],
        )  # fmt: skip
        try:
            return process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


def _is_struck(log: Path, number: int, fault: Fault) -> bool:
    calls = log / f"calls-{fault.attempt}-{fault.rank}"
    return (log / f"struck-{number}").exists() or (calls.exists() and "\n*" in "\n" + calls.read_text())


def _left(log: str) -> list[int]:
    """Processes of the job that still run; after a while, they are ended."""
    end = time.monotonic() + 5
    while (found := _running(log)) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _running(log: str) -> list[int]:
    found = []
    for path in Path(log).glob("pid-*"):
        pid = int(path.name.rpartition("-")[2])
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def _parted(text: str) -> tuple[str, str]:
    """What ranks have said on stderr, and what the launcher has: its log, its report of failures, its tracebacks."""
    ranks, launcher, is_launchers = [], [], False
    for line in text.splitlines():
        is_logged = re.match(r"[WEIC]\d{4} \d\d:.*[ /]torch/", line) is not None
        is_ours = line.startswith(("fastgpt", "restarted:", "step ", "SIG", "going on with"))
        # The launcher ends with a traceback of its own, which nothing of a rank follows.
        is_launchers = not is_ours and (is_launchers or line.startswith("Traceback"))
        (launcher if is_launchers or is_logged else ranks).append(line)
    return "\n".join(ranks), "\n".join(launcher)


# ---- inside ----------------------------------------------------------------------------------------------------


def serve() -> None:
    for module in _MODULES.split():
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        call = json.loads(line)
        child = os.fork()
        if child == 0:
            _launch(call)
        print(json.dumps(_ended(child)), file=answers, flush=True)


def _ended(child: int) -> int | None:
    end = time.monotonic() + _SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.02)


def _launch(call: dict[str, Any]) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(Path(call["log"], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdin = os.fdopen(0, encoding="utf-8")
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", 1, encoding="utf-8")
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        os.chdir(call["cwd"])
        os.environ.update(call["env"])
        from torch.distributed import run

        real = run.config_from_args

        def forking(args: Any) -> Any:
            config, _, _ = real(args)
            config.start_method = "fork"
            return config, work, args.training_script_args

        run.config_from_args = forking
        code = status_of(lambda: run.main(call["argv"]))
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
