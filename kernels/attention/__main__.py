"""`python -m fastgpt.kernels.attention [arch]`: the tile table, and what each kernel takes from each GPU.

The figures come from gate.txt, which the compile gate wrote without a GPU (`make gate`); nothing here needs one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .._runtime import KNOWN_TARGETS
from . import tiles


def read_gate() -> tuple[list[str], list[dict[str, str]]]:
    """(comment lines, one dict for each line of gate.txt); nothing where the table was not shipped."""
    path = Path(__file__).with_name("gate.txt")
    if not path.exists():
        return [], []
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return comments, [dict(zip(rows[0], row)) for row in rows[1:]]


def tile_table() -> list[str]:
    """One line for each kind of GPU, number size, head_dim and kernel."""
    kinds: dict[str, list[str]] = {}
    for arch, target in KNOWN_TARGETS.items():
        kinds.setdefault(tiles.kind_of(target), []).append(arch)
    out = [f"{'tensor core':<12}{'bytes':>6}{'head_dim':>10}  {'kernel':<10}{'block_m':>8}{'block_n':>8}{'edge':>6}"
           f"{'warps':>7}{'stages':>8}   GPUs"]  # fmt: skip
    for kind, sizes in tiles.TABLE.items():
        for itemsize, head_dims in sorted(sizes.items()):
            for head_dim, row in head_dims.items():
                for name, t in row._asdict().items():
                    out.append(
                        f"{kind:<12}{itemsize:>6}{'<= ' + str(head_dim):>10}  {name:<10}{t.block_m:>8}{t.block_n:>8}"
                        f"{t.edge:>6}{t.num_warps:>7}{t.num_stages:>8}   {' '.join(kinds[kind])}"
                    )
    return out


def gate_table(arch: str | None) -> list[str]:
    """gate.txt's figures for `arch` (all if None), one line for each kernel of each case."""
    comments, rows = read_gate()
    if not rows:
        return ["gate.txt was not installed with this package; `make gate` in a checkout writes it."]
    out = [
        *comments,
        f"{'case':<30}{'kernel':<26}{'GPU':<8}{'registers':>10}{'spill':>7}{'shared':>9}{'CTAs':>6}  tensor",
    ]
    for row in rows:
        if arch in (None, row["arch"]):
            out.append(
                f"{row['label']:<30}{row['kernel']:<26}{row['arch']:<8}{row['regs']:>10}{row['spill']:>7}"
                f"{row['shared']:>9}{row['ctas']:>6}  {row['tensor']}"
            )
    return out


def main(arguments: list[str]) -> int:
    arch = arguments[0] if arguments else None
    if arch is not None and arch not in KNOWN_TARGETS:
        print(f"unknown GPU {arch!r}; one of {' '.join(KNOWN_TARGETS)}", file=sys.stderr)
        return 2
    print("\n".join([*tile_table(), "", *gate_table(arch)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
