"""From the names of a device and a dtype, as options have them, to torch's own."""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any

import torch

from ..base.settings import SettingError, SettingTypeError, check_choice
from .train_config import DTYPES


def resolve_device(name: str | torch.device, *, owner: str = "resolve_device") -> torch.device:
    """The device called `name`; "auto" is a GPU if there is one.

    Raises:
        SettingError: no such device here; the message names those that there are. SettingTypeError: no string.
    """
    if not isinstance(name, (str, torch.device)):
        raise SettingTypeError(owner, "device", name, 'must be a string, e.g. "auto", "cpu" or "cuda:1"')
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ["mps"] if torch.backends.mps.is_available() else []
    here = ["auto", "cpu", *mps, *(["cuda"] if n_gpus else []), *(f"cuda:{n}" for n in range(n_gpus))]
    if name in here:
        return torch.device(name)
    if name.partition(":")[0] == "cuda" and not n_gpus:
        need = "cannot be used: torch sees no CUDA GPU here; take auto or cpu, or install a torch with CUDA"
    else:
        need = f"must be one of {', '.join(here)}"
    raise SettingError(owner, "device", name, need)


def resolve_dtype(name: str, device: torch.device, *, owner: str = "resolve_dtype") -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16 on GPUs that compute in it, else float32.

    Raises:
        SettingError: neither of `DTYPES`. SettingTypeError: no string.
    """
    check_choice(owner, "dtype", name, DTYPES)
    if name == "auto":
        fits = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fits else torch.float32
    return getattr(torch, name)


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model of float32 weights computes in `dtype`."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def threads_hint() -> str | None:
    """What to do where torch has more threads than this machine has free cores; None where it has not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _threads_hint(torch.get_num_threads(), cores, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)


def _threads_hint(threads: int, cores: int, load: float) -> str | None:
    # Others may run on any core: of those that we may use, as many are free as the load leaves, but always one.
    free = max(1, min(cores, (os.cpu_count() or cores) - math.floor(load)))
    if threads <= free:
        return None
    why = f"the load is {load:.1f}" if free < cores else "no more may be used"
    return (
        f"hint: torch computes with {threads} threads, and this machine has {free} free for it ({why}): threads that "
        f"wait for each other slow training down; --threads {free}, or OMP_NUM_THREADS={free}, may be faster"
    )
