"""How much memory there is: what the machine has, what a container and `ulimit` leave of it, what a GPU has."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import pytest
import torch

from fastgpt.base import machine
from fastgpt.base.machine import host_room, readable, room_on

MEMINFO = "MemTotal:    1000 kB\nMemFree:      10 kB\nSwapTotal:    500 kB\nHugePages_Total:       0\n"
KIB = 1024


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files in the system's place: {path: text}; RAM 1000 KiB and swap 500 KiB, if nothing else is said."""
    files = {"/proc/meminfo": MEMINFO, "/proc/self/cgroup": ""}
    monkeypatch.setattr(machine, "_text", lambda path: files.get(str(path), ""))
    return files


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1500),
        ({"/proc/meminfo": "MemTotal: 7 kB\n"}, 7),
        # version 2: the process's own group, one that it lies in, none of its limits
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "204800\n"}, 700),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/memory.max": "204800\n"}, 700),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "204800\n"}, 700),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "max\n"}, 1500),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/b/memory.max": "204800\n"}, 1500),
        # version 1, also where a container does not see its own group's folder
        ({"/proc/self/cgroup": "4:memory:/a\n", "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "204800\n"}, 700),
        (
            {
                "/proc/self/cgroup": "7:cpu,cpuacct:/a\n4:memory:/a\n0::/\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "204800\n",
            },
            700,
        ),
        ({"/proc/self/cgroup": "4:memory:/\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}"}, 1500),
    ],
)
def test_ram_and_swap_as_far_as_a_container_may(system, files, expected):
    system.update(files)
    assert host_room().n_bytes == expected * KIB


@pytest.mark.parametrize(("most", "expected"), [(600 * KIB, 600), (10**9, 1500), (resource.RLIM_INFINITY, 1500)])
def test_ulimit(system, monkeypatch, most, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (most, most) if kind == resource.RLIMIT_AS else (0, 0))
    assert host_room().n_bytes == expected * KIB


def test_not_known(system):
    system["/proc/meminfo"] = ""
    assert host_room() is None


def test_here():
    room = host_room()
    assert 2**28 < room.n_bytes < 2**50
    assert room_on(torch.device("cpu")) == room
    assert str(room) == f"this process can have {readable(room.n_bytes)} of memory"


def test_other_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    assert str(room_on(torch.device("cuda:1"))) == "cuda:1 has 80.0 GiB of memory"
    assert room_on(torch.device("meta")) is None


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (2**73, "8,192.0 EiB")],
)
def test_readable(n, text):
    assert readable(n) == text
