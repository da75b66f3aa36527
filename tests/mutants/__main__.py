"""Plant every listed fault in the kernels, one at a time; each must be caught.

python -m tests.mutants                         all faults; writes benchmarks/results/mutants.md
python -m tests.mutants --sample 3              three, spread over the families
python -m tests.mutants --name attention-delta-omitted
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from .faults import MUTANTS
from .plant import ROOT, Mutant, Verdict, judge, unmutated

RESULT = ROOT / "benchmarks" / "results" / "mutants.md"


def sample(count: int, seed: int) -> list[Mutant]:
    """`count` faults, taken from the families in turn; `seed` says where in each to begin."""
    families = {}
    for mutant in MUTANTS:
        families.setdefault(mutant.family, []).append(mutant)
    turned = [f[seed % len(f) :] + f[: seed % len(f)] for f in families.values()]
    in_turn = [m for group in itertools.zip_longest(*turned) for m in group if m is not None]
    return in_turn[:count]


def table(verdicts: list[Verdict]) -> str:
    """Markdown: one line a fault."""
    lines = ["| fault | planted in | outcome | by |", "|---|---|---|---|"]
    lines += [f"| {v.mutant.name} | kernels/{v.mutant.path} | {v.outcome} | `{v.by}` |" for v in verdicts]
    return "\n".join(lines) + "\n"


HEADING = """\
# Mutants

Deliberate faults, planted in a copy of the kernels one at a time; the tests named caught each of them. Written by
`make mutants`; the faults are in `tests/mutants/faults/`.

"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, metavar="N", help="only N faults, spread over the families")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--name", default="", metavar="SUBSTR", help="only faults whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    mutants = sample(args.sample, args.seed) if args.sample else list(MUTANTS)
    mutants = [m for m in mutants if args.name in m.name]
    if not mutants:
        parser.error(f"no fault's name contains {args.name!r}")

    started = time.time()
    if failure := unmutated(mutants):
        print(f"The tests fail without any fault, which proves nothing:\n{failure}")
        return 1
    with ThreadPoolExecutor(args.jobs) as pool:
        verdicts = []
        for verdict in pool.map(judge, mutants):
            verdicts.append(verdict)
            print(f"{verdict.outcome:<9} {verdict.mutant.name:<44} {verdict.by} ({verdict.seconds:.0f} s)", flush=True)
    escaped = [v for v in verdicts if not v.ok]
    print(f"{len(verdicts) - len(escaped)} of {len(verdicts)} faults caught, {time.time() - started:.0f} s")
    if not escaped and len(mutants) == len(MUTANTS):
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(HEADING + table(verdicts))
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
