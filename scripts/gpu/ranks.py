#!/usr/bin/env python3
"""Training as on many GPUs, on the one of a session: each strategy beside the single device, on NCCL.

    python scripts/gpu/ranks.py DATA OUT [--preset gpt2] [--steps 24] [--batch-size 16] [--seq-len 1024]

DATA: a folder of `fastgpt prepare`. Trains the same steps by every strategy and remat mode, writes OUT/ranks.jsonl (a
line each: losses, median seconds of a step, largest memory), and prints it. A world of one rank sends nothing to
anyone: what it shows is that the operators run under each strategy, and what Python and copies each adds to a step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

RUNS: dict[str, dict[str, Any]] = {
    "single": {},
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, selective": {"strategy": "fsdp", "remat": "selective"},
    "fsdp, full": {"strategy": "fsdp", "remat": "full"},
    "single, compiled": {"compile": True},
    "fsdp, compiled": {"strategy": "fsdp", "compile": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--seconds", type=int, default=150, help="begin no run after so many")
    args = parser.parse_args()
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, options in RUNS.items():
        if time.monotonic() - began > args.seconds:
            print(f"{name}: no time left")
            continue
        try:
            row = {"run": name, **trained(args, options)}
        except Exception:
            failed += 1
            row = {"run": name, "error": traceback.format_exc()[-3000:]}
        with (args.out / "ranks.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            json.dumps(
                {k: v for k, v in row.items() if k != "losses"}
                | {"losses": row.get("losses", [])[:2] + row.get("losses", [])[-2:]}
            ),
            flush=True,
        )
    return 1 if failed else 0


def trained(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """One run, saved in the middle and gone on with from there: the losses of both, and what a step takes."""
    import torch

    from fastgpt import GPT, GPTConfig
    from fastgpt.data import TokenDataset
    from fastgpt.model.initial import on_meta
    from fastgpt.parallel import launch
    from fastgpt.train.train_config import TrainConfig
    from fastgpt.train.trainer import Trainer

    data = TokenDataset.open(args.data)
    runs = args.out / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    is_cuda = torch.cuda.is_available()
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with launch.world(group=True) as world:
        config = TrainConfig(
            name="run", runs_dir=str(runs), steps=args.steps, batch_size=args.batch_size, seq_len=args.seq_len,
            eval_every=0, save_every=args.steps // 2, log_every=0, tensorboard=False, seed=1, **options,
        )  # fmt: skip
        shape = GPTConfig.preset(args.preset, vocab_size=50304)

        def trainer() -> Trainer:
            torch.manual_seed(1)
            model = on_meta(lambda: GPT(shape)) if options.get("strategy") == "fsdp" else GPT(shape)
            return Trainer(model, data, config, world=world, show_progress=False)

        first = trainer()
        result = first.fit()
        lines = [json.loads(line) for line in (runs / "run" / "metrics.jsonl").read_text().splitlines()]
        tokens = args.batch_size * args.seq_len
        usual = [tokens / line["tokens_per_second"] for line in lines if line["step"] % (args.steps // 2) > 2]
        memory = torch.cuda.max_memory_allocated() if is_cuda else None
        reserved = torch.cuda.max_memory_reserved() if is_cuda else None
        del first
        again = trainer().fit(resume=runs / "run" / "checkpoints" / f"step-{args.steps // 2:08d}")
    return {
        "losses": result.losses, "seconds": statistics.median(usual),
        "mfu": lines[-1]["mfu"], "memory": memory, "reserved": reserved,
        "resumed_is_the_same": again.losses == result.losses[args.steps // 2 :],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
