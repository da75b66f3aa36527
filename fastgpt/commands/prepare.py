"""`fastgpt prepare`: tokenize texts into memory-mapped shards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from . import _inputs


@dataclass
class Command:
    """Tokenize texts into memory-mapped shards that `fastgpt train --data` reads."""

    sources: Positional[Annotated[tuple[str, ...], arg(metavar="SOURCES")]]
    """Files (.txt, .jsonl, and .gz, .xz, .zst of them) or folders of them."""
    out: str = "tokens"
    """Folder to write."""
    tokenizer: str = "gpt2"
    """"gpt2", "shakespeare", or a .tiktoken file."""
    separators: bool = False
    """Take <|endoftext|> in the texts for the end of a document (otherwise it is ordinary text)."""
    shard_tokens: int = 1 << 28
    """Tokens per shard."""
    threads: int | None = None
    """Threads of the tokenizer; one per CPU, at most 8, if not given."""
    overwrite: bool = False
    """Replace the shards that are already there; other files in the folder stay."""

    def run(self) -> int:
        from ..data import prepare
        from ..data.tokenizer import Tokenizer

        there = os.path.exists(self.out)
        try:
            with _inputs.renamed(folder="out"), _inputs.of_option("SOURCES"):
                dataset = prepare(
                    self.sources, self.out, Tokenizer.load(self.tokenizer), separators=self.separators,
                    shard_tokens=self.shard_tokens, threads=self.threads, overwrite=self.overwrite,
                )  # fmt: skip
        except KeyboardInterrupt:
            kept = f"{self.out} is as it was" if there else "nothing was written"
            raise KeyboardInterrupt(kept) from None
        print(
            f"{self.out}: {len(dataset):,} tokens in {len(dataset.documents):,} documents, "
            f"{len(dataset.shards)} shards of {dataset.shards[0].dtype}"
        )
        return 0
