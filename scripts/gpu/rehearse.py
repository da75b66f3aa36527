#!/usr/bin/env python3
"""The whole GPU session with kernels that compute: `make gpu-rehearsal`.

    python scripts/gpu/rehearse.py [--jobs 2] [--out out/rehearsal] [--tests EXPRESSION]

`scripts/gpu_session.sh` runs on a GPU that is not there (`fake_cuda.py`), whose kernels benchmarks/softgpu executes:
the self-check, headline figures, tests, peers and sweep see real values, at tiny sizes. What the dry run
(`scripts/gpu/cache.py try`) cannot see, this can: a comparison that fails, a NaN in a table, a race. Times mean
nothing. It fails for a finding of the machine, a verdict of the self-check, an error over its budget, and whatever
else failed for no reason that only this GPU has.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.report import read_rows
from scripts.gpu.cache import BUILD, ROOT, broken_steps, failures

# Of each family some tests, forward and backward; all of them would take hours.
TESTS = (
    "test_dtypes or test_lengths or test_grouped_queries or test_windows or test_document_ids or test_packed_documents "
    "or test_strides or test_every_mask or test_dropout_is_exact or test_either_output or test_held_rows "
    "or test_ffn or test_dgelu or test_tma_path or test_dropout_and_residual or test_loss_and_gradients "
    "or test_cross_entropy_of_logits or test_any_number_of_chunks or test_self_attention "
    "or test_equals_the_reference_model"
)

# What no CPU does, by what a failure says.
BEYOND_A_CPU = {
    "flex_attention": "flex_attention is not compiled",
    "cudnn": "the CPU has no cuDNN",
    "of the error of rounding": "torch's own products know no TF32 on a CPU",
}


def session(out: Path, jobs: int, tests: str) -> None:
    """Run gpu_session.sh; what the machine finds is in OUT/findings.jsonl."""
    environment = os.environ | {
        "FASTGPT_FAKE_GPU": f"execute:{out / 'findings.jsonl'}", "FASTGPT_TINY": "1", "FASTGPT_MOST_ROUNDS": "1",
        "PYTHON": sys.executable, "WORKERS": str(jobs), "SLOWER": "100", "SWEEP_TILES": "2",
        "TRITON_CACHE_DIR": str(BUILD / "rehearsal"), "GPU_CACHE": str(out / "none"),
        "PYTEST_ADDOPTS": f"-k '{tests}'",
    }  # fmt: skip
    subprocess.run([str(ROOT / "scripts" / "gpu_session.sh"), str(out), "36000"], env=environment, check=True)


def said(out: Path) -> list[tuple[str, str]]:
    """(where, what) of everything that is not as it should be."""
    found = [(row["kernel"], row["finding"]) for row in read_rows(out / "findings.jsonl")]
    for row in read_rows(out / "headline.jsonl"):
        match row.get("kind"):
            case "verify" if not row["ok"]:
                found.append((f"verify: {row['kernel']} {row['label']} {row['dtype']}", row["problem"] or "wrong"))
            case "failed":
                found.append((row["section"], row["error"]))
            case "skipped":
                found.append((f"{row['op']} {row['impl']} {row['mode']}", row["reason"]))
    found += [
        (f"sweep: {r['workload']} {r['tile']}", r["error"]) for r in read_rows(out / "sweep.jsonl") if r.get("error")
    ]
    found += [
        (f"error: {row['test']} {row['name']} {row['dtype']} {row['norm']}", f"{row['used']} of its limit")
        for row in read_rows(out / "errors.jsonl") if not row["ok"]
    ]  # fmt: skip
    known, others = failures(out)
    print(*(f"{count} failed, as they must here: {why}" for why, count in known.items()), sep="\n")
    return found + others + broken_steps(out)


def report(out: Path) -> int:
    """Print what the session made of it; 1 if anything was wrong that a CPU could have got right."""
    found = said(out)
    why = [next((reason for text, reason in BEYOND_A_CPU.items() if text in what), None) for _, what in found]
    for reason, count in Counter(filter(None, why)).items():
        print(f"{count} not done, as they cannot be here: {reason}")
    wrong = Counter(pair for pair, reason in zip(found, why) if reason is None)
    print(*(f"WRONG {where}: {' '.join(what.split())[:400]} ({n})" for (where, what), n in wrong.items()), sep="\n")
    tests = Counter(row.get("outcome") for row in map(json.loads, (out / "tests.jsonl").read_text().splitlines()))
    print(f"tests: {dict(tests)}; wrong: {len(wrong)}")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu/rehearse.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="processes of the tests")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "rehearsal", help="what the session writes")
    parser.add_argument("--tests", default=TESTS, help="which tests, as pytest's -k takes it")
    args = parser.parse_args(argv)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    (args.out / "findings.jsonl").touch()
    session(args.out, args.jobs, args.tests)
    return report(args.out)


if __name__ == "__main__":
    sys.exit(main())
