"""From torchrun's environment to a World, and what is said where ranks do not come together."""

from __future__ import annotations

import socket
import time

import pytest
import torch
import torch.distributed as dist

from fastgpt.base.settings import SettingError
from fastgpt.parallel import launch, watch
from fastgpt.parallel.launch import LaunchError
from fastgpt.parallel.watch import Watch
from fastgpt.parallel.world import OtherRankError, World, is_lost

GOOD = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in (*GOOD, "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)

    def put(**values: str) -> None:
        for name, value in (GOOD | values).items():
            monkeypatch.setenv(name, value)

    return put


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize(("values", "message"), [
    ({"RANK": ""}, r"RANK is not set, and this is one process of several; start with torchrun"),
    ({"LOCAL_RANK": ""}, r"LOCAL_RANK is not set"),
    ({"MASTER_ADDR": ""}, r"MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "two"}, r"WORLD_SIZE='two' must be a whole number"),
    ({"RANK": "2"}, r"RANK=2 must be 0 to 1 \(WORLD_SIZE=2\)"),
    ({"LOCAL_RANK": "2"}, r"LOCAL_RANK=2 must be 0 to 1 \(LOCAL_WORLD_SIZE=2\)"),
    ({"LOCAL_WORLD_SIZE": "3"}, r"LOCAL_WORLD_SIZE=3 must be 1 to 2 \(WORLD_SIZE=2\)"),
    ({"MASTER_PORT": "0"}, r"MASTER_PORT=0 must be 1 to 65535;"),
])  # fmt: skip
def test_an_environment_that_is_none(environment, values, message):
    environment(**values)
    with pytest.raises(ValueError, match=message), launch.world("cpu"):
        pass
    assert not dist.is_initialized()


def test_without_a_launcher_one_is_alone(environment, monkeypatch):
    with launch.world("cpu") as world:
        assert world == World()
        assert not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")  # of a cluster that knows no torchrun
    with launch.world("cpu", group=True) as world:
        assert world == World()
        assert dist.get_world_size() == 1
        assert launch.current(torch.device("cpu")) == world
    assert not dist.is_initialized()


@pytest.mark.parametrize(("rank", "message"), [
    ("0", "not all ranks have come within 1 s; see that all 2 ranks are started"),
    ("1", "the meeting place of the ranks cannot be reached within 1 s"),
])  # fmt: skip
def test_ranks_that_do_not_come(environment, rank, message):
    port = free_port()
    environment(RANK=rank, LOCAL_RANK=rank, MASTER_PORT=port)
    began = time.monotonic()
    with pytest.raises(LaunchError, match=message) as raised, launch.world("cpu", timeout=1):
        pass
    assert str(raised.value).startswith(f"127.0.0.1:{port} (MASTER_ADDR:MASTER_PORT): ")
    assert time.monotonic() - began < 20
    assert not dist.is_initialized()


@pytest.mark.parametrize(("device", "n_gpus", "message"), [
    ("cuda", 0, "cannot be used: torch sees no CUDA GPU here"),
    ("cuda", 1, "has 1 GPU here for 2 ranks; start 1 on this machine, or take cpu"),
    ("auto", 1, "has 1 GPU here for 2 ranks"),
    ("cuda:1", 2, "must be auto, cuda or cpu where there are several ranks"),
    ("mps", 0, "must be auto, cuda or cpu where there are several ranks"),
])  # fmt: skip
def test_a_device_that_not_every_rank_has(monkeypatch, device, n_gpus, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    store = dist.HashStore()
    store.set("met/1", "cpu ")
    with pytest.raises(SettingError, match=message):
        launch._met(store, (0, 2, 0, 2), device, 1)
    assert message in store.get("met/0").decode()  # the others are told


def test_another_ranks_device_is_told_here():
    store = dist.HashStore()
    store.set("met/1", "cpu there is none")
    with pytest.raises(OtherRankError, match="rank 1: there is none"):
        launch._met(store, (0, 2, 0, 2), "cpu", 1)
    store.set("met/1", "cuda ")
    with pytest.raises(LaunchError, match="rank 1 has a cuda where rank 0 has a cpu"):
        launch._met(store, (0, 2, 0, 2), "cpu", 1)
    with pytest.raises(LaunchError, match="rank 2 has not started within 1 s") as raised:
        launch._met(store, (0, 3, 0, 3), "cpu", 1)
    assert raised.value.blamed == (2,)


@pytest.fixture
def quick(monkeypatch):
    """Of the watch: what takes seconds takes tenths."""
    monkeypatch.setattr(watch, "BEAT", 0.05)
    monkeypatch.setattr(watch, "_GONE", 0.4)


def test_a_watch_names_who_is_behind_gone_or_failed(quick):
    store = dist.HashStore()
    watches = [Watch(store, rank, 3, 60) for rank in range(3)]
    try:
        for one in watches:
            one.mark(7)
        for one in watches[:2]:
            one.mark()
        time.sleep(0.2)
        blamed, line = watches[0].why()
        assert blamed == [2]
        assert line == "rank 2 has not arrived; rank 0 waited at step 7, 0 s long (--timeout 60)"
        watches[1].close()  # no word comes from it any more
        assert watches[0].why()[0] == [1]
        assert watches[0].why()[1].startswith("rank 1 is gone, or standing still: nothing is heard any more; rank 0 ")
        watches[2].failed("no room is left")
        assert watches[0].why() == ([2], "rank 2: no room is left")
    finally:
        for one in watches:
            one.close()


def test_a_store_that_does_not_answer(quick, monkeypatch):
    monkeypatch.setattr(watch, "_ANSWER", 0.1)
    one = Watch(dist.HashStore(), 1, 2, 60)
    try:
        monkeypatch.setattr(one, "_words", lambda: time.sleep(3))
        blamed, line = one.why()
        assert blamed == [0]
        assert line.startswith("rank 0, where the ranks meet, is gone, or standing still; rank 1 waited at the start")
    finally:
        one.close()


def test_which_errors_are_other_ranks():
    lost = ["[enforce fail at x.cc:9] Connection closed by peer [127.0.0.1]:5", "[a.cc:1] Timed out waiting 5000ms"]
    assert all(is_lost(RuntimeError(text)) for text in lost)
    assert is_lost(OtherRankError(1, "x"))
    assert is_lost(dist.DistBackendError("NCCL"))
    assert not any(map(is_lost, (RuntimeError("out of memory"), ValueError(lost[0]), None)))
