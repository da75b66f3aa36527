"""What the numbers of a page depend on: machine, versions, and when and by which command it was made."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path


def environment() -> list[tuple[str, str]]:
    """(what, version or name) of what the numbers of a report depend on."""
    import torch

    from .._version import __version__
    from ..kernels import support

    rows = [
        ("fastgpt", __version__),
        ("Python", platform.python_version()),
        ("torch", torch.__version__),
    ]
    if support.has_triton():
        import importlib.metadata

        rows.append(("triton", importlib.metadata.version("triton")))
    else:
        rows.append(("triton", "not installed"))
    if torch.cuda.is_available():
        rows.append(("GPU", torch.cuda.get_device_name()))
        rows.append(("CUDA", str(torch.version.cuda or torch.version.hip)))
    else:
        rows.append(("GPU", "none"))
    rows.append(("CPU", f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"))
    rows.append(("system", f"{platform.system()} {platform.release()}"))
    return rows


def made_by() -> list[tuple[str, str]]:
    """(what, value) of this very moment: date, command, commit of fastgpt's source tree ("installed": it is none)."""
    now = datetime.datetime.now().astimezone()
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    words = [name, *sys.argv[1:]]
    return [
        ("date", now.strftime("%Y-%m-%d %H:%M %Z")),
        ("command", shlex.join(words)),
        ("commit", commit()),
    ]


@functools.cache
def commit() -> str:
    """`git describe` of the source tree that is running, or that of the environment variable FASTGPT_COMMIT."""
    if os.environ.get("FASTGPT_COMMIT"):
        return os.environ["FASTGPT_COMMIT"]
    tree = Path(__file__).parents[2]
    if not (tree / ".git").exists():
        return "installed"
    try:
        # Without locks: else it writes what it found into the index, which is not ours.
        words = ["git", "--no-optional-locks", "-C", str(tree), "describe", "--always", "--dirty"]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _cpu_name() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
