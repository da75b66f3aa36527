"""From the environment that torchrun gives each process to a `World`, and back to no process group at the end.

    with launch.world() as world:
        Trainer(model, data, TrainConfig(name="mine"), world=world).fit()

started as `torchrun --nproc-per-node 8 script.py`. `fastgpt train` does the same.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from ..base.settings import SettingError, check_integer
from .round import own_round
from .watch import Watch, within
from .world import OtherRankError, World, is_lost

TIMEOUT = 600  # seconds that a rank waits for another
_HEARD = 5.0  # seconds that a rank that ends waits for rank 0 to have learnt of it
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_START = "start with torchrun (torchrun --nproc-per-node N -m fastgpt train ...), which sets it"


class LaunchError(RuntimeError):
    """The processes of a job do not come together, or have lost each other. `blamed`: the ranks that are the reason,
    as far as it is known."""

    def __init__(self, message: str, blamed: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.blamed = blamed


def is_launched() -> bool:
    """Whether a launcher says that this is one process of a job."""
    if os.environ.get("WORLD_SIZE", "") in ("", "1") and os.environ.get("RANK", "") in ("", "0"):
        return all(os.environ.get(name) for name in (*_NUMBERS, "MASTER_ADDR"))
    return True


def is_initialized() -> bool:
    """Whether torch.distributed has a process group."""
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def world(device: str = "auto", *, timeout: int = TIMEOUT, group: bool = False) -> Iterator[World]:
    """The World of this process, with torch.distributed ready: NCCL on CUDA, gloo on CPU; ended with the block.

    Without a launcher it is `World()`, and torch.distributed is left alone.

    Args:
        device: "auto" (each rank its GPU if there are any), "cuda" or "cpu".
        timeout: seconds that a rank waits for another: for it to start, and in every collective.
        group: make a process group of one where there is no launcher: `fully_shard` and DistributedDataParallel need
            one.

    Raises:
        ValueError: an environment that is none of torchrun's. SettingError: a device that is not here, or not here for
            every rank. LaunchError: other ranks do not come, or come no more. OtherRankError: another rank has failed.
    """
    timeout = check_integer("world", "timeout", timeout, least=1)
    if is_initialized():
        yield current(_device(device, int(os.environ.get("LOCAL_RANK", 0)), 1))
        return
    if not is_launched():
        if not group:
            yield World(device=_device(device, None, 1))
            return
        place, address = (0, 1, 0, 1), ""
    else:
        place, address = _environment()
    rank, size, local_rank, local_size = place
    limit = datetime.timedelta(seconds=timeout)
    store = _store(address, rank, size, limit) if address else dist.HashStore()
    at = _met(store, place, device, timeout)
    if at.type == "cuda":
        torch.cuda.set_device(at)
    backend = "cpu:gloo,cuda:nccl" if at.type == "cuda" else "gloo"
    watch = None
    try:
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=limit
        )
        if size > 1:
            watch = Watch(dist.PrefixStore("watch", _own(store)), rank, size, timeout)
        yield World(rank, size, local_rank, local_size, at, watch)
    except Exception as error:
        if size == 1:
            raise
        raise _end(error, store, rank, watch) from (None if is_lost(error) else error.__cause__)
    finally:
        if watch is not None:
            watch.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def current(device: torch.device) -> World:
    """The World of a torch.distributed that somebody has initialised; `World()` where nobody has."""
    if not is_initialized():
        return World(device=device)
    size = dist.get_world_size()
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    local = [int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", size))]
    return World(dist.get_rank(), size, local[0], local[1], device)


def _environment() -> tuple[tuple[int, int, int, int], str]:
    """(rank, size, local rank, local size) and where the ranks meet; ValueError where the environment has them not."""
    found = {}
    for name in (*_NUMBERS, "MASTER_ADDR"):
        text = os.environ.get(name, "")
        if not text:
            raise ValueError(f"{name} is not set, and this is one process of several; {_START}")
        if name in _NUMBERS and not (text.isascii() and text.isdecimal()):
            raise ValueError(f"{name}={text!r} must be a whole number; {_START}")
        found[name] = int(text) if name in _NUMBERS else 0
    for name, least, most, of in (
        ("RANK", 0, found["WORLD_SIZE"] - 1, "WORLD_SIZE"),
        ("LOCAL_WORLD_SIZE", 1, found["WORLD_SIZE"], "WORLD_SIZE"),
        ("LOCAL_RANK", 0, found["LOCAL_WORLD_SIZE"] - 1, "LOCAL_WORLD_SIZE"),
        ("MASTER_PORT", 1, 2**16 - 1, ""),
    ):
        if not least <= found[name] <= most:
            why = f" ({of}={found[of]})" if of else ""
            raise ValueError(f"{name}={found[name]} must be {least} to {most}{why}; {_START}")
    place = (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"])
    return place, f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _store(address: str, rank: int, size: int, limit: datetime.timedelta) -> Any:
    """torch's store at `address`: torchrun's, or held by rank 0."""
    from torch.distributed.rendezvous import rendezvous

    try:
        if rank:
            _reach(address, limit)
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=limit)))
    except (dist.DistError, RuntimeError, OSError) as error:
        if rank == 0 and "clients joined" in str(error):
            come = "not all ranks have come"
        elif rank == 0 and "in use" in str(error):
            raise LaunchError(f"{address} (MASTER_ADDR:MASTER_PORT) is in use; choose another port", (0,)) from None
        else:
            come = "the meeting place of the ranks cannot be reached"
        raise LaunchError(
            f"{address} (MASTER_ADDR:MASTER_PORT): {come} within {limit.total_seconds():.0f} s; see that all "
            f"{size} ranks are started, and can reach it", (rank,) if rank else (),
        ) from None  # fmt: skip
    store.set_timeout(limit)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store  # rank 0's own, and new
    try:
        return own_round(store, rank, size, limit.total_seconds())
    except TimeoutError as error:
        raise _missing(error.args, int(limit.total_seconds())) from None


def _missing(ranks: tuple[int, ...], timeout: int) -> LaunchError:
    names = ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")
    return LaunchError(f"rank {names} has not started within {timeout} s; look at its own output", ranks)


def _reach(address: str, limit: datetime.timedelta) -> None:
    """Wait until somebody listens there: torch's own waiting ends in pages of C++.

    Raises:
        OSError: nobody does, within the limit.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + limit.total_seconds()
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.2)


def _own(store: Any) -> Any:
    """A connection of its own to the same store: one that waits keeps nobody else from it."""
    return store.clone() if hasattr(store, "clone") else store


def _met(store: Any, place: tuple[int, int, int, int], device: str, timeout: int) -> torch.device:
    """Wait for all ranks. This one's device, if all have theirs, and of one kind."""
    rank, size, local_rank, local_size = place
    mine: Exception | None = None
    at = torch.device("cpu")
    try:
        at = _device(device, local_rank, local_size)
    except (ValueError, TypeError) as error:
        mine = error
    store.set(f"met/{rank}", f"{at.type} {'' if mine is None else mine}")
    found = []
    try:
        for other in range(size):
            store.wait([f"met/{other}"], datetime.timedelta(seconds=timeout))
            found.append(store.get(f"met/{other}").decode().partition(" "))
    except (dist.DistError, RuntimeError):
        missing = tuple(other for other in range(size) if not store.check([f"met/{other}"]))
        raise _missing(missing, timeout) from None
    if mine is not None:
        raise mine
    for other, (kind, _, message) in enumerate(found):
        if message:
            raise OtherRankError(other, message)
        if kind != found[0][0]:
            raise LaunchError(f"rank {other} has a {kind} where rank 0 has a {found[0][0]}; name one with --device")
    return at


def _device(name: str, local_rank: int | None, local_size: int) -> torch.device:
    """local_rank None: alone."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank is None:  # as it is named; who trains says what is wrong with it
        kind = ("cuda" if n_gpus else "cpu") if name == "auto" else name
        return torch.device(kind) if kind.partition(":")[0] in ("cpu", "cuda", "mps") else torch.device("cpu")
    if name == "cpu" or (name == "auto" and not n_gpus):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        if not (local_size == 1 and name.startswith("cuda:")):
            raise SettingError("world", "device", name, "must be auto, cuda or cpu where there are several ranks")
        local_rank = int(name.partition(":")[2])
    if not n_gpus:
        need = "cannot be used: torch sees no CUDA GPU here; take auto or cpu, or install a torch with CUDA"
        raise SettingError("world", "device", name, need)
    if not dist.is_nccl_available():
        raise SettingError("world", "device", name, "needs NCCL, which this torch is built without; take cpu")
    if max(local_size, local_rank + 1) > n_gpus:
        need = f"has {n_gpus} GPU{'s' * (n_gpus > 1)} here for {max(local_size, local_rank + 1)} ranks"
        raise SettingError("world", "device", name, f"{need}; start {n_gpus} on this machine, or take cpu")
    return torch.device("cuda", local_rank)


def _end(error: Exception, store: Any, rank: int, watch: Watch | None) -> Exception:
    """The error that ends this rank: its own, which the others are told, or what it knows of theirs."""
    if threading.current_thread() is threading.main_thread():
        # The launcher ends all ranks when the first is gone; this one has something to say.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    has_told = False
    if isinstance(error, OtherRankError):
        found: Exception = error
    elif is_lost(error) and watch is not None:
        blamed, line = watch.why()
        found = LaunchError(line, tuple(blamed))
        watch.lost(blamed, line)
        has_told = True  # rank 0 finds it there, but may only look when this rank's end breaks off its collective
    else:
        if watch is not None:
            watch.failed(str(error) or type(error).__name__)
            if dist.is_initialized() and "nccl" not in dist.get_backend_config():
                dist.destroy_process_group()  # wakes the others; NCCL's would wait for them
        found = error
    blame = found.blamed if isinstance(found, LaunchError) else ()
    setattr(found, "is_silent", rank != next(n for n in range(rank + 1) if n == rank or n not in blame))  # noqa: B010
    if rank == 0:
        within(_HEARD, lambda: store.set("heard", ""))
    elif 0 not in blame and not has_told:  # rank 0 speaks for all; who ends first has the launcher end the others
        within(_HEARD, lambda: store.wait(["heard"], datetime.timedelta(seconds=_HEARD)))
    return found
