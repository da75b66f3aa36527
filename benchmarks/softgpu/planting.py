"""Plant faults in the compiled kernels of the sample, one at a time: each must be found, or be redundant by argument.

python -m benchmarks.softgpu.planting                                       all; --write keeps the results
python -m benchmarks.softgpu.planting --kernel attention_dq --arch sm_90    a part of them
python -m benchmarks.softgpu.planting --kind barrier --per-kind 4           so many of a kind in a kernel, spread over it

A fault is "found" if the machine reports what it does not report without it; "wrong" if only the comparison with float64
fails; else it survives. A survivor for which `redundant.py` has no argument fails the run. Faults in instructions that
the case does not reach are left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import cases, redundant
from .engine import Settings
from .faults import KINDS, Fault, faults_of
from .trials import CAPABILITIES, Expected, Outcome, Trial, execute, expect

RESULT = Path(__file__).parents[1] / "results" / "softgpu-faults.md"

# One after the other until a fault is found: what is wrong in one order of warps may be right in another.
SETTINGS = (
    Settings(schedule="forward", landing="late"),
    Settings(schedule="backward", landing="early"),
    Settings(schedule="worst", landing="random", seed=1),
)


@dataclass(frozen=True)
class Verdict:
    """What became of a fault: "found", "wrong", "redundant" or "survives", and how that was seen (or is argued)."""

    kernel: str
    capability: int
    trial: str
    fault: Fault
    outcome: str
    how: str

    def __str__(self) -> str:
        return f"{self.outcome:9} sm_{self.capability} {self.kernel}: {self.fault}  [{self.how[:160]}]"


@dataclass(frozen=True)
class Kernel:
    """A kernel of a case as it was compiled: its text, the lines that some warp reached, what is found without faults."""

    name: str
    text: str
    reached: frozenset[int]
    known: frozenset[tuple[str, int]]
    seconds: float

    def faults(self) -> list[Fault]:
        return [fault for fault in faults_of(self.text) if fault.line in self.reached]


def kernels_of(trial: Trial, expected: Expected, capability: int) -> dict[str, Kernel]:
    """Those that the case launches. Of two texts for one kernel: the longer one."""
    outcome = execute(trial, expected, capability, SETTINGS[0])
    found: dict[str, Kernel] = {}
    for launch in outcome.launches:
        program, counts = launch.result.program, launch.result.counts
        lines = {r.line for r, row in zip(program.lowered.records, counts.tolist(), strict=True) if row[0]}
        known = {(finding.kind, finding.line) for finding in launch.result.findings}
        seconds, before = launch.result.seconds, found.get(launch.kernel)
        if before is not None and before.text == program.text:
            lines, known, seconds = lines | before.reached, known | before.known, seconds + before.seconds
        elif before is not None and len(before.text) > len(program.text):
            continue
        found[launch.kernel] = Kernel(launch.kernel, program.text, frozenset(lines), frozenset(known), seconds)
    return found


def plant(trial: Trial, expected: Expected, capability: int, kernel: Kernel, fault: Fault) -> Verdict:
    """Run the case with this fault in it, under one setting after the other."""
    planted = fault.planted(kernel.text)
    wrong = ""
    steps = max(1_000_000, 20 * int(1e7 * kernel.seconds))  # instructions; what hangs is not waited for
    for settings in SETTINGS:
        settings = replace(settings, max_steps=steps)
        outcome = execute(
            trial, expected, capability, settings,
            lambda name, text: planted if name == kernel.name and text == kernel.text else text,
        )  # fmt: skip
        new = [f for f in outcome.findings if (f.kind, f.line) not in kernel.known]
        if new:
            return Verdict(kernel.name, capability, trial.name, fault, "found", f"{new[0].kind}: {new[0].text}")
        wrong = wrong or _wrong_values(outcome)
    if wrong:
        return Verdict(kernel.name, capability, trial.name, fault, "wrong", wrong)
    argument = redundant.argument(kernel.name, capability, fault, kernel.text)
    verdict = "redundant" if argument else "survives"
    return Verdict(kernel.name, capability, trial.name, fault, verdict, argument or "no finding, right values")


def _wrong_values(outcome: Outcome) -> str:
    return next((str(verdict) for verdict in outcome.verdicts if not verdict.ok), "")


def spread(faults: Sequence[Fault], per_kind: int) -> list[Fault]:
    """At most `per_kind` of each kind (0: all), evenly from the first to the last."""
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    if not per_kind:
        return list(faults)
    return [
        group[number * len(group) // min(per_kind, len(group))]
        for group in kinds.values()
        for number in range(min(per_kind, len(group)))
    ]


def verdicts_of(name: str, capability: int, kernel_part: str, kind_part: str, per_kind: int) -> list[Verdict]:
    """Of one case on one GPU. Each kernel is tried in the case that `home_of` names."""
    torch.set_num_threads(1)
    trial = next(trial for trial in cases.trials() if trial.name == name)
    expected = expect(trial)
    found = []
    for kernel in kernels_of(trial, expected, capability).values():
        if kernel_part in kernel.name and redundant.home_of(kernel.name) in ("", trial.name):
            faults = [fault for fault in spread(kernel.faults(), per_kind) if kind_part in fault.kind]
            found += [plant(trial, expected, capability, kernel, fault) for fault in faults]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.softgpu.planting", description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", default="", metavar="PART", help="kernels whose name has this part")
    parser.add_argument("--arch", default="", choices=["", *(f"sm_{c}" for c in CAPABILITIES)], metavar="sm_80|sm_90")
    parser.add_argument("--kind", default="", metavar="PART", help="kinds of faults whose name has this part")
    parser.add_argument("--case", default="", metavar="PART", help="cases whose name has this part")
    parser.add_argument("--per-kind", type=int, default=6, help="faults of a kind in a kernel; 0: all (default: 6)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args(argv)

    start, verdicts = time.perf_counter(), []
    pairs = [
        (trial.name, capability)
        for trial in cases.trials()
        for capability in trial.capabilities
        if trial.sample and arguments.case in trial.name and arguments.arch in ("", f"sm_{capability}")
    ]
    with ProcessPoolExecutor(max(1, arguments.jobs)) as pool:
        options = arguments.kernel, arguments.kind, arguments.per_kind
        for done in as_completed([pool.submit(verdicts_of, *pair, *options) for pair in pairs]):
            for verdict in done.result():
                verdicts.append(verdict)
                if verdict.outcome != "found":
                    print(verdict, flush=True)
    seconds = time.perf_counter() - start
    print("\n".join(table(verdicts)))
    survive = sum(verdict.outcome == "survives" for verdict in verdicts)
    print(f"{len(verdicts)} faults planted, {survive} survive without an argument; {seconds:.0f} s")
    if arguments.write:
        RESULT.write_text("\n".join(page(verdicts, seconds, arguments.per_kind)) + "\n")
    return 1 if survive or not verdicts else 0


OUTCOMES = ("found", "wrong", "redundant", "survives")


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Kinds by outcomes."""
    counts = Counter((verdict.fault.kind, verdict.outcome) for verdict in verdicts)
    yield "| fault | planted | " + " | ".join(OUTCOMES) + " |"
    yield "|---|" + "---:|" * (1 + len(OUTCOMES))
    for kind in KINDS:
        of_kind = [counts[kind, outcome] for outcome in OUTCOMES]
        if any(of_kind):
            yield f"| {kind} | {sum(of_kind)} | " + " | ".join(map(str, of_kind)) + " |"
    total = [sum(verdict.outcome == outcome for verdict in verdicts) for outcome in OUTCOMES]
    yield f"| all | {sum(total)} | " + " | ".join(map(str, total)) + " |"


def page(verdicts: Sequence[Verdict], seconds: float, per_kind: int) -> Iterator[str]:
    """benchmarks/results/softgpu-faults.md."""
    yield "# Faults planted in compiled kernels"
    yield ""
    much = f"at most {per_kind} of a kind in each kernel" if per_kind else "all there is a place for"
    yield (
        f"`make softgpu-faults`: {much}, in the sample's cases for sm_80 and sm_90; {seconds / 60:.0f} minutes. found: by "
        "the machine, which says what is wrong and where. wrong: by the comparison with float64 alone. redundant: "
        "nothing changes, and benchmarks/softgpu/redundant.py says why."
    )
    yield ""
    yield from table(verdicts)
    yield from (
        "",
        "## By kernel",
        "",
        "| kernel | GPU | " + " | ".join(OUTCOMES) + " |",
        "|---|---|---:|---:|---:|---:|",
    )
    counts = Counter((v.kernel, v.capability, v.outcome) for v in verdicts)
    for kernel, capability in sorted({(v.kernel, v.capability) for v in verdicts}):
        figures = " | ".join(str(counts[kernel, capability, outcome]) for outcome in OUTCOMES)
        yield f"| {kernel} | sm_{capability} | {figures} |"
    yield from ("", "## How they were found", "", "| finding | faults |", "|---|---:|")
    found = Counter(verdict.how.split(":")[0] for verdict in verdicts if verdict.outcome == "found")
    yield from (f"| {kind} | {count} |" for kind, count in found.most_common())


if __name__ == "__main__":
    sys.exit(main())
