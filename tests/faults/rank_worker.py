"""One rank of a job under faults: what `torchrun` starts in place of `-m fastgpt`, the same but for what is planted.

    FAULTS='{"log": "<folder>", "faults": [...]}' torchrun ... -m tests.faults.rank_worker train ...

The product has no hooks for this: functions are wrapped from outside, and calls that change files are counted by the
shim (LD_PRELOAD).
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import shim

# Name of a moment -> the function that begins then; "step" and "save" by the number of the step, the others by how
# often it is called in this process.
FUNCTIONS = {
    "meeting": "fastgpt.parallel.launch:_met",
    "loading": "fastgpt.train.trainer:Trainer._load",
    "loaded": "fastgpt.train.checkpoint:set_rng",
    "step": "fastgpt.train.updates:Updates.begin_step",
    "collective": "fastgpt.parallel.world:World.gathered",
    "backward": "fastgpt.train.updates:Updates._share_of_all",
    "clip": "fastgpt.parallel.strategy:Strategy.clip",
    "optimizer": "fastgpt.train.updates:Updates._apply",
    "validation": "fastgpt.train.trainer:evaluate",
    "saving": "fastgpt.train.saver:Saver.save",
    "staging": "torch.distributed.checkpoint.staging:DefaultStager.stage",
    "planned": "fastgpt.train.sharded:Writer.write_data",
    "finishing": "fastgpt.train.sharded:Writer.finish",
    "pruning": "fastgpt.train.checkpoint:prune",
    "ending": "fastgpt.train.run_report:write_after",
}
CALLS = "calls"  # the moment of a fault that is the shim's
FOLDER = "folder"  # of a rank that runs in another folder, as on another machine


@dataclass(frozen=True)
class Fault:
    """What happens to one rank.

    rank, attempt  which, and after how many restarts
    moment, at     "step" 5, or as the `at`-th call of a function of `FUNCTIONS` begins; of "calls", the `at`-th call
                   that changes a file under `part`
    does           a signal that the rank gets; "launcher SIGTERM": its launcher; of "calls" the name of an errno too:
                   such calls fail from then on; of "folder" a path
    kinds, after   of "calls": which (of `shim.KINDS`), and whether the signal comes after it
    """

    rank: int
    attempt: int
    moment: str
    at: int
    does: str = "SIGKILL"
    kinds: tuple[str, ...] = shim.KINDS
    after: bool = False
    part: str = "checkpoints"

    @property
    def words(self) -> str:
        who = f"rank {self.rank}{f', restart {self.attempt}' if self.attempt else ''}"
        what = "+".join(self.kinds) if self.kinds != shim.KINDS else "call"
        where = f"{'after' if self.after else 'before'} {what} " if self.moment == CALLS else f"{self.moment} "
        return f"{self.does} of {who}: {where}{self.at}"


def plant(told: dict[str, Any]) -> None:
    """Plant what is meant for this rank at this attempt. `told`: {"log": folder, "faults": [fields of `Fault`]}."""
    rank, attempt = (int(os.environ[name]) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
    log = Path(told["log"])
    Path(log, f"pid-{attempt}-{rank}-{os.getpid()}").touch()
    plans = []
    part = "checkpoints"
    for number, fields in enumerate(told["faults"]):
        fault = Fault(**fields | {"kinds": tuple(fields["kinds"])})
        if (fault.rank, fault.attempt) != (rank, attempt):
            continue
        if fault.moment == FOLDER:
            os.chdir(fault.does)
            (log / f"struck-{number}").touch()
        elif fault.moment == CALLS:
            part = fault.part
            is_signal = fault.does.startswith("SIG")
            plans.append(
                shim.Plan(fault.kinds, fault.at, signal=fault.does, after=fault.after)
                if is_signal
                else shim.Plan(fault.kinds, fault.at, shim.EVER, error=fault.does)
            )
        else:
            _wrap(FUNCTIONS[fault.moment], fault, log / f"struck-{number}")
    if "LD_PRELOAD" in os.environ:
        calls = os.open(log / f"calls-{attempt}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        shim.arm(Path.cwd(), part, calls, plans)


def _wrap(function: str, fault: Fault, mark: Path) -> None:
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *way, name = path.split(".")
    for step in way:
        owner = getattr(owner, step)
    real: Callable[..., Any] = getattr(owner, name)
    seen = 0

    @functools.wraps(real)
    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen = args[0].step + 1 if fault.moment == "step" else seen + 1
        if seen == fault.at and not mark.exists():
            mark.touch()
            _strike(fault.does)
        return real(*args, **kwargs)

    setattr(owner, name, called)


def _strike(does: str) -> None:
    whom, _, name = does.rpartition(" ")
    os.kill(os.getppid() if whom else os.getpid(), getattr(signal, name))


def work(*argv: str) -> None:
    """`fastgpt *argv` in this process, which has been told of its faults."""
    sys.argv = ["fastgpt", *argv]
    plant(json.loads(os.environ["FAULTS"]))
    from fastgpt.cli import main

    raise SystemExit(main())


if __name__ == "__main__":
    work(*sys.argv[1:])
