"""What looking after token folders costs: `python -m benchmarks.shards_cost [GB]`, of a set of so many GB (default 1).

CPU seconds, the least of several calls, with the file system's cache warm: of reading it in whole, per GB; of opening
it by its time stamps alone; of reading a window of 1024 tokens, beside the same from the bare map. Bytes of a pickle.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastgpt.data import TokenDataset
from fastgpt.data.shard_writing import ShardWriter

WINDOW, READS, VOCAB_SIZE = 1025, 20_000, 50_257


def main(gigabytes: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FASTGPT_CACHE"] = f"{scratch}/cache"
        folder = Path(scratch, "set")
        _write(folder, round(gigabytes * 5e8))
        TokenDataset.open(folder, verify=True)  # its bytes are now in memory
        whole = _seconds(lambda: TokenDataset.open(folder, verify=True))
        quick = _seconds(lambda: TokenDataset.open(folder), times=20)
        dataset = TokenDataset.open(folder)
        shard, pick = dataset.shards[0], random.Random(0)
        starts = [pick.randrange(len(shard) - WINDOW) for _ in range(READS)]
        bare = _seconds(lambda: [shard[at : at + WINDOW].astype(np.int64) for at in starts])
        read = _seconds(lambda: [dataset.read(at, at + WINDOW) for at in starts])
        print(f"{gigabytes:g} GB, {len(dataset.shards)} shards, {len(dataset.documents):,} documents")
        print(f"read in whole (--verify, or a new time stamp)   {whole / gigabytes:8.2f} s per GB")
        print(f"opened by size and time stamp                   {quick * 1e3:8.2f} ms")
        print(f"a read of {WINDOW} tokens                          {read / READS * 1e6:8.2f} us")
        print(f"the same from the bare map                      {bare / READS * 1e6:8.2f} us")
        print(f"pickled                                         {len(pickle.dumps(dataset)):8,} bytes")


def _write(folder: Path, n: int) -> None:
    folder.mkdir()
    writer = ShardWriter(folder, np.dtype("<u2"), 1 << 27)
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, 1 << 20)
    for start in range(0, n, len(ids)):
        writer.write(ids[: n - start])
    about = {"name": "none", "vocab_size": VOCAB_SIZE, "sha256": "0" * 64}
    writer.close(np.arange(0, n, 1000), tokenizer=about, n_bytes=4 * n, sources=[])


def _seconds(call: Callable[[], object], times: int = 3) -> float:
    """Of the quickest of `times` calls."""
    found = []
    for _ in range(times):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
