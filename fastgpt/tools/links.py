"""Links between GPUs by name: the bytes that one GPU sends in a second, in one direction, as vendors print it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..base.settings import SettingError, nearest

FASTEST = 10_000  # GB/s; a larger number is a mistake in the unit


@dataclass(frozen=True)
class Link:
    """name; bytes_per_second: of one GPU, in one direction; source: who says so."""

    name: str
    bytes_per_second: float
    source: str


# Where the source gives both directions together: half of it.
_TABLE = (
    Link("nvlink5", 900e9, "NVIDIA DGX B200 data sheet: 1.8 TB/s a GPU, both directions"),
    Link("nvlink4", 450e9, "NVIDIA H100 and H200 data sheets: 900 GB/s a GPU, both directions"),
    Link("nvlink3", 300e9, "NVIDIA A100 data sheet: 600 GB/s a GPU, both directions"),
    Link("nvlink2", 150e9, "NVIDIA V100 data sheet: 300 GB/s a GPU, both directions"),
    Link("pcie5", 64e9, "NVIDIA H100 PCIe data sheet: PCIe Gen5 x16, 128 GB/s, both directions"),
    Link("pcie4", 32e9, "NVIDIA A100 PCIe data sheet: PCIe Gen4 x16, 64 GB/s, both directions"),
    Link("pcie3", 16e9, "NVIDIA T4 data sheet: PCIe Gen3 x16, 32 GB/s, both directions"),
    Link("xdr", 100e9, "InfiniBand XDR x4, 800 Gb/s: NVIDIA ConnectX-8 data sheet"),
    Link("ndr", 50e9, "InfiniBand NDR x4, 400 Gb/s: NVIDIA ConnectX-7 data sheet"),
    Link("hdr", 25e9, "InfiniBand HDR x4, 200 Gb/s: NVIDIA ConnectX-6 data sheet"),
    Link("100gbe", 12.5e9, "100 Gb/s Ethernet: IEEE 802.3"),
)
LINKS = {link.name: link for link in _TABLE}

# How the GPUs of one machine are joined where each is sold so. All others by PCIe 4.
_OF_GPU = {
    "gb200": "nvlink5", "b200": "nvlink5", "h200": "nvlink4", "h100": "nvlink4", "h100-nvl": "pcie5",
    "a100-80gb": "nvlink3", "a100-40gb": "nvlink3", "t4": "pcie3", "v100-32gb": "nvlink2", "v100-16gb": "nvlink2",
}  # fmt: skip


def link_of(gpu: str) -> Link:
    """What joins GPUs of this name (`gpus.GPUS`) in one machine."""
    return LINKS[_OF_GPU.get(gpu, "pcie4")]


def find_link(text: str, name: str, owner: str = "find_link") -> Link:
    """The link called `text` ("nvlink4", "NDR"), or one of so many GB/s in one direction. `name`: the setting's.

    Raises:
        SettingError: no such link, or no speed that a link can have.
    """
    key = text.lower().replace("-", "").replace(" ", "")
    if key in LINKS:
        return LINKS[key]
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if 0 < speed <= FASTEST:
        return Link(f"{speed:g} GB/s", speed * 1e9, "as given")
    need = f"must be GB/s in one direction, at most {FASTEST:,}, or one of {', '.join(LINKS)}"
    meant = nearest(text, LINKS)
    raise SettingError(owner, name, text, f"{need}; {meant}" if meant else need)
