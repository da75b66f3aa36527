"""Links by name, and by their speed."""

import pytest

from fastgpt.base.settings import SettingError
from fastgpt.tools.gpus import GPUS
from fastgpt.tools.links import LINKS, find_link, link_of


def test_speeds_of_one_direction():
    """As data sheets print both directions together: half of it; InfiniBand's are bits of one direction."""
    both = {"nvlink5": 1800, "nvlink4": 900, "nvlink3": 600, "nvlink2": 300, "pcie5": 128, "pcie4": 64, "pcie3": 32}
    one = {"xdr": 800 / 8, "ndr": 400 / 8, "hdr": 200 / 8, "100gbe": 100 / 8}
    speeds = {name: link.bytes_per_second / 1e9 for name, link in LINKS.items()}
    assert speeds == {name: speed / 2 for name, speed in both.items()} | one
    assert all(link.name == name and link.source for name, link in LINKS.items())


@pytest.mark.parametrize(
    ("text", "name"), [("nvlink4", "nvlink4"), ("NVLink 4", "nvlink4"), ("PCIe-5", "pcie5"), ("NDR", "ndr")]
)
def test_by_name(text, name):
    assert find_link(text, "link") is LINKS[name]


def test_by_speed():
    assert find_link("12.5", "link").bytes_per_second == 12.5e9


def test_every_gpu_has_one():
    assert {link_of(gpu).name for gpu in GPUS} == {
        "nvlink5",
        "nvlink4",
        "nvlink3",
        "nvlink2",
        "pcie5",
        "pcie4",
        "pcie3",
    }
    assert [link_of(gpu).name for gpu in ("h100", "h200", "a100-40gb", "rtx4090", "80 GiB")] == [
        "nvlink4", "nvlink4", "nvlink3", "pcie4", "pcie4"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "20000", "nvlink", ""])
def test_what_is_none(text):
    with pytest.raises(SettingError, match=r"network='.*' must be GB/s in one direction, at most 10,000, or one of "):
        find_link(text, "network")
