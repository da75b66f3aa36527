"""How much memory there is at all: what surely does not fit is refused before it fills the machine.

Linux kills a process that has filled the memory, without a word, and others with it; so it must not come to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_CGROUPS = Path("/sys/fs/cgroup")
# Of a group's limit, below its folder: version 2's file, and version 1's, which has a folder for memory alone.
_LIMITS = (("", "memory.max"), ("memory", "memory.limit_in_bytes"))


class Room(NamedTuple):
    """The bytes that there are on a device, all of them, whoever may use them now; `owner` in words."""

    n_bytes: int
    owner: str

    def __str__(self) -> str:
        return f"{self.owner} {readable(self.n_bytes)} of memory"


def room_on(device: torch.device) -> Room | None:
    """What `device` has; None where nothing is taken (meta), or where it is not known."""
    if device.type == "cuda":
        import torch

        return Room(torch.cuda.get_device_properties(device).total_memory, f"{device} has")
    return host_room() if device.type in ("cpu", "mps") else None


def host_room() -> Room | None:
    """RAM and swap, as far as a container (cgroup) and `ulimit -v` let this process have them."""
    sizes = _meminfo()
    if "MemTotal" not in sizes:
        return None
    ram = min([sizes["MemTotal"], *_group_limits()])
    most = ram + sizes.get("SwapTotal", 0)
    may_map = _address_space()
    return Room(most if may_map is None else min(most, may_map), "this process can have")


def readable(n_bytes: int) -> str:
    """Bytes for people: 4.5 PiB, 23.5 GiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = min((max(n_bytes, 1).bit_length() - 1) // 10, len(units) - 1)
    return f"{n_bytes / 2 ** (10 * power):,.{1 if power else 0}f} {units[power]}"


def _address_space() -> int | None:
    """Of `ulimit -v`; None where there is no limit, or no such thing (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    lines = (line.split() for line in _text(Path("/proc/meminfo")).splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def _group_limits() -> list[int]:
    """The limits of this process's cgroup and of those that it lies in. A container sees its own as the root."""
    found = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        for folder, name in _LIMITS:
            if folder in controllers.split(","):  # version 2 names none
                inside = Path(group.strip("/"))
                texts = (_text(_CGROUPS / folder / path / name) for path in (inside, *inside.parents))
                found += [int(text) for text in texts if text.strip().isdigit()]  # "max": none
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
