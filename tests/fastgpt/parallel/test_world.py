"""`World`, alone and with gloo."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from fastgpt.parallel.world import OtherRankError, World


def test_alone_needs_no_process_group():
    world = World()
    assert world.is_first
    assert (world.objects("mine"), world.from_first(3)) == (["mine"], 3)
    assert torch.equal(world.gathered(torch.tensor([1.0, 2.0])), torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="mine"), world.together():
        raise ValueError("mine")


def test_two_ranks(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [
        "ValueError: broken",
        "OtherRankError: rank 0: broken",
    ]


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = World(rank, 2)
    assert world.gathered(torch.tensor([rank + 1.0, 5.0])).tolist() == [[1.0, 5.0], [2.0, 5.0]]
    assert world.objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert world.from_first(rank) == 0
    world.wait()
    with world.together():
        pass
    error: Any = None
    try:
        with world.together():
            if rank == 0:
                raise ValueError("broken")
    except (ValueError, OtherRankError) as raised:
        error = raised
    (Path(folder) / str(rank)).write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()
