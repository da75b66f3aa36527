"""What a training run reports: speed against the hardware's peak, loss per token and per byte, and where it is kept."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import resource
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..base.files import is_pipe, replace_file

_log = logging.getLogger("fastgpt")

# Dense bf16 tensor-core FLOP/s, float32 accumulation, from the vendors' data sheets (where only "with sparsity" is
# printed: half of it). (pattern in the device's name, FLOP/s, source); the first match counts.
PEAK_BF16 = (
    (r"\bGB200\b", 2500e12, "NVIDIA GB200 NVL72 data sheet"),
    (r"\bB200\b", 2250e12, "NVIDIA DGX B200 data sheet, per GPU"),
    (r"\bH200 NVL\b", 835.5e12, "NVIDIA H200 data sheet"),
    (r"\bH200\b", 989.5e12, "NVIDIA H200 data sheet"),
    (r"\bH100 NVL\b", 835.5e12, "NVIDIA H100 data sheet"),
    (r"\bH100 PCIe\b", 756.5e12, "NVIDIA H100 PCIe data sheet"),
    (r"\bH100\b", 989.4e12, "NVIDIA H100 data sheet (SXM)"),
    (r"\bA100\b", 312e12, "NVIDIA A100 data sheet"),
    (r"\bL40S\b", 362e12, "NVIDIA L40S data sheet"),
    (r"\bL4\b", 121e12, "NVIDIA L4 data sheet"),
    (r"\bA10\b", 125e12, "NVIDIA A10 data sheet"),
    (r"\bA40\b", 149.7e12, "NVIDIA A40 data sheet"),
    (r"\bRTX A6000\b", 154.8e12, "NVIDIA RTX A6000 data sheet"),
    (r"\bRTX 4090\b", 165.2e12, "NVIDIA Ada GPU architecture white paper"),
    (r"\bRTX 3090\b(?! Ti)", 71e12, "NVIDIA Ampere GA102 GPU architecture white paper"),
    (r"\bMI325X\b", 1307.4e12, "AMD Instinct MI325X data sheet"),
    (r"\bMI300X\b", 1307.4e12, "AMD Instinct MI300X data sheet"),
)

MFU_FORMULA = "MFU = tokens/s · FLOPs per token (forward + backward, nothing recomputed) / dense bf16 peak"


@functools.cache
def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """The peak of a GPU by its name, FLOP/s; None where the table has no row (and for other types than bf16)."""
    if dtype != torch.bfloat16:
        return None
    return next((peak for pattern, peak, _ in PEAK_BF16 if re.search(pattern, device_name)), None)


def mfu(tokens_per_second: float, flops_per_token: float, device: torch.device, dtype: torch.dtype) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B) as a fraction, or None on unknown hardware."""
    if device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device), dtype)
    return None if peak is None else tokens_per_second * flops_per_token / peak


def memory_bytes(device: torch.device) -> int:
    """Peak so far: allocated on the GPU, or the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def perplexity(loss: float) -> float:
    """exp(loss), loss in nats per token; inf where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(total_nats: float, total_bytes: int) -> float | None:
    """Loss over a text in bits per byte of it, which does not depend on the tokenizer; None for no bytes."""
    return total_nats / math.log(2) / total_bytes if total_bytes else None


class MetricsLog:
    """One JSON object per line in `path`: a step's measurements, each step once, readable while the run goes on.

    What cannot be written (a full disk) waits, and is written as soon as that works.

    waiting     those lines
    """

    def __init__(self, path: Path, *, keep_steps: int = 0, add: Iterable[dict[str, Any]] = ()) -> None:
        """Lines of steps after `keep_steps` (of a run that went on beyond its last checkpoint) are dropped, and a last
        one that a crash has cut short; those of `add` whose steps are missing are put in.

        What else is no line of a run, or one of a step that stands there already, is moved to <path>.garbled.

        Raises:
            OSError: no file, or one that may not be read or written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_no_pipe(path)
        with open(path, "ab"):  # before anything is replaced: may it be written?
            before = path.read_bytes()
        kept: dict[int, bytes] = {}
        others = []
        for text, line in _lines(before):
            if line is None or line["step"] in kept:
                others.append(text)
            elif line["step"] <= keep_steps:
                kept[line["step"]] = text
        if others and before.endswith(others[-1]):  # the end of the line was never written
            del others[-1]
        for line in add:
            kept.setdefault(line["step"], _as_line(line).rstrip())
        if others:
            _move_aside(path, others)
        after = b"".join(kept[step] + b"\n" for step in sorted(kept))
        if after != before:
            replace_file(path, lambda new: new.write_bytes(after))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self.waiting: list[dict[str, Any]] = []
        self._begun = 0  # bytes of the first of them that are in the file

    def write(self, line: dict[str, Any]) -> None:
        """Raises OSError where it cannot be written; it then waits for the next call."""
        self.waiting.append(line)
        self._flush()

    def sync(self) -> None:
        """Write what waits, and have it on the disk. Raises OSError where that cannot be."""
        self._flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Raises OSError where what waits still cannot be written."""
        with self._file:
            self._flush()

    def _flush(self) -> None:
        while self.waiting:  # without a buffer a write says how much of it was written, before it fails
            data = _as_line(self.waiting[0])
            self._begun += self._file.write(data[self._begun :])
            if self._begun == len(data):
                del self.waiting[0]
                self._begun = 0


def _move_aside(path: Path, texts: list[bytes]) -> None:
    aside = path.with_name(f"{path.name}.garbled")
    with open(aside, "ab") as file:
        file.write(b"".join(text + b"\n" for text in texts))
    what = "line is garbled, or not" if len(texts) == 1 else "lines are garbled, or not"
    _log.warning("%s: %d %s this run's; now in %s", path, len(texts), what, aside)


def _as_line(line: dict[str, Any]) -> bytes:
    """JSON has no NaN and no infinity: null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; what is none (cut by a crash, garbled) is left out."""
    _check_no_pipe(path)
    return [line for _, line in _lines(Path(path).read_bytes()) if line is not None]


def number(value: Any) -> float | None:
    """A finite number; None of whatever else a file may hold."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 and math.isfinite(value) else None


def _check_no_pipe(path: str | os.PathLike[str]) -> None:
    """Raise OSError for a pipe or a device, which would have to be waited for."""
    if is_pipe(path):
        raise OSError(f"{path}: a pipe or a device in the place of a file; move it away")


def _lines(data: bytes) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line's bytes and what it says; None where that is nothing that a run writes. What follows one that was cut
    short, and what follows zeros (as a power cut leaves them), is a line all the same."""
    for text in data.split(b"\n"):
        cut = max(0, text.rfind(b'{"step"'))
        pieces = [text] if _parsed(text) is not None else [text[:cut], text[cut:]]
        for piece in pieces:
            if bare := piece.strip(b"\0 \t\r"):
                yield bare, _parsed(bare)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


class Scalars:
    """TensorBoard scalars, or nothing (with one hint in the log) where TensorBoard is not installed.

    Written by TensorBoard's own records, in this thread: torch's writer has a thread that prints its traceback when the
    disk is full, and tells of it a step later, if at all.
    """

    def __init__(self, folder: Path, *, enabled: bool, first_step: int = 1) -> None:
        """Those of `first_step` and later ones that are there already are dropped."""
        self._file = None
        if not enabled:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            _log.warning("TensorBoard is not installed, so no scalars; `pip install 'fastgpt-triton[train]'`")
            return
        folder.mkdir(parents=True, exist_ok=True)
        # The name that TensorBoard looks for. Two runs of one second in one folder, one after the other, append.
        self._file = open(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}", "ab")  # noqa: SIM115
        self._records, self._event, self._flush = RecordWriter(self._file), Event, self._file.flush
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Raises OSError where they cannot be written."""
        if self._file is not None:
            found = [{"tag": name, "simple_value": value} for name, value in values.items() if value is not None]
            self._add(step=step, summary={"value": found})

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._flush()

    def close(self) -> None:
        """Raises OSError where what was not written before still cannot be."""
        if self._file is not None:
            self._file.close()
