"""The ranks of one job: processes of a gloo group on this machine's CPU, for tests of what several do together."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TIMEOUT = 120.0  # seconds for all of it; a rank that waits for one that is gone waits as long
_GIVEN = "result-{}.pt"

# What importing takes seconds of: the processes are forked from one that has done it, once for all tests.
_IMPORTED = ["torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "fastgpt"]


def run_ranks(function: Callable[..., Any], size: int, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """`function(rank, *args)` in `size` processes, the ranks of a gloo group. What each returned, by rank.

    function, args: what pickle takes, so a function of a module, not one inside of another. Results: what torch.save
    takes. The processes know nothing of what the test has patched, nor of the variables that it has set.

    Raises:
        AssertionError: a rank's error, with its traceback; or they took longer than `timeout`, which kills them.
    """
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory(prefix="fastgpt-ranks-") as folder:
        multiprocessing.set_forkserver_preload(_IMPORTED)
        arguments = (size, function, args, folder, timeout)
        context = mp.start_processes(_rank, arguments, nprocs=size, join=False, start_method="forkserver")
        end = time.monotonic() + timeout
        try:
            while not context.join(timeout=1.0):
                if time.monotonic() > end:
                    raise AssertionError(f"{size} ranks of {function.__name__} took longer than {timeout:.0f} s")
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            told = sorted(Path(folder).glob("error-*"), key=lambda path: path.stat().st_mtime_ns)  # the cause first
            raise AssertionError("\n".join(path.read_text() for path in told) or str(error)) from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder, _GIVEN.format(rank)), weights_only=False) for rank in range(size)]


def _rank(
    rank: int, size: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str, timeout: float
) -> None:
    import torch.distributed as dist

    os.environ.setdefault("FASTGPT_CACHE", folder)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )  # fmt: skip
    try:
        result = function(rank, *args)
    except BaseException:
        Path(folder, f"error-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise
    torch.save(result, Path(folder, _GIVEN.format(rank)))
    dist.barrier()  # none leaves while another still needs it
    dist.destroy_process_group()
