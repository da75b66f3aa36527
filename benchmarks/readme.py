"""The README's tables, made from committed results so that no figure in it is typed by hand.

    python -m benchmarks.readme [--write]       without --write: exit status 1 if README.md is out of date

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. --write also draws the picture made from results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def gib(n: float) -> str:
    """Bytes for people: 1.5 GiB, 12.3 MiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"


def markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def memory_table() -> str:
    """Peak bytes by T, ours beside the others, with the fitted slopes."""
    found = json.loads((RESULTS / "memory.json").read_text())
    columns = [n for n in found["lengths"] if n in (1024, 8192, 65536, 131072)]
    at = [found["lengths"].index(n) for n in columns]
    body = []
    for title, key in (
        ("attention, forward + backward", "attention"),
        ("block, forward + backward", "block"),
        ("GPT-2 124M, training step", "model"),
    ):
        for name, sizes in found[key].items():
            slope = f"{found[f'{key}_slope'][name]:.2f}"
            body.append([f"{title}: {name}", *(gib(sizes[i]) for i in at), slope])
    return markdown(["peak memory, batch 1", *(f"T = {n}" for n in columns), "slope (log-log)"], body)


def loss_table() -> str:
    """The head's and loss's peak by number of chunks."""
    found = json.loads((RESULTS / "memory.json").read_text())["linear_cross_entropy"]
    head = ["16384 tokens, d 768, V 50257, bf16", *("eager" if k == "eager" else f"{k} chunks" for k in found)]
    return markdown(head, [["peak beyond the inputs", *map(gib, found.values())]])


def gate_table() -> str:
    """For each GPU: kernels compiled, how many spill, and their tensor-core instructions; from kernels/*/gate.txt."""
    from benchmarks.gate import limits, table

    lines = [line for f in sorted(ROOT.glob("kernels/*/gate.txt")) for line in table.read(f.read_text())[1]]
    body = []
    for arch in limits.LIMITS:
        mine = [line for line in lines if line.arch == arch]
        kinds = sorted({line.tensor_kind for line in mine} - {"-"})
        spilling = sum(line.spill > 0 for line in mine)
        serial = sum(line.serial != "-" for line in mine)
        body.append([arch, str(len(mine)), str(spilling), str(serial), ", ".join(kinds)])
    return markdown(["GPU", "kernels", "of them spilling", "with serialized wgmma", "tensor-core instructions"], body)


def study_table() -> str:
    """The depth study's verdicts, of the largest run that is committed."""
    study = json.loads(study_path().read_text())
    body = [[v["claim"], f"**{v['verdict']}**", v["numbers"]] for v in study["verdicts"]]
    lines = [["the papers' claim", "verdict", "measured"], ["---"] * 3, *body]
    from fastgpt.study.depth.page import scale

    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\nAt this scale: {scale(study)}. Another may decide otherwise."


def study_path() -> Path:
    """A GPU's study, where there is one; else the CPU's."""
    gpu = RESULTS / "study_gpu.json"
    return gpu if gpu.exists() else RESULTS / "study_cpu.json"


def study_picture() -> str:
    """The depth study claimed and measured, as SVG."""
    from fastgpt.study.depth.page import picture

    return str(picture(json.loads(study_path().read_text())))


def speed_table() -> str:
    """Ratios to the best peer of each committed GPU run; or the plain statement that there is none."""
    runs = sorted(RESULTS.glob("gpu-*.json*"))
    if not runs:
        return (
            "Not yet measured: no GPU has run this code. `scripts/gpu_session.sh` measures every operator beside its "
            "peers in seven minutes."
        )
    parts = []
    for run in runs:
        environment, rows = report.load(run)
        ours = [r for r in report.with_ratios(rows) if r["impl"] == report.OURS]
        shown = [i for i, c in enumerate(report.COLUMNS) if c not in ("implementation", f"vs {report.OURS}")]
        head = ["operation", *(report.COLUMNS[i] for i in shown)]
        body = [[f"{r['op']}, {r['mode']}, {r['dtype']}", *(report.cells(r)[i] for i in shown)] for r in ours]
        parts += [markdown(head, body), "", report.environment_line(environment)]
    return "\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "memory": memory_table, "loss": loss_table, "gate": gate_table, "speed": speed_table, "study": study_table,
}  # fmt: skip
PICTURES: dict[str, Callable[[], str]] = {"docs/study.svg": study_picture}


def render(text: str) -> str:
    """`text` with every marked table made anew. Raises KeyError for a table that nobody makes."""
    return MARKED.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="rewrite README.md")
    path = ROOT / "README.md"
    old = path.read_text()
    new = render(old)
    pictures = {ROOT / name: draw() for name, draw in PICTURES.items()}
    if parser.parse_args(argv).write:
        path.write_text(new)
        for file, drawn in pictures.items():
            file.write_text(drawn, encoding="utf-8")
    elif new != old or any(file.read_text(encoding="utf-8") != drawn for file, drawn in pictures.items()):
        print("README.md or its pictures are out of date: run `make readme`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
