"""Execute every case on every GPU under every kind of schedule, and write down what came out.

python -m benchmarks.softgpu                                    all cases; --write keeps benchmarks/results/softgpu.md
python -m benchmarks.softgpu --arch sm_90 --family ffn          a part of them
python -m benchmarks.softgpu --case "d64 long" --schedule worst
python -m benchmarks.softgpu --quick                            each case once on each GPU, warps in order

A line a case and GPU; the exit status is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import torch

from . import cases, table
from .counting import KernelCounts, counts_of
from .engine import SCHEDULES, Settings, machine
from .trials import CAPABILITIES, Trial, execute, expect

# Schedules, landings of asynchronous copies and errors of special functions, so that each meets each other somewhere.
CONFIGURATIONS = (
    Settings(schedule="forward", landing="late", approx=0),
    Settings(schedule="backward", landing="late", approx=1),
    Settings(schedule="turns", landing="early", approx=-1),
    Settings(schedule="random", landing="random", approx=2, seed=1),
    Settings(schedule="worst", landing="late", approx=0, seed=2),
    Settings(schedule="worst", landing="random", approx=2, seed=3),
)


@dataclass
class Run:
    """One execution of a case: `used` is its largest error in units of its limit, `accepted` a number of findings."""

    settings: Settings
    used: float
    problems: list[str]
    races: int
    accepted: int
    steps: int
    seconds: float


@dataclass
class Cell:
    """A case on one GPU: its executions, what each kernel did in the first of them, the bytes of the call's tensors."""

    family: str
    name: str
    capability: int
    runs: list[Run] = field(default_factory=list)
    kernels: list[KernelCounts] = field(default_factory=list)
    nbytes: int = 0
    error: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.error and not any(run.problems for run in self.runs)

    @property
    def used(self) -> float:
        return max((run.used for run in self.runs), default=0.0)

    def __str__(self) -> str:
        verdict = "ok   " if self.ok else "WRONG"
        steps = sum(run.steps for run in self.runs)
        figures = f"{len(self.runs)} runs, error {self.used:.2f} of the limit, {steps / 1e6:.1f} M instructions"
        return f"{verdict} sm_{self.capability}  {self.name:64} {figures}, {self.seconds:.1f} s"

    def problems(self) -> Iterator[str]:
        """Each once, with the first settings that show it."""
        if self.error:
            yield self.error
        seen = set()
        for run in self.runs:
            for problem in run.problems:
                if problem not in seen:
                    seen.add(problem)
                    yield f"[{table.described(run.settings)}] {problem}"


def cell_of(name: str, capability: int, configurations: Sequence[Settings]) -> Cell:
    """Run one case on one GPU under all these settings. An exception ends the case, and is its result."""
    torch.set_num_threads(1)
    trial = _by_name()[name]
    cell, start = Cell(trial.family, trial.name, capability), time.perf_counter()
    try:
        expected = expect(trial)
        cell.nbytes = expected.nbytes
        for settings in configurations:
            began = time.perf_counter()
            outcome = execute(trial, expected, capability, settings)
            results = [launch.result for launch in outcome.launches]
            races = sum(finding.kind.startswith("race") for finding in outcome.findings)
            steps, seconds = sum(result.steps for result in results), time.perf_counter() - began
            cell.runs.append(
                Run(settings, outcome.used, outcome.problems, races, len(outcome.accepted), steps, seconds)
            )
            if not cell.kernels:
                cell.kernels = [counts_of(result) for result in results]
    except Exception as error:
        cell.error = f"{type(error).__name__}: {error}"
    cell.seconds = time.perf_counter() - start
    return cell


@functools.cache
def _by_name() -> dict[str, Trial]:
    return {trial.name: trial for trial in cases.trials()}


def chosen(arguments: argparse.Namespace) -> tuple[list[tuple[str, int]], list[Settings]]:
    """(case, capability) pairs, and the settings to run each of them under."""
    wanted = [int(arguments.arch.removeprefix("sm_"))] if arguments.arch else CAPABILITIES
    pairs = [
        (trial.name, capability)
        for trial in cases.trials()
        for capability in wanted
        if capability in trial.capabilities and arguments.family in ("", trial.family) and arguments.case in trial.name
    ]
    configurations = [s for s in CONFIGURATIONS if arguments.schedule in ("", s.schedule)]
    return pairs, configurations[:1] if arguments.quick else configurations


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.softgpu", description=__doc__.split("\n")[0])
    families = sorted({trial.family for trial in cases.trials()})
    parser.add_argument("--family", default="", choices=["", *families], metavar="|".join(families))
    parser.add_argument(
        "--arch", default="", choices=["", *(f"sm_{c}" for c in CAPABILITIES)], metavar="sm_80|sm_90|sm_100"
    )
    parser.add_argument("--case", default="", metavar="PART", help="cases whose name has this part")
    parser.add_argument("--schedule", default="", choices=["", *SCHEDULES], metavar="|".join(SCHEDULES))
    parser.add_argument("--quick", action="store_true", help="each case once on each GPU")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--write", action="store_true", help=f"write {table.RESULT.name}")
    arguments = parser.parse_args(argv)

    pairs, configurations = chosen(arguments)
    if not pairs:
        print("no case has this name, family and architecture")
        return 2
    if arguments.write and (len(configurations) < len(CONFIGURATIONS) or len(pairs) < _num_pairs()):
        print("--write keeps the whole matrix: leave --family, --arch, --case, --schedule and --quick out")
        return 2
    machine()  # built here, once: what does not compile is no case's fault
    start, cells = time.perf_counter(), []
    with ProcessPoolExecutor(max(1, arguments.jobs)) as pool:
        running = [pool.submit(cell_of, *pair, configurations) for pair in pairs]
        for number, done in enumerate(as_completed(running), 1):
            cells.append(done.result())
            print(f"{number:4}/{len(running)} {cells[-1]}", flush=True)
            for problem in cells[-1].problems():
                print(f"          {problem}", flush=True)
    bad = sum(not cell.ok for cell in cells)
    seconds = time.perf_counter() - start
    print(f"{len(cells)} cases on a GPU, {sum(len(c.runs) for c in cells)} runs, {bad} wrong; {seconds:.0f} s")
    if arguments.write:
        order = {pair: place for place, pair in enumerate(pairs)}
        cells.sort(key=lambda cell: order[cell.name, cell.capability])
        table.write(cells, configurations, seconds)
    return 1 if bad else 0


def _num_pairs() -> int:
    return sum(len(trial.capabilities) for trial in cases.trials())
