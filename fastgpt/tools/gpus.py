"""GPUs by name: how much memory they have, and what they are to a compiler."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..base.settings import SettingError, nearest
from ..kernels import _runtime

LARGEST_GIB = 1024  # a larger number, 3090, is a name


@dataclass(frozen=True)
class GPU:
    """name; memory in bytes; arch: "sm_90" (also of a GPU of which nothing but its size is known)."""

    name: str
    memory: int
    arch: str

    @property
    def runs_kernels(self) -> bool:
        """Whether Triton compiles for it."""
        return self.arch in _runtime.KNOWN_TARGETS

    @property
    def has_bfloat16(self) -> bool:
        """Whether its tensor cores compute in bfloat16: from Ampere on."""
        return self.arch not in ("sm_70", "sm_75")


# Memory as nvidia-smi reports it, in MiB: what the board has, less what the driver keeps (with ECC on, as data centres
# have it). Of b200, gb200, h200, h100, h100-nvl, a100, l40s, a10, l4 and t4 as seen in users' output; of the others as
# on NVIDIA's data sheets and in older output.
_TABLE = {
    "gb200": (189471, "sm_100"),
    "b200": (183359, "sm_100"),
    "h200": (143771, "sm_90"),
    "h100": (81559, "sm_90"),
    "h100-nvl": (95830, "sm_90"),
    "a100-80gb": (81920, "sm_80"),
    "a100-40gb": (40960, "sm_80"),
    "l40s": (46068, "sm_89"),
    "l40": (46068, "sm_89"),
    "l4": (23034, "sm_89"),
    "a40": (46068, "sm_86"),
    "a10g": (23028, "sm_86"),
    "a10": (23028, "sm_86"),
    "a6000": (49140, "sm_86"),
    "rtx6000-ada": (49140, "sm_89"),
    "rtx5090": (32607, "sm_120"),
    "rtx4090": (24564, "sm_89"),
    "rtx3090": (24576, "sm_86"),
    "t4": (15360, "sm_75"),
    "v100-32gb": (32768, "sm_70"),
    "v100-16gb": (16384, "sm_70"),
}
GPUS = {name: GPU(name, mib * 2**20, arch) for name, (mib, arch) in _TABLE.items()}


def find_gpu(text: str, owner: str = "find_gpu") -> GPU:
    """The GPU called `text` ("h100", "RTX 3090", "NVIDIA A100-SXM4-80GB"), or one of so many GiB.

    Raises:
        SettingError: no such GPU, several, or no size that a GPU can have.
    """
    exact, near = _matching(text)
    need = f"must be a number of GiB, at most {LARGEST_GIB}, or one of {', '.join(GPUS)}"
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if 0 < size <= LARGEST_GIB:
        return GPU(f"{size:g} GiB", int(size * 2**30), "sm_90")
    if len(exact) == 1 and math.isnan(size):
        return GPUS[exact[0]]
    candidates = exact or near
    if len(candidates) > 1:
        raise SettingError(owner, "gpu", text, f"is one of several; take {' or '.join(candidates)}")
    meant = f"did you mean {candidates[0]!r}?" if candidates else nearest(text, GPUS)
    raise SettingError(owner, "gpu", text, f"{need}; {meant}" if meant else need)


def _matching(text: str) -> tuple[list[str], list[str]]:
    """The names that `text` is one of, as people, shops and drivers write them; and those that it begins."""
    key = _key(text)
    keys = {name: {short := _key(name), f"rtx{short}", short.removeprefix("rtx")} for name in GPUS}
    for spelt in (key, re.sub(r"(24|48|80|94|141|180|186)gb$", "", key)):  # "NVIDIA H100 80GB HBM3"
        if exact := [name for name in GPUS if spelt in keys[name]]:
            return exact, []
    return [], [name for name in GPUS if key and _key(name).startswith(key)]


def _key(text: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|quadro|generation|pcie|sxm\d?|hbm\d?e?|[^a-z0-9]", "", text.lower())
