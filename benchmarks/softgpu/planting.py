"""Plant faults in the compiled kernels of the sample, one at a time: each must be found, or be redundant by argument.

python -m benchmarks.softgpu.planting                                     all; --write keeps the results
python -m benchmarks.softgpu.planting --kernel attention_dq --arch sm_90  a part of them
python -m benchmarks.softgpu.planting --kind swizzle --per-kind 4         so many of a kind in a kernel, spread over it

A fault is "found" if the machine reports what it does not report without it; "wrong" if only the comparison with
float64 fails; else it survives. A survivor for which `redundant.py` has no argument fails the run. Faults are left out
where the case does not reach them: an instruction that no warp executes, a predicate that is always true.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from . import attention_cases, cases, redundant
from .counting import EXECUTED, LANES
from .engine import Program, Result, Settings, machine
from .faults import KINDS, ORDER, Fault, faults_of
from .lower import Record
from .paths import Way
from .trials import CAPABILITIES, Expected, Outcome, Trial, execute, expect

RESULT = Path(__file__).parents[1] / "results" / "softgpu-faults.md"
TABLE = (80, 90)  # the GPUs that it is about

# The cases in which each kernel gets its faults. The first is small, but goes round every loop more often than that has
# stages; the others launch the same text, and are for what the first does not see: other branches, other values.
_SHARP = [label for label, _, _ in attention_cases.SHARP]
_ATTENTION = tuple(f"attention bf16 d64 sharp scores, {label}" for label in _SHARP)
_HOPPER = tuple(f"hopper bf16 d64 sharp scores, {label}" for label in _SHARP)
_LOSS = "linear_cross_entropy bf16 mean"
_LOSS_AGAIN = (
    "linear_cross_entropy bf16 GPT-2's vocabulary, each row",
    "linear_cross_entropy bf16 GPT-2's vocabulary, each row, one great logit",
)
HOMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((f"attention_{part}_kernel" for part in ("forward", "delta", "dkdv", "dq")), _ATTENTION),
    "hopper_forward_kernel": (*_HOPPER, f"hopper bf16 d64 {attention_cases.LATER}"),
    **dict.fromkeys((f"hopper_{part}_kernel" for part in ("dkdv", "dq")), _HOPPER),
    "document_ranges_kernel": ("document_ranges fp32 of queries",),
    "online_softmax_kernel": ("ladder bf16 triton_forward",),
    "causal_tiles_kernel": ("ladder bf16 tile_skipping",),
    "attention_weights_kernel": ("attention_weights bf16 d128 heads and rows, window",),
    "layer_norm_forward_kernel": ("layer_norm fp32 37 x 768",),
    "layer_norm_forward_held_kernel": ("layer_norm fp32 2 x 33001, forward holds its rows",),
    "layer_norm_forward_long_kernel": ("add_layer_norm fp32 2 x 16500, dropout, long rows",),
    "layer_norm_backward_kernel": ("layer_norm fp32 19000 x 24, three tiles of rows a program",),
    "layer_norm_backward_held_kernel": ("add_layer_norm fp32 200 x 4500, backward holds its rows, three a program",),
    "layer_norm_dh_long_kernel": ("add_layer_norm fp32 2 x 16500, dropout, long rows",),
    "layer_norm_dweight_long_kernel": ("layer_norm fp32 70 x 13000, weight's sums apart",),
    "sum_partials_kernel": ("layer_norm fp32 37 x 768",),
    **dict.fromkeys(("up_kernel", "dgelu_kernel"), ("ffn bf16 d320, several tiles a program",)),
    **dict.fromkeys(("finish_kernel", "prepare_grad_kernel"), ("ffn bf16 d64 tanh, residual, dropout",)),
    **dict.fromkeys(("gelu_kernel", "dgelu_pass_kernel"), ("ffn bf16 d128 by cuBLAS",)),
    "count_targets_kernel": ("check_targets fp32 in range or not",),
    "loss_and_gradient_kernel": (_LOSS, "linear_cross_entropy bf16 one great logit a row"),
    "scale_kernel": (_LOSS,),
    **dict.fromkeys(("loss_kernel", "gradient_kernel"), _LOSS_AGAIN),
}

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
class Home:
    """A case that launches the kernel with the text that faults are planted in, and what it finds without any.

    steps  instructions of all warps, in the longest launch
    """

    trial: Trial
    expected: Expected
    known: frozenset[tuple[str, int]]
    steps: int


@dataclass(frozen=True)
class Kernel:
    """A kernel as its first home has it compiled.

    homes    the cases that launch this text, the first one first
    reached  lines that some warp executed
    guarded  those of them whose predicate was false for some lane
    taken    the ways that some lane went at conditional branches
    """

    name: str
    capability: int
    text: str
    homes: tuple[Home, ...]
    reached: frozenset[int]
    guarded: frozenset[int]
    taken: frozenset[Way]

    def faults(self) -> list[Fault]:
        return [
            fault
            for fault in faults_of(self.text)
            if fault.line in (self.guarded if fault.kind == "predicate removed" else self.reached)
        ]


class Seen(NamedTuple):
    """Of launches: a Kernel's `reached`, `guarded` and `taken`."""

    reached: set[int]
    guarded: set[int]
    taken: set[Way]


def _seen(results: Iterable[Result]) -> Seen:
    seen = Seen(set(), set(), set())
    for result in results:
        for block in _blocks(result.program):
            rows = [(record, result.counts[record.pc].tolist()) for record in block]
            came = {row[LANES] for record, row in rows if record.pred < 0}  # lanes that came to this block
            seen.reached.update(record.line for record, row in rows if row[EXECUTED])
            seen.guarded.update(record.line for record, row in rows if record.pred >= 0 and {row[LANES]} != came)
            for record, row in rows:
                if record.key.startswith("bra") and record.pred >= 0:
                    ways = (True, row[LANES] > 0), (False, any(lanes > row[LANES] for lanes in came))
                    seen.taken.update((record.line, taken) for taken, was in ways if was)
    seen.guarded.intersection_update(seen.reached)
    return seen


def compiled(name: str, capability: int) -> Kernel:
    """The kernel of this name as its homes launch it; of two texts of the first home, the longer one.

    Reached lines and predicates are those of the first: the others tell of branches.

    Raises:
        ValueError: the first home does not launch it; a home gives wrong values without any fault.
    """
    text, homes, seen = "", [], Seen(set(), set(), set())
    for trial in _trials(HOMES[name]):
        expected = expect(trial)
        outcome = execute(trial, expected, capability, SETTINGS[0])
        if wrong := _wrong_values(outcome):
            raise ValueError(f"{trial.name} is wrong without faults: {wrong}")
        results = [launch.result for launch in outcome.launches if launch.kernel == name]
        if not homes:
            if not results:
                raise ValueError(f"{trial.name} does not launch {name} on sm_{capability}")
            text = max((result.program.text for result in results), key=len)
        results = [result for result in results if result.program.text == text]
        if results:
            this = _seen(results)
            seen = Seen(seen.reached, seen.guarded, seen.taken | this.taken) if homes else this
            known = {(finding.kind, finding.line) for result in results for finding in result.findings}
            steps = max(launch.result.steps for launch in outcome.launches)
            homes.append(Home(trial, expected, frozenset(known), steps))
    return Kernel(name, capability, text, tuple(homes), *map(frozenset, seen))


def runs_on(name: str, capability: int) -> bool:
    """Whether this kernel's homes are for this GPU."""
    return all(capability in trial.capabilities for trial in _trials(HOMES[name]))


def _trials(names: Iterable[str]) -> list[Trial]:
    known = {trial.name: trial for trial in cases.trials()}
    return [known[name] for name in names]


def _blocks(program: Program) -> Iterator[list[Record]]:
    """The instructions between labels and branches."""
    labels = [number for number, line in enumerate(program.text.split("\n"), 1) if line.startswith("$L__BB")]
    block: list[Record] = []
    for record in program.lowered.records:
        if block and (block[-1].key.startswith("bra") or any(block[-1].line < n <= record.line for n in labels)):
            yield block
            block = []
        block.append(record)
    yield block


def plant(kernel: Kernel, fault: Fault) -> Verdict:
    """Run the kernel's cases with this fault in it, one after the other, each under one setting after the other."""
    planted = fault.planted(kernel.text)

    def verdict(home: Home, outcome: str, how: str) -> Verdict:
        return Verdict(kernel.name, kernel.capability, home.trial.name, fault, outcome, how)

    for home in kernel.homes:
        wrong = ""
        for settings in SETTINGS:
            settings = replace(settings, max_steps=10 * home.steps + 1_000_000)  # what hangs is not waited for
            outcome = execute(
                home.trial, home.expected, kernel.capability, settings,
                lambda name, text: planted if name == kernel.name and text == kernel.text else text,
            )  # fmt: skip
            new = [f for f in outcome.findings if (f.kind, f.line) not in home.known]
            if new:
                return verdict(home, "found", f"{new[0].kind}: {new[0].text}")
            wrong = wrong or _wrong_values(outcome)
        if wrong:
            return verdict(home, "wrong", wrong)
    why = redundant.argument(kernel.name, fault, kernel.text, kernel.taken)
    return verdict(kernel.homes[0], "redundant" if why else "survives", why or "no finding, right values")


def _wrong_values(outcome: Outcome) -> str:
    return next((str(verdict) for verdict in outcome.verdicts if not verdict.ok), "")


def spread(faults: Sequence[Fault], per_kind: int, whole: Collection[str] = ()) -> list[Fault]:
    """At most `per_kind` of each kind (0: all), evenly from the first to the last; all of the kinds in `whole`."""
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    chosen = []
    for kind, group in kinds.items():
        count = len(group) if not per_kind or kind in whole else min(per_kind, len(group))
        chosen += [group[number * len(group) // count] for number in range(count)]
    return chosen


def verdicts_of(name: str, capability: int, kinds: Sequence[str], per_kind: int) -> list[Verdict]:
    """Of one kernel on one GPU."""
    torch.set_num_threads(1)
    kernel = compiled(name, capability)
    faults = [fault for fault in kernel.faults() if not kinds or any(part in fault.kind for part in kinds)]
    return [plant(kernel, fault) for fault in spread(faults, per_kind, ORDER)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.softgpu.planting", description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", default="", metavar="PART", help="kernels whose name has this part")
    parser.add_argument(
        "--arch", default="", choices=["", *(f"sm_{c}" for c in CAPABILITIES)], metavar="sm_80|sm_90|sm_100"
    )
    parser.add_argument(
        "--kind", nargs="*", default=[], metavar="PART", help="kinds whose names have one of these parts"
    )
    parser.add_argument(
        "--per-kind", type=int, default=3,
        help="faults of a kind in a kernel; 0: all (default: 3). Of barriers, copies, waits and fences always all",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args(argv)

    machine()
    start, verdicts = time.perf_counter(), []
    pairs = [
        (name, capability)
        for name in HOMES
        for capability in (CAPABILITIES if arguments.arch else TABLE)
        if arguments.kernel in name and arguments.arch in ("", f"sm_{capability}") and runs_on(name, capability)
    ]
    with ProcessPoolExecutor(max(1, arguments.jobs)) as pool:
        options = arguments.kind, arguments.per_kind
        for done in as_completed([pool.submit(verdicts_of, *pair, *options) for pair in pairs]):
            for verdict in done.result():
                verdicts.append(verdict)
                if verdict.outcome in ("redundant", "survives"):
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
    much = f"at most {per_kind} of a kind in each kernel" if per_kind else "all of every kind"
    much += ", all of those of barriers, copies, waits and fences" if per_kind else ""
    yield (
        f"`make softgpu-faults`: {much}, compiled for sm_80 and sm_90; {seconds / 60:.0f} minutes. found: by the "
        "machine, which says what is wrong and where. wrong: by the comparison with float64 alone. redundant: nothing "
        "changes, and benchmarks/softgpu/redundant.py says why."
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
