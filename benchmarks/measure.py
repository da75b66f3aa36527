"""How a benchmark is timed, and what every figure carries beside its time.

On CUDA: events around the call after warm-up, the L2 cache flushed before each round, medians over rounds. The GPU is
held busy between the flush and the first event until Python has queued the call, so that Python's time is not counted
as the GPU's. Each figure carries its spread, peak memory, and its fraction of the floor: bytes over the copy bandwidth,
or FLOPs over the GEMM rate, both measured in the same run; and how often Python needed longer than the GPU waited.
pytest-benchmark keeps the books.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


class CudaInstant:
    """A point on the GPU's time line. pytest-benchmark subtracts two of them: end - start is seconds between events."""

    last: CudaInstant | None = None

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()
        CudaInstant.last = self

    def __sub__(self, start: CudaInstant) -> float:
        self.event.synchronize()
        return start.event.elapsed_time(self.event) / 1e3


def timer() -> Callable[[], object]:
    """What pytest-benchmark calls before and after each round."""
    return CudaInstant if torch.cuda.is_available() else time.perf_counter


@functools.cache
def _l2_filler() -> torch.Tensor:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return torch.empty(max(2 * l2, 1 << 26), dtype=torch.int8, device="cuda")


# How long the GPU waits before the first event of a round: longer than Python needs to queue a forward and a backward.
HEAD_START = 1_500_000  # GPU cycles, about 0.8 ms at 1.9 GHz


# A dry run needs no more than a call.
MOST_ROUNDS = int(os.environ.get("FASTGPT_MOST_ROUNDS", "1000"))
# A rehearsal (scripts/gpu/rehearse.py) executes what is measured on a CPU, at sizes that it manages.
TINY = os.environ.get("FASTGPT_TINY") == "1"


def size(measured: int, tiny: int) -> int:
    """A size of what is measured, or in a rehearsal the tiny one."""
    return tiny if TINY else measured


def prepare_round(flush: bool = True) -> None:
    """Overwrite twice the L2 cache, so that the round reads its inputs from memory; then keep the GPU waiting.

    While it waits Python queues the round's work. Without that the time from the first event to the first kernel would
    be Python's, and short operations would all seem to take as long as their launch.
    """
    if torch.cuda.is_available():
        if flush:
            _l2_filler().zero_()
        torch.cuda._sleep(HEAD_START)


def watched(run: Callable[[], object]) -> tuple[Callable[[], object], list[bool]]:
    """`run`, and for each call of it whether the GPU had passed the round's first event before all was queued.

    Where it had, it may have waited for Python since, and the time of that round holds Python's.
    """
    late: list[bool] = []
    if not torch.cuda.is_available():
        return run, late

    def call() -> None:
        run()
        if CudaInstant.last is not None:
            late.append(CudaInstant.last.event.query())

    return call, late


def round_seconds(run: Callable[[], object], rounds: int, flush: bool = True) -> list[float]:
    """The time of each of `rounds` calls, without a warm-up and outside of pytest-benchmark, in ascending order."""
    now = timer()
    instants = []
    for _ in range(min(rounds, MOST_ROUNDS)):
        prepare_round(flush)
        start = now()
        run()
        instants.append((start, now()))
    return sorted(end - start for start, end in instants)  # on a GPU this is the first wait


def median_seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Median time of `run()` after one call: for the ceilings below and for choosing round counts."""
    run()
    times = round_seconds(run, rounds)
    return times[len(times) // 2]


_ceilings: dict[str, float | None] = {}  # "copy" or a dtype -> bytes or FLOPs per second; None could not be measured


def _ceiling(name: str, measured: Callable[[], float]) -> float | None:
    """Measured once a process. A failure costs the fractions of the floor, and not the figures."""
    if name not in _ceilings:
        try:
            _ceilings[name] = measured()
        except Exception as error:
            print(f"no ceiling of {name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            _ceilings[name] = None
    return _ceilings[name]


def copy_bandwidth() -> float | None:
    """Bytes per second, read plus written, of a large device-to-device copy; None where that fails."""

    def measured() -> float:
        n = (1 << 30) if torch.cuda.is_available() else (1 << 27)
        source = torch.empty(n, dtype=torch.int8, device=device()).random_(-128, 127)
        target = torch.empty_like(source)
        return 2 * n / median_seconds(lambda: target.copy_(source))

    return _ceiling("copy", measured)


def gemm_rate(dtype: torch.dtype) -> float | None:
    """FLOP/s of a large square matrix product on random values (zeros run faster on GPUs); None where that fails."""

    def measured() -> float:
        n = 8192 if torch.cuda.is_available() else 512
        a, b = (torch.randn(n, n, device=device()).to(dtype) for _ in range(2))
        return 2 * n**3 / median_seconds(lambda: a @ b)

    return _ceiling(_short(dtype), measured)


def ceilings() -> dict[str, object]:
    """The rates behind "of floor", measured now unless this process has them."""
    dtypes = [torch.bfloat16, torch.float32, *([torch.float16] if torch.cuda.is_available() else [])]
    copy, products = copy_bandwidth(), {_short(dtype): gemm_rate(dtype) for dtype in dtypes}
    return {
        "copy_bandwidth_gb_s": copy and copy / 1e9,
        "gemm_tflop_s": {name: rate and rate / 1e12 for name, rate in products.items()},
    }


def adopt_ceilings(row: dict) -> None:
    """Take what `ceilings()` gave an earlier process of the same run, so that all its figures have one floor."""
    copy = row["copy_bandwidth_gb_s"]
    _ceilings["copy"] = copy and copy * 1e9
    _ceilings.update({name: rate and rate * 1e12 for name, rate in row["gemm_tflop_s"].items()})


def adopt_ceilings_of(file: Path | None) -> None:
    """Take those of the first line of `file`, where an earlier process has written one."""
    with contextlib.suppress(OSError, ValueError, KeyError):  # there is none, it was cut off, or it tells none
        if file is not None:
            with file.open() as lines:
                adopt_ceilings(json.loads(lines.readline())["environment"])


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fatal() -> bool:
    """Whether a fault has left the CUDA context unusable: whatever followed in this process would fail too.

    The device is asked: the faults that do this have many texts, and an error may be told by a call long after.
    """
    try:
        synchronize()
    except Exception:
        return True
    return False


@functools.cache  # nvidia-smi takes longer than most figures
def gpu_state() -> dict[str, str]:
    """Clocks, temperature, power and driver as nvidia-smi saw them when first asked.

    {} without one, and its own words where it gives something else than these five. FASTGPT_GPU_STATE names a file by
    which the processes of one session ask once between them.
    """
    if not torch.cuda.is_available():
        return {}
    file = Path(os.environ.get("FASTGPT_GPU_STATE", os.devnull))
    with contextlib.suppress(OSError, ValueError):  # ValueError: of a process that was killed as it wrote
        if file.is_file():
            return json.loads(file.read_text())
    state = _nvidia_smi()
    with contextlib.suppress(OSError):
        file.write_text(json.dumps(state))
    return state


def _nvidia_smi() -> dict[str, str]:
    fields = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return {}
    values = [v.strip() for v in line.split(",")]
    return dict(zip(fields, values)) if len(values) == len(fields) else {"nvidia-smi": line.strip()[:200]}


def machine() -> dict[str, object]:
    """What a figure depends on besides the code, as far as it need not be measured: GPU, versions, commit."""
    cuda = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpu_state": gpu_state(),
    }


def environment() -> dict[str, object]:
    """What a figure depends on besides the code: GPU, versions, commit, and the ceilings measured in this run."""
    return machine() | ceilings()


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """What the tree is, as git says it; None without git."""
    if "FASTGPT_COMMIT" in os.environ:  # a copy of the tree without its .git
        return os.environ["FASTGPT_COMMIT"]
    try:
        command = ["git", "describe", "--always", "--dirty"]
        folder = os.path.dirname(__file__)
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class Work:
    """What a call must at least do. The floor is the larger of the two times.

    model_flops  by the convention of published MFUs, which counts the whole T x T square of causal attention: more than
                 must be done, and so no part of the floor
    """

    flops: float = 0.0  # on matrix units
    bytes: float = 0.0  # read once plus written once
    tokens: float = 0.0  # for throughput; 0 = not a token-wise operation
    model_flops: float = 0.0  # 0 = not a training step

    def floor_seconds(self, dtype: torch.dtype) -> float | None:
        """None where a ceiling is missing, and on a CPU: its caches hold the inputs, it has no matrix units."""
        if not torch.cuda.is_available():
            return None
        needed = [(self.flops, lambda: gemm_rate(dtype)), (self.bytes, copy_bandwidth)]
        rates = [(amount, rate()) for amount, rate in needed if amount]
        if not rates or any(rate is None for _, rate in rates):
            return None
        return max(amount / rate for amount, rate in rates)

    def mfu(self, dtype: torch.dtype, seconds: float) -> float | None:
        """Model FLOPs per second over the matrix products' of this machine; None as `floor_seconds` is."""
        if not (torch.cuda.is_available() and self.model_flops and gemm_rate(dtype)):
            return None
        return self.model_flops / seconds / gemm_rate(dtype)


def figure(
    times: Sequence[float], *, op: str, impl: str, dtype: torch.dtype, work: Work, shape: dict[str, int | float],
    mode: str, version: str | None, peak_bytes: int | None, late: Sequence[bool] = (),
) -> dict[str, object]:  # fmt: skip
    """What a report shows of `times`, in seconds and ascending: the median, its spread and what it amounts to.

    late  of `watched`, where the GPU was kept waiting: the share of rounds whose time may be Python's is told
    """
    seconds, floor = statistics.median(times), work.floor_seconds(dtype)
    low, high = (times[len(times) * q // 4] for q in (1, 3))
    return {
        "op": op, "impl": impl, "version": version, "mode": mode, "dtype": _short(dtype), "shape": shape,
        "peak_bytes": peak_bytes, "seconds": seconds, "spread": (high - low) / seconds,
        "tflop_s": work.flops / seconds / 1e12, "gb_s": work.bytes / seconds / 1e9, "tokens_s": work.tokens / seconds,
        "of_floor": floor and floor / seconds, "mfu": work.mfu(dtype, seconds),
        "late": sum(late) / len(late) if late else None,
    }  # fmt: skip


class Measure:
    """The `measure` fixture: times `run` through pytest-benchmark and attaches what the report needs."""

    def __init__(self, benchmark, *, quick: bool, rows: list[dict], rows_file: Path | None = None) -> None:
        self.benchmark, self.quick, self.rows, self.rows_file = benchmark, quick, rows, rows_file

    def __call__(
        self,
        run: Callable[[], object],
        *,
        op: str,
        impl: str,
        dtype: torch.dtype,
        work: Work,
        shape: dict[str, int | float],
        mode: str = "forward",
        version: str | None = None,
        flush: bool = True,
    ) -> None:
        """Time `run()`, which does one `mode` pass of `impl` at `shape`; without --benchmark, run it once."""
        if self.benchmark.disabled:
            self.benchmark.pedantic(run)
            return
        # pytest-benchmark looks at the group when the first round begins.
        self.benchmark.group = f"{op} {mode} {_short(dtype)} " + " ".join(f"{k}={v}" for k, v in shape.items())
        peak = self._peak_bytes(run)
        once = median_seconds(run, rounds=3)
        # Seconds of measured time. On a CPU ours is not measured, and the whole run should end within a minute.
        limit = {"cuda": (1.5, 0.3), "cpu": (0.3, 0.05)}[device().type][self.quick]
        fewest = 10 if torch.cuda.is_available() else 5
        rounds = int(min(max(limit / max(once, 1e-7), fewest), 50 if self.quick else 300, MOST_ROUNDS))
        adopt_ceilings_of(self.rows_file)
        call, late = watched(run)
        self.benchmark.pedantic(call, setup=prepare_round if flush else None, rounds=rounds, warmup_rounds=3)
        self.benchmark.extra_info.update(
            figure(
                self.benchmark.stats.stats.sorted_data, op=op, impl=impl, version=version, mode=mode, dtype=dtype,
                work=work, shape=shape, peak_bytes=peak, late=late[-rounds:] if flush else (),
            )
        )  # fmt: skip
        self.rows.append(dict(self.benchmark.extra_info))
        if self.rows_file is not None:
            append_row(self.rows_file, self.benchmark.extra_info)

    @staticmethod
    def _peak_bytes(run: Callable[[], object]) -> int | None:
        """Bytes that one call allocates at its peak, above what was there before; None on a CPU."""
        run()
        if not torch.cuda.is_available():
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def append_row(file: Path, row: dict[str, object], about: Callable[[], dict[str, object]] | None = None) -> None:
    """Append one JSON line; the first line of a new file is what `about()` says, by default the environment."""
    new = not file.exists() or not file.stat().st_size
    with file.open("a+b") as lines:
        if new:
            lines.write(json.dumps({"environment": (about or environment)()}).encode() + b"\n")
        else:
            lines.seek(-1, os.SEEK_END)
            if lines.read() != b"\n":  # a process was killed as it wrote: its half a line costs no other
                lines.write(b"\n")
        lines.write(json.dumps(row).encode() + b"\n")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
