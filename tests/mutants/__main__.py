"""Plant every listed fault, in kernels/ and in fastgpt/, one at a time; each must be caught.

python -m tests.mutants                         all faults; writes benchmarks/results/mutants.md
python -m tests.mutants --sample 3              three, spread over the families
python -m tests.mutants --family fastgpt/train
python -m tests.mutants --name attention-delta-omitted
python -m tests.mutants --diff --name delta     what those change, as a diff
python -m tests.mutants --list                  what there is, and what is stale; plants nothing
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import queue
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from .faults import MUTANTS
from .plant import ROOT, Mutant, Tree, Verdict, copy_of_tree, judge, unmutated

RESULT = ROOT / "benchmarks" / "results" / "mutants.md"


def sample(count: int, seed: int) -> list[Mutant]:
    """`count` faults, taken from the families in turn; `seed` says at which to begin, and where in each."""
    families = {}
    for mutant in MUTANTS:
        families.setdefault(mutant.family, []).append(mutant)
    turned = _turned([_turned(family, seed) for family in families.values()], seed)
    in_turn = [m for group in itertools.zip_longest(*turned) for m in group if m is not None]
    return in_turn[:count]


def _turned(items: list, by: int) -> list:
    by %= len(items)
    return items[by:] + items[:by]


def verdicts_of(mutants: Sequence[Mutant], trees: Sequence[Tree]) -> Iterator[Verdict]:
    """One for each fault, in order; every tree serves one fault after the other."""
    free = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def judged(mutant: Mutant) -> Verdict:
        tree = free.get()
        try:
            return judge(mutant, tree)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(len(trees)) as pool:
        yield from pool.map(judged, mutants)


def listed(mutants: Sequence[Mutant], with_difference: bool = False) -> int:
    """Print each fault's name and file, also what it changes, or why it cannot be planted; how many cannot."""
    stale = 0
    for mutant in mutants:
        try:
            lines = difference(mutant)
            print(f"{mutant.name:<72} {mutant.path}")
            if with_difference:
                print(lines)
        except ValueError as error:
            stale += 1
            print(error)
    return stale


def difference(mutant: Mutant) -> str:
    """What the fault changes in its file, as a unified diff."""
    text = (ROOT / mutant.path).read_text()
    lines = (before.splitlines(keepends=True) for before in (text, mutant.plant(text)))
    return "".join(difflib.unified_diff(*lines, mutant.path, mutant.name, n=2))


def table(verdicts: Sequence[Verdict]) -> str:
    """Markdown: for kernels and for fastgpt, how many faults of each file were caught, then one line a fault."""
    lines = []
    for package in ("kernels", "fastgpt"):
        ours = [v for v in verdicts if v.mutant.path.startswith(f"{package}/")]
        planted, caught = (Counter(v.mutant.path for v in ours if v.ok >= least) for least in (False, True))
        lines += [f"## {package}", "", "| planted in | planted | caught |", "|---|---|---|"]
        lines += [f"| {path} | {planted[path]} | {caught[path]} |" for path in sorted(planted)]
        lines += [f"| all | {planted.total()} | {caught.total()} |", ""]
        lines += ["| fault | planted in | outcome | by |", "|---|---|---|---|"]
        lines += [f"| {v.mutant.name} | {v.mutant.path} | {v.outcome} | `{v.by}` |" for v in ours]
        lines += [""]
    return "\n".join(lines)


HEADING = """\
# Mutants

Deliberate faults, planted in a copy of the tree one at a time; the tests named caught each of them. Written by
`make mutants`; the faults are in `tests/mutants/faults/`.

"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, metavar="N", help="only N faults, spread over the families")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--family", default="", help="only faults of this part: kernels/attention, fastgpt/train")
    parser.add_argument("--name", default="", metavar="SUBSTR", help="only faults whose name contains this")
    parser.add_argument("--list", action="store_true", help="say what would be planted, and plant nothing")
    parser.add_argument("--diff", action="store_true", help="list, and show what each changes")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="at the same time; each has a copy of the tree"
    )
    args = parser.parse_args(argv)
    mutants = sample(args.sample, args.seed) if args.sample else list(MUTANTS)
    mutants = [m for m in mutants if args.name in m.name and (not args.family or args.family == m.family)]
    if not mutants:
        families = ", ".join(dict.fromkeys(m.family for m in MUTANTS))
        parser.error(f"no fault's name contains {args.name!r} in family {args.family or 'any'!r}; there are {families}")
    if args.list or args.diff:
        return 1 if listed(mutants, args.diff) else 0

    started = time.time()
    with ExitStack() as stack:
        trees = [stack.enter_context(copy_of_tree()) for _ in range(min(args.jobs, len(mutants)))]
        if failure := unmutated(mutants, trees):
            print(f"The tests fail without any fault, which proves nothing:\n{failure}")
            return 1
        verdicts = []
        for verdict in verdicts_of(mutants, trees):
            verdicts.append(verdict)
            print(f"{verdict.outcome:<9} {verdict.mutant.name:<60} {verdict.by} ({verdict.seconds:.0f} s)", flush=True)
            if verdict.outcome == "survived":
                print(difference(verdict.mutant), flush=True)
    escaped = [v for v in verdicts if not v.ok]
    print(f"{len(verdicts) - len(escaped)} of {len(verdicts)} faults caught, {time.time() - started:.0f} s")
    if not escaped and len(mutants) == len(MUTANTS):
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(HEADING + table(verdicts))
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
