"""Jobs of several ranks (torchrun, gloo on a CPU) under faults: ranks killed at seeded moments, stopped jobs, ranks
that hang, full disks.

python -m tests.faults.ranks               all; prints a table (--write: into benchmarks/results/faults-ranks.md)
python -m tests.faults.ranks --only "staging"
python -m tests.faults.ranks --fresh       each process a new Python, as the command torchrun starts them
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastgpt.base import files
from fastgpt.model.formats import sharded
from fastgpt.model.formats.tensor_file import dtype_of
from fastgpt.train import checkpoint

from . import checks, rank_troubles, shim
from .rank_jobs import Done, Launcher
from .rank_troubles import TROUBLES, Trouble
from .rank_worker import CALLS, Fault

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "faults-ranks.md"
STEPS = 8
OPTIONS = [
    "train", "--data", "a.txt", "--val-fraction", "0.2", "--tokenizer", "shakespeare", "--n-layers", "2", "--n-heads",
    "2", "--d-model", "16", "--max-len", "16", "--batch-size", "2", "--steps", str(STEPS), "--save-every", "2",
    "--eval-every", "3", "--dropout", "0.1", "--no-tensorboard", "--device", "cpu", "--name", "a",
]  # fmt: skip
PATIENT = ["--timeout", "90"]  # of jobs in which nobody is to wait so long
TEXT = "To be, or not to be, that is the question. " * 40


@dataclass(frozen=True)
class Case:
    """A job under faults. what: a row of the table; strategy: "ddp" or "fsdp"; faults: each ends a rank, which the
    launcher then starts anew, or stops the job; status: of the launcher, when it is not to make it good itself."""

    what: str
    strategy: str
    faults: tuple[Fault, ...]
    stops: bool = False

    @property
    def name(self) -> str:
        return f"{self.strategy}: {self.what}: {', then '.join(fault.words for fault in self.faults)}"


# What of a job is struck: in which moments of `rank_worker.FUNCTIONS`, of which rank (None: drawn), between which
# numbers. Steps are those between checkpoints and at them.
KILLS: list[tuple[str, str, int | None, int, int]] = [
    ("between steps", "step", 0, 2, 8),
    ("between steps", "step", 1, 2, 8),
    ("inside a step's collectives", "backward", None, 2, 8),
    ("inside a step's collectives", "clip", None, 2, 8),
    ("inside a step's collectives", "collective", 0, 2, 18),
    ("inside a step's collectives", "collective", 1, 2, 18),
    ("before the optimizer", "optimizer", None, 2, 8),
    ("during validation", "validation", 0, 1, 3),
    ("during validation", "validation", 1, 1, 2),
    ("as a save begins", "saving", None, 1, 4),
    ("while a checkpoint is copied", "staging", 0, 1, 4),
    ("while a checkpoint is copied", "staging", 1, 1, 4),
    ("while files are written", "planned", None, 1, 4),
    ("before the checkpoint is whole", "finishing", 0, 1, 4),
    ("as old checkpoints go", "pruning", 0, 1, 3),
]


def kills(calls: dict[int, list[str]], seed: int) -> list[Case]:
    """Twenty moments, drawn. calls: rank -> its calls that change checkpoints in an undisturbed run."""
    draw = random.Random(seed)
    cases = []

    def add(what: str, *faults: Fault) -> None:
        cases.append(Case(what, ("ddp", "fsdp")[len(cases) % 2], faults))

    for what, moment, rank, least, most in KILLS:
        add(what, Fault(draw.randrange(2) if rank is None else rank, 0, moment, draw.randint(least, most)))
    for rank in (0, 1):
        number, after = draw.randint(1, len(calls[rank])), draw.random() < 0.5
        add("at a call that writes", Fault(rank, 0, CALLS, number, after=after))
    renames = [call for call in calls[0] if call.startswith("rename ")]
    number = draw.randrange(len(renames)) + 1
    add("between files and rename", Fault(0, 0, CALLS, number, kinds=("rename",)))
    add("after the rename", Fault(0, 0, CALLS, number, kinds=("rename",), after=True))
    first = Fault(draw.randrange(2), 0, "step", draw.randint(4, 8))
    add("during the restart", first, Fault(draw.randrange(2), 1, draw.choice(["meeting", "loading", "loaded"]), 1))
    return cases


def stops(seed: int) -> list[Case]:
    """The launcher is told to end, twice in each run: a preempted node, Ctrl-C."""
    draw = random.Random(seed)
    found = []
    for name, strategy in (("SIGTERM", "ddp"), ("SIGINT", "fsdp")):
        rank, steps = draw.randrange(2), (draw.randint(2, 4), draw.randint(6, 8))
        faults = tuple(Fault(rank, 0, "step", step, does=f"launcher {name}") for step in steps)
        found.append(Case(f"{name} to the launcher, twice", strategy, faults, stops=True))
    return found


@dataclass(frozen=True)
class Verdict:
    """A case, what is wrong (nothing: passed), seconds, and all that was said."""

    case: Case | Trouble
    problems: list[str]
    seconds: float
    said: str


class Bench:
    """Where cases are run, beside undisturbed runs of the same."""

    def __init__(self, folder: Path, library: Path | None, *, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh
        self.launcher = Launcher(library)
        self._whole: dict[str, Done] = {}
        self._number = 0

    def new(self) -> Path:
        """A folder with the text."""
        self._number += 1
        path = self.folder / str(self._number)
        path.mkdir()
        (path / "a.txt").write_text(TEXT)
        return path

    def reference(self, strategy: str) -> Path:
        """The folder of an undisturbed run."""
        path = self.folder / strategy
        if strategy not in self._whole:
            self.new().rename(path)
            done = self.launcher.run([*OPTIONS, *PATIENT, "--strategy", strategy], path)
            assert done.code == 0, (done.err, done.log)
            self._whole[strategy] = done
        return path

    def calls(self) -> dict[int, list[str]]:
        """rank -> its calls that change checkpoints in an undisturbed run."""
        self.reference("fsdp")
        return self._whole["fsdp"].calls

    def judge(self, case: Case) -> Verdict:
        began = time.monotonic()
        reference, folder = self.reference(case.strategy), self.new()
        options = [*OPTIONS, *PATIENT, "--strategy", case.strategy]
        if case.stops:
            problems, said = self._stopped(case, folder, options)
        else:
            done = self.launcher.run(options, folder, *case.faults, fresh=self.fresh)
            problems, said = looked(done, len(case.faults)), f"{done.err}\n{done.log}"
        problems += compared(folder / "runs" / "a", reference / "runs" / "a")
        return Verdict(case, problems, time.monotonic() - began, said)

    def _stopped(self, case: Case, folder: Path, options: list[str]) -> tuple[list[str], str]:
        """Stopped as often as there are faults, each time gone on with, and then to the end."""
        problems, said = [], ""
        for number, fault in enumerate([*case.faults, None]):
            faults = [] if fault is None else [fault]
            done = self.launcher.run(options + ["--resume"] * (number > 0), folder, *faults, fresh=self.fresh)
            said += f"{done.out}\n{done.err}\n{done.log}\n"
            found = looked(done, len(faults), attempts=1, ends=not faults)
            if fault is not None:
                newest = checkpoint.latest(folder / "runs" / "a" / "checkpoints")
                at = 0 if newest is None else checkpoint.step_of(newest)
                if at not in (fault.at - 1, fault.at, fault.at + 1):  # of the step that is told of, or the next
                    found.append(f"step {at} is saved, and the signal came before step {fault.at}")
                if f"stopped by {fault.does.split()[1]}" not in done.out:
                    found.append("nothing says by what it was stopped")
            problems += [f"run {number + 1}: {problem}" for problem in found]
        return problems, said

    def troubled(self, trouble: Trouble) -> Verdict:
        """Of a job that cannot go on."""
        began = time.monotonic()
        reference, folder = self.reference("fsdp"), self.new()
        rank_troubles.copied(reference, folder)
        held = None if trouble.prepare is None else trouble.prepare(folder)
        before = checks.contents(folder / "runs" / "a")
        options = [*OPTIONS, "--strategy", "fsdp", *trouble.words]
        faults = () if trouble.fault is None else (trouble.fault,)
        with held or contextlib.nullcontext():
            done = self.launcher.run(options, folder, *faults, restarts=0, fresh=self.fresh)
        name = options[len(options) - options[::-1].index("--name")]
        problems = rank_troubles.told(trouble, done) + rank_troubles.kept(folder, before, name)
        said = f"{done.out}\n{done.err}\n{done.log}"
        if trouble.again:
            done = self.launcher.run([*options, *PATIENT, "--resume"], folder)
            problems += looked(done, 0) + compared(folder / "runs" / name, reference / "runs" / "a")
            said += f"{done.out}\n{done.err}\n{done.log}"
        return Verdict(trouble, problems, time.monotonic() - began, said)

    def close(self) -> None:
        self.launcher.close()


def looked(done: Done, faults: int, *, attempts: int | None = None, ends: bool = True) -> list[str]:
    """What is wrong with how a job ended that had so many faults; `ends`: it was to get to its end."""
    found = [f"fault {number} was not reached" for number in range(faults) if number not in done.struck]
    if done.code is None:
        found.append("it hung")
    elif ends and done.code:
        found.append(f"exit status {done.code}")
    elif not ends and not done.code:
        found.append("exit status 0")
    if done.attempts != (1 + faults if attempts is None else attempts):
        found.append(f"the ranks were started {done.attempts} times")
    if done.orphans:
        found.append(f"{len(done.orphans)} processes outlived it")
    if "Traceback" in done.err:
        found.append("a traceback")
    errors = [line for line in done.err.splitlines() if line.startswith("fastgpt train: error: ")]
    if len(errors) > faults:
        found.append(f"{len(errors)} errors are told of {faults} faults")
    return found


_UNFINISHED = re.compile(r"/\.(writing|replaced|fastgpt|tmp|overwrit)|set-aside")


def compared(run: Path, reference: Path) -> list[str]:
    """In what a run differs from an undisturbed one: the newest checkpoint's bits, metrics.jsonl, the files."""
    found = [f"left behind: {name}" for name in checks.names(run) if _UNFINISHED.search(f"/{name}")]
    newest = checkpoint.latest(reference / "checkpoints")
    assert newest is not None
    for path in checkpoint.all_checkpoints(run / "checkpoints"):
        try:
            checkpoint.verify(path)
        except checkpoint.CheckpointError as error:
            found.append(f"not whole: {error}")
    ours, theirs = (_contents(root / "checkpoints" / newest.name) for root in (run, reference))
    if ours != theirs:
        differ = sorted(what for what in ours.keys() | theirs.keys() if ours.get(what) != theirs.get(what))
        found.append(f"the last checkpoint is not that of an undisturbed run: {', '.join(differ[:5])}")
    lines, others = (checks.lines(root / "metrics.jsonl") for root in (run, reference))
    if lines != others:
        found.append(f"metrics.jsonl is not that of an undisturbed run: {checks.difference(lines, others)}")
    extra = checks.names(run) ^ checks.names(reference)
    if extra:
        found.append(f"files too many or too few: {', '.join(sorted(extra)[:5])}")
    try:
        with files.locked(run):
            pass
    except OSError as error:
        found.append(f"the lock is not free: {error}")
    return found


def _contents(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds: its tensors, whichever rank wrote them (torch deals them out anew in each job), and the
    rest, but for which job wrote it and what is measured by the clock."""
    if not folder.is_dir():
        return {}
    kinds = sharded.stored(folder).items()
    stored = {name: torch.empty(shape, dtype=dtype_of(dtype)) for name, (dtype, *shape) in kinds}
    sharded.read_into(folder, stored)
    state = json.loads((folder / "training.json").read_text())
    state.pop("job", None)
    state["settings"] |= {"name": "", "timeout": 0}
    state["owed"]["lines"] = [
        {k: v for k, v in line.items() if k not in checks.TIMES} for line in state["owed"].get("lines", [])
    ]
    others = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    del others["checksums.json"]  # of the files' bytes
    return {k: v.numpy().tobytes() for k, v in stored.items()} | others | {"training.json": state}


HEADING = """\
# Faults of several ranks

Jobs of `torchrun --nproc-per-node 2 --max-restarts 3 -m fastgpt train` (gloo, CPU): a rank is ended by `kill -9` at a
moment that is drawn, and the job comes back by itself from its last whole checkpoint; or the launcher is told to end,
and the same command goes on with `--resume`. Each must end with the bits of an undisturbed run in weights, moments and
random states, with its lines of metrics.jsonl but for what the clock measures, with its files and no other, and with no
process left. What cannot go on ends with one line, on rank 0, and nothing lost. Written by `make faults-ranks`; the
moments are in `tests/faults/ranks.py`.

{passed} of {cases} passed; seed {seed}, {seconds:.0f} s; {date}, commit {commit}, Python {python}, torch {torch}.

"""


def table(verdicts: Iterable[Verdict]) -> str:
    """Markdown: a line for each case."""
    lines = ["| moment | strategy | what happens | result |", "|---|---|---|---|"]
    for verdict in verdicts:
        case = verdict.case
        if isinstance(case, Trouble):
            strategy, words, good = (
                "fsdp",
                case.fault.words if case.fault else shlex.join(case.words),
                "told, in one line",
            )
        else:
            strategy, words = case.strategy, ", then ".join(fault.words for fault in case.faults)
            good = "the bits of an undisturbed run"
        lines.append(f"| {case.what} | {strategy} | {words} | {'; '.join(verdict.problems) or good} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.faults.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", metavar="SUBSTR", help="only cases whose name contains this")
    parser.add_argument("--fresh", action="store_true", help="each process a new Python, as torchrun starts them")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    if why := shim.missing():
        parser.error(why)
    began = time.time()
    beside = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where fsync costs nothing
    with tempfile.TemporaryDirectory(prefix="fastgpt-ranks-", dir=beside) as name:
        folder = Path(name).resolve()
        bench = Bench(folder, shim.build(folder), fresh=args.fresh)
        every = [*kills(bench.calls(), args.seed), *stops(args.seed), *TROUBLES]
        cases = [case for case in every if args.only in case.name]
        if not cases:
            parser.error(f"no case's name contains {args.only!r}")
        verdicts = []
        for case in cases:
            verdict = bench.troubled(case) if isinstance(case, Trouble) else bench.judge(case)
            verdicts.append(verdict)
            result = "; ".join(verdict.problems) or "passed"
            print(f"{case.name} [{verdict.seconds:.0f} s]: {result}", flush=True)
            if verdict.problems:
                print("    " + verdict.said.strip().replace("\n", "\n    "), flush=True)
        bench.close()
    passed, seconds = sum(not verdict.problems for verdict in verdicts), time.time() - began
    print(f"{passed} of {len(cases)} passed, {seconds:.0f} s")
    if args.write:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True)
        heading = HEADING.format(
            cases=len(cases), passed=passed, seed=args.seed, seconds=seconds, date=time.strftime("%Y-%m-%d"),
            commit=commit.stdout.strip() or "unknown", python=platform.python_version(), torch=torch.__version__,
        )  # fmt: skip
        RESULT.write_text(heading + table(verdicts))
    return 0 if passed == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
