"""python -m benchmarks.prepare_speed [TEXTS.jsonl.xz ...]: MB/s of `prepare` beside plain tiktoken, and peak memory.

"plain tiktoken" is `encode_ordinary` of GPT-2's encoding, on one thread, of the documents in memory: what it leaves out
is reading, unpacking, JSON, hashing and writing. Every figure is of a process of its own; in each round all take turns,
so what else the machine does falls on all alike, and ratios are of figures of one round. CPU time counts all threads of
the process, and says what a busy machine hides. --write keeps the table.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parent / "results" / "prepare_speed.md"
KINDS = {"plain text": "all.txt", "JSON Lines": "all.jsonl", "JSON Lines, .gz": "all.jsonl.gz"}


def write_texts(folder: Path, sources: list[str], megabytes: float) -> int:
    """Documents of `sources` (or, without any, the embedded corpus) in every kind of file; returns their bytes.

    The corpus is repeated if it is too short, so that every size can be asked for.
    """
    from fastgpt.data import shakespeare
    from fastgpt.data.sources import read_pieces

    def documents() -> Iterable[str]:
        while True:
            if not sources:
                yield from shakespeare("train").split("\n\n")
            for path in map(Path, sources):
                parts = []
                for piece, ends in read_pieces(path):
                    parts.append(piece)
                    if ends:
                        yield "".join(parts)
                        parts = []

    n_bytes = 0
    with (
        open(folder / "all.txt", "w", encoding="utf-8", newline="") as plain,
        open(folder / "all.jsonl", "w", encoding="utf-8") as lines,
        gzip.open(folder / "all.jsonl.gz", "wt", encoding="utf-8", compresslevel=6) as packed,
    ):
        for text in documents():
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            plain.write(text + "\n\n")
            lines.write(line)
            packed.write(line)
            n_bytes += len(text.encode("utf-8"))
            if n_bytes >= megabytes * 1e6:
                return n_bytes
    raise AssertionError("the documents do not end")


def alone(path: str, threads: int) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak MB of the process) of `prepare`, or, with 0 threads, of plain tiktoken."""
    try:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        from fastgpt.data.tokenizer import Tokenizer
    except ImportError as error:
        raise SystemExit(f"benchmarks.prepare_speed needs tiktoken ({error}): pip install tiktoken") from None
    from fastgpt.data.preparation import prepare

    tokenizer = Tokenizer.named("gpt2")
    if threads:
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as out:
            begin = now()
            prepare(path, Path(out, "tokens"), tokenizer, threads=threads, progress=False)
            wall, cpu = now() - begin
    else:
        ranks = {token: rank for rank, token in enumerate(map(tokenizer.decode_bytes, zip(range(50256))))}
        encoding = tiktoken.Encoding("plain", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
        text = Path(path).read_text(encoding="utf-8")
        lines = text.rstrip("\n").split("\n") if path.endswith(".jsonl") else []
        documents = [json.loads(line)["text"] for line in lines] or [text]
        begin = now()
        for document in documents:
            encoding.encode_ordinary(document)
        wall, cpu = now() - begin
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return wall, cpu, int(status["VmHWM"].split()[0]) / 1024  # ru_maxrss would be the parent's, if that is larger


def now() -> np.ndarray:
    """Seconds on the wall, seconds of the CPU."""
    return np.array([time.perf_counter(), time.process_time()])


def measured(path: Path, threads: int) -> list[float]:
    """`alone`, in a process that loads no torch, as the command does not."""
    call = f"from benchmarks import prepare_speed; print(*prepare_speed.alone({str(path)!r}, {threads}))"
    command = [sys.executable, "-c", f"import sys; sys.argv = ['fastgpt']; {call}"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], text=True, stdout=subprocess.PIPE, check=True)
    return [float(number) for number in done.stdout.split()]


def table(sources: list[str], megabytes: float, rounds: int) -> Iterable[str]:
    """The lines of a table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        n_bytes = write_texts(Path(folder), sources, megabytes)
        what = ", ".join(Path(source).name for source in sources) or "the embedded Shakespeare, by paragraphs"
        yield f"{n_bytes / 1e6:.0f} MB of {what}; median of {rounds} rounds (best);"
        where = f"{len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}"
        yield f"{where}; load {os.getloadavg()[0]:.1f} at the start"
        yield ""
        yield "| texts | | MB/s | beside plain tiktoken | MB a CPU second, beside it | peak memory, MB |"
        yield "| --- | --- | ---: | ---: | ---: | ---: |"
        for kind, name in KINDS.items():
            plain = Path(folder, name.removesuffix(".gz"))
            found = [(measured(plain, 0), *(measured(Path(folder, name), n) for n in (1, 2))) for _ in range(rounds)]
            for n, label in enumerate(("plain tiktoken, in memory", "prepare, 1 thread", "prepare, 2 threads")):
                speeds = [n_bytes / 1e6 / turn[n][0] for turn in found]
                wall, cpu = (statistics.median(turn[0][k] / turn[n][k] for turn in found) for k in (0, 1))
                speed = f"{statistics.median(speeds):.1f} ({max(speeds):.1f})"
                peak = max(turn[n][2] for turn in found)
                yield f"| {kind} | {label} | {speed} | {wall:.2f} | {cpu:.2f} | {peak:.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="texts; without any, the embedded Shakespeare")
    parser.add_argument("--megabytes", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULT.name}")
    options = parser.parse_args()
    lines = []
    for line in table(options.sources, options.megabytes, options.rounds):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        title = "# prepare beside tiktoken\n\nWritten by `python -m benchmarks.prepare_speed --write`.\n\n"
        RESULT.write_text(title + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
