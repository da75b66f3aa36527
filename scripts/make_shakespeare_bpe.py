"""Write fastgpt/data/assets/shakespeare-4096.tiktoken.xz: the byte-pair vocabulary that `fastgpt demo` uses.

    python scripts/make_shakespeare_bpe.py

Needs the package `tokenizers` (which transformers brings). Deterministic: trained on the embedded training split, work
by work, with GPT-2's pre-tokenization; 4095 ranks, and `<|endoftext|>` is the 4096th id.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from fastgpt import data
from fastgpt.data import tokenizer

VOCAB_SIZE = 4096


def byte_of_symbol() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others for the code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def main() -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(data.shakespeare("train").split(tokenizer.END_OF_TEXT), trainer)
    byte_of = byte_of_symbol()
    by_rank = sorted(json.loads(bpe.to_str())["model"]["vocab"].items(), key=lambda item: item[1])
    lines = [base64.b64encode(bytes(byte_of[s] for s in symbols)) + b" %d\n" % rank for symbols, rank in by_rank]
    ranks = b"".join(lines)
    path = Path(tokenizer.__file__).parent / "assets" / f"shakespeare-{VOCAB_SIZE}.tiktoken.xz"
    path.write_bytes(lzma.compress(ranks, preset=9))
    print(f"{path}: {len(lines)} ranks, sha256 {hashlib.sha256(ranks).hexdigest()}")


if __name__ == "__main__":
    main()
