#!/usr/bin/env python3
"""The depth study of a GPU session: its tokens, made where there is tiktoken; its kernels, noted where there is no GPU.

    python scripts/gpu/study.py tokens FOLDER       some 10 million GPT-2 tokens of ../shared/data/corpus (Wikipedia and
                                                    books), or of the embedded Shakespeare: FOLDER/train and FOLDER/val
    python scripts/gpu/study.py kernels             launch each kernel of the study's grid once, as training, validation
                                                    and measures do

`scripts/gpu_session.sh OUT 200 study` runs the study on those tokens.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "data" / "corpus"
CHARACTERS = {"train": 21_000_000, "val": 1_000_000}  # of each kind: 2 bytes a token of 4 to 5 characters must travel
SHARDS = {"train": ("wiki-train-00", "books-train-00"), "val": ("wiki-val", "books-val")}


def make_tokens(folder: Path) -> None:
    """Replace FOLDER/train and FOLDER/val."""
    from fastgpt.data import prepare, shakespeare_tokens
    from fastgpt.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.named("gpt2")
    for split in ("train", "val"):
        shutil.rmtree(folder / split, ignore_errors=True)
        if not CORPUS.is_dir():
            with tempfile.TemporaryDirectory() as work:
                text = Path(work, "shakespeare.txt")
                data = shakespeare_tokens(split, tokenizer)
                text.write_text(tokenizer.decode(data.read(0, len(data)).tolist()), encoding="utf-8")
                prepare([text], folder / split, tokenizer)
            continue
        with tempfile.TemporaryDirectory() as work:
            texts = [beginning(CORPUS / f"{name}.jsonl.xz", CHARACTERS[split], Path(work)) for name in SHARDS[split]]
            found = prepare(texts, folder / split, tokenizer)
        print(f"{folder / split}: {len(found):,} tokens")


def beginning(shard: Path, characters: int, work: Path) -> Path:
    """The first documents of a shard, so many characters."""
    path = work / shard.name.removesuffix(".xz")
    with lzma.open(shard, "rt", encoding="utf-8") as lines, path.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps({"text": json.loads(line)["text"]}) + "\n")
            if (characters := characters - len(line)) <= 0:
                break
    return path


def launch_kernels() -> None:
    """What the study launches, on whatever torch takes for a GPU; what is computed does not matter."""
    import torch

    from fastgpt.study.depth.config import DepthConfig
    from fastgpt.study.depth.measures import LOOKED_AT
    from fastgpt.study.depth.variants import make
    from fastgpt.train.devices import autocast, resolve_dtype

    config = DepthConfig(layers=(2,))  # a kernel does not know how often it is launched
    device = torch.device("cuda")
    dtype = resolve_dtype(config.dtype, device)
    for cell in config.cells():
        model = make(cell.model_config(50257, config), norm=cell.norm).to(device)
        for batch, number in ((config.micro_batch, dtype), (LOOKED_AT, torch.float32)):
            idx = torch.zeros(batch, config.seq_len, dtype=torch.int64, device=device)
            for training in (True, False):
                model.train(training)
                with autocast(device, number):
                    loss = model(idx, idx).loss
                loss.backward()
            with torch.no_grad(), autocast(device, number):
                model(idx, idx)
        with torch.no_grad():
            model.attention_maps(idx)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu/study.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokens").add_argument("folder", type=Path)
    commands.add_parser("kernels")
    args = parser.parse_args(argv)
    if args.command == "tokens":
        make_tokens(args.folder)
    else:
        launch_kernels()
    return 0


if __name__ == "__main__":
    sys.exit(main())
