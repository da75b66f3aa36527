"""The training loop, and all that writes files, under faults: see tests/faults/cases.py for which.

python -m tests.faults                     all; writes benchmarks/results/faults.md
python -m tests.faults --sample 40         forty, spread over the rows of the table (--write: and write it)
python -m tests.faults --only "train: ENOSPC write 12"
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from . import shim
from .cases import Case, every_case
from .server import Server, Verdict

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "faults.md"


def sample(cases: list[Case], count: int, seed: int) -> list[Case]:
    """`count` cases, taken from the rows of the table in turn."""
    rows: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:
        rows[(case.scenario, *case.row)].append(case)
    draw = random.Random(seed)
    groups = [draw.sample(row, len(row)) for row in rows.values()]
    draw.shuffle(groups)
    in_turn = (case for group in itertools.zip_longest(*groups) for case in group if case is not None)
    return list(itertools.islice(in_turn, count))


COLUMNS = ("ENOSPC", "EIO", "EPERM, EACCES", "half a write", "from then on", "SIGKILL", "SIGTERM, SIGINT")


def column(fault: str) -> str:
    """Which of `COLUMNS` a fault, the second part of `Case.row`, belongs to."""
    for name, signs in (("SIGKILL", ("SIGKILL",)), ("SIGTERM, SIGINT", ("SIG",)), ("from then on", ("from then on",))):
        if any(sign in fault for sign in signs):
            return name
    return {"half": "half a write", "EPERM": "EPERM, EACCES", "EACCES": "EPERM, EACCES"}.get(fault, fault)


def table(verdicts: list[Verdict]) -> str:
    """Markdown: how many of the cases passed, by fault, for what was run in which phase and for the kinds of calls."""
    phases: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    calls: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        call, fault = verdict.case.row
        passed = not verdict.problems
        phases[verdict.case.scenario, verdict.phase][column(fault)].append(passed)
        calls["every run", call][column(fault)].append(passed)
    return f"{_grid('phase', phases)}\n{_grid('call', calls)}"


def _grid(second: str, rows: dict[tuple[str, str], dict[str, list[bool]]]) -> str:
    lines = [f"| run | {second} | {' | '.join(COLUMNS)} |", f"|---|---|{'---:|' * len(COLUMNS)}"]
    for names, found in sorted(rows.items()):
        cells = [f"{sum(found[name])} of {len(found[name])}" if found[name] else "" for name in COLUMNS]
        lines.append(f"| {' | '.join((*names, *cells))} |")
    return "\n".join(lines) + "\n"


HEADING = """\
# Faults

Calls that change files, made to fail one at a time or from some moment on, and processes ended by signals: after each,
the checkpoint before is whole, the error is one true line, and the next run leaves the bits, the metrics and the files
of an undisturbed one. Written by `make faults`; the cases are in `tests/faults/cases.py`.

{passed} of {cases} cases passed{how}; seed {seed}, {seconds:.0f} s with {jobs} processes; {date}, commit {commit},
Python {python}, torch {torch}.

"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, metavar="N", help="only N cases, spread over the table's rows")
    parser.add_argument("--seed", type=int, default=0, help="of kills, signals and the sample")
    parser.add_argument("--only", default="", metavar="SUBSTR", help="only cases whose name contains this")
    parser.add_argument("--write", action="store_true", help="write the table also of a sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    if why := shim.missing():
        parser.error(why)

    began = time.time()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        library = shim.build(Path(folder))
        servers: SimpleQueue[Server] = SimpleQueue()
        first = Server(library)
        every = every_case(first.calls, args.seed)
        cases = [case for case in every if args.only in case.name]
        if not cases:
            parser.error(f"no case's name contains {args.only!r}")
        if args.sample:
            cases = sample(cases, args.sample, args.seed)
        for server in [first, *(Server(library) for _ in range(args.jobs - 1))]:
            servers.put(server)

        def judge(case: Case) -> Verdict:
            server = servers.get()
            try:
                return server.judge(case)
            finally:
                servers.put(server)

        verdicts = []
        for verdict in pool.map(judge, cases):
            verdicts.append(verdict)
            for problem in verdict.problems:
                print(f"{verdict.case.name} [{verdict.phase}]: {problem}")
            if verdict.problems and verdict.err:
                print("    " + verdict.err.strip().replace("\n", "\n    "))
            if len(verdicts) % 100 == 0:
                print(f"{len(verdicts)} of {len(cases)}, {time.time() - began:.0f} s", flush=True)
        while not servers.empty():
            servers.get().close()
    passed = sum(not verdict.problems for verdict in verdicts)
    seconds = time.time() - began
    print(f"{passed} of {len(cases)} cases passed, {seconds:.0f} s")
    if args.write or not (args.sample or args.only):
        import torch

        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True)
        heading = HEADING.format(
            cases=len(cases), passed=passed, how=f" (a sample of {len(every)})" if len(cases) < len(every) else "",
            seed=args.seed, seconds=seconds, jobs=args.jobs, date=time.strftime("%Y-%m-%d"),
            commit=commit.stdout.strip() or "unknown", python=platform.python_version(), torch=torch.__version__,
        )  # fmt: skip
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(heading + table(verdicts))
    return 0 if passed == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
