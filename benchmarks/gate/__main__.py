"""Compile every kernel for eight GPUs without having one.

python -m benchmarks.gate --family layer_norm --arch sm_90      print these rows, and what is wrong with them
python -m benchmarks.gate --write                               all rows; writes kernels/<family>/gate.txt
python -m benchmarks.gate --write --family ffn --label fp32     writes these rows anew, and keeps the others
python -m benchmarks.gate --check                               all rows; fails where one is worse than committed
python -m benchmarks.gate --check --sample 64                   a fixed sample of the rows (CI)
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from . import run, table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=run.FAMILIES, default=run.FAMILIES)
    parser.add_argument("--arch", nargs="+", choices=run.ARCHES, default=run.ARCHES)
    parser.add_argument("--label", nargs="+", default=[""], metavar="SUBSTR", help="rows whose label has one of these")
    parser.add_argument("--sample", type=int, metavar="N", help="N rows, spread over families and architectures")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write kernels/<family>/gate.txt, or these rows of it")
    action.add_argument("--check", action="store_true", help="fail where a row is worse than the committed table")
    args = parser.parse_args(argv)

    partial = bool(any(args.label) or args.sample or set(args.arch) != set(run.ARCHES))
    if args.write and args.sample:
        parser.error("--write needs rows named by --family, --label and --arch, not a --sample of them")
    tasks = run.tasks_of(args.family, args.arch, args.label)
    families = sorted({task.family for task in tasks})
    if not tasks:
        parser.error(f"no row of {', '.join(args.family)} has a label that contains {' or '.join(args.label)}")
    if args.write and partial:  # refuse before the compiling, which takes minutes
        try:
            for family in families:
                table.check_writable(family)
        except ValueError as error:
            parser.error(str(error))
    if args.sample:
        tasks = run.sample(tasks, args.sample, args.seed)
    started, progress = time.time(), _Progress(len(tasks))
    results = run.compile_all(tasks, args.jobs, progress.show)
    few = {family: table.FEW_BYTES if args.check and _of_other_compilers(family) else 0 for family in families}
    failures = [problem for result in results for problem in table.problems(result, spill=few[result.task.family])]

    for family in families:
        mine = [result for result in results if result.task.family == family]
        lines = table.lines_of(mine)
        if args.write:
            compiled = {(result.task.label, result.task.arch) for result in mine}
            table.write(family, table.merged(family, lines, compiled, run.rows_of(family)) if partial else lines)
        elif args.check:
            failures += _check(family, lines, {result.task for result in mine}, partial)
        else:
            print(table.render(lines), end="")

    for failure in failures:
        print(f"FAIL {failure}")
    kernels = sum(len(result.kernels) for result in results)
    print(
        f"{len(tasks)} rows x architectures, {kernels} kernels, {len(failures)} failures, "
        f"{time.time() - started:.0f} s ({table.versions()})"
    )
    return 1 if failures else 0


def _of_other_compilers(family: str) -> bool:
    path = table.table_path(family)
    return path.exists() and table.read(path.read_text())[0] != table.versions()


def _check(family: str, lines: list[table.Line], tasks: set[run.Task], partial: bool) -> list[str]:
    path = table.table_path(family)
    if not path.exists():
        return [f"{path} is missing: `make gate` writes it"]
    versions, committed = table.read(path.read_text())
    if versions != table.versions():
        print(f"{path} was written with {versions}: figures are not compared, only what must hold is checked")
        return []
    if partial:
        committed = [line for line in committed if run.Task(family, line.label, line.arch) in tasks]
    comparison = table.compare(lines, committed, whole=True)
    for line in comparison.better:
        print(f"note {line}")
    return comparison.failures


class _Progress:
    """A counter on standard error: in place on a terminal, a line every 50 rows in a log."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def show(self, result: run.Result) -> None:
        self.done += 1
        if sys.stderr.isatty():
            end = "\n" if self.done == self.total else ""
            print(f"\r{self.done}/{self.total} {result.task.label:<40.40}", end=end, file=sys.stderr, flush=True)
        elif self.done % 50 == 0:
            print(f"{self.done}/{self.total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the pool must end its workers
    sys.exit(main())
