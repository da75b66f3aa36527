"""The machine: builds it (machine/*.cpp, once for each state of the sources), loads programs, runs launches.

program = load(ptx)                                     # raises Unsupported for an instruction that nobody knows
gpu = Memory(); x = gpu.register(pointer, nbytes, "x", tracked=False)
result = launch(program, grid, params, shared_bytes, gpu, [x], Settings(schedule="random", seed=3))
result.findings, result.counts, result.coverage
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import lower, ptx
from .libcuda import NoCompiler

SOURCES = Path(__file__).parent / "machine"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra")
SCHEDULES = ("forward", "backward", "turns", "random", "worst")
LANDINGS = ("late", "early", "random")
TRACKED = (False, True, "poison")  # of an allocation: machine/memory.h


class Unsupported(NotImplementedError):
    """The kernel has an instruction that the machine does not know."""


@dataclass(frozen=True)
class Settings:
    """How a launch is run.

    schedule     which warp runs next: "forward" (the first that can, as far as it can), "backward" (the last), "turns",
                 "random", "worst" (by random priorities: some far ahead, some far behind)
    landing      when asynchronous copies arrive: "late" (as late as allowed), "early", "random"
    seed         of everything random: the schedule, what registers and shared memory hold before they are written
    approx       special functions: 0 correctly rounded; 1, -1 off by the error that the ISA allows; 2 by value
    resident     CTAs that run at a time
    check        races, what nobody wrote
    check_lanes  races between lanes of one warp
    max_steps    instructions of warps after which a launch counts as hanging
    """

    schedule: str = "forward"
    landing: str = "late"
    seed: int = 0
    approx: int = 0
    resident: int = 8
    num_sms: int = 4
    check: bool = True
    check_lanes: bool = True
    max_steps: int = 2_000_000_000

    def __post_init__(self) -> None:
        for name, value, known in (("schedule", self.schedule, SCHEDULES), ("landing", self.landing, LANDINGS),
                                   ("approx", self.approx, (-1, 0, 1, 2))):  # fmt: skip
            if value not in known:
                raise ValueError(f"Settings: {name}={value!r} is none of {', '.join(map(repr, known))}")
        for name in ("resident", "num_sms", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"Settings: {name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Finding:
    """Something that a GPU would not forgive. `line` and `other_line` are of the PTX, `source` of the Triton code."""

    kind: str
    text: str
    kernel: str
    line: int
    other_line: int | None = None
    count: int = 1
    source: str = ""

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        times = f" [{self.count} times]" if self.count > 1 else ""
        return f"{self.kind} in {self.kernel}, PTX line {self.line}{where}: {self.text}{times}"


@dataclass(frozen=True)
class Program:
    """A kernel that the machine has loaded."""

    name: str
    text: str
    kernel: ptx.Kernel
    lowered: lower.Lowered
    handle: int = field(repr=False)

    @property
    def num_threads(self) -> int:
        return self.kernel.num_threads


# What `Result.counts` has of each instruction, in this order.
COUNTS = ("executed", "lanes", "bytes", "transactions", "ideal")


@dataclass(frozen=True)
class Result:
    """What a launch did. counts (instructions, 5), int64: COUNTS of each record of `program.lowered`."""

    program: Program
    findings: list[Finding]
    counts: np.ndarray
    steps: int
    seconds: float
    ctas: int

    @property
    def coverage(self) -> float:
        """The part of the kernel's instructions that some warp executed."""
        return float((self.counts[:, 0] > 0).mean()) if len(self.counts) else 1.0


# ---- building --------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where built machines are kept: $FASTGPT_SOFTGPU_CACHE, or this user's folder beside temporary files."""
    default = Path(tempfile.gettempdir()) / f"fastgpt-softgpu-{os.getuid()}"
    return Path(os.environ.get("FASTGPT_SOFTGPU_CACHE") or default)


def _cpu() -> str:
    """What -march=native depends on: a library built for one CPU must not be loaded on another."""
    try:
        return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return ""


def _build() -> Path:
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise NoCompiler("softgpu: it is built by a C++17 compiler, and there is no g++ (or $CXX): apt install g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.h")))
    common = hashlib.sha256(repr((version, FLAGS, _cpu())).encode() + headers)
    objects = []
    for source in sorted(SOURCES.glob("*.cpp")):
        key = common.copy()
        key.update(source.read_bytes())
        objects.append((source, f"{source.stem}-{key.hexdigest()[:24]}.o"))
    key = hashlib.sha256("".join(name for _, name in objects).encode())
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"machine-{key.hexdigest()[:24]}.so"
    if library.exists():
        return library

    def run(*command: object) -> None:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"softgpu: the machine does not compile:\n{done.stderr[-4000:]}")

    def compiled(source: Path, name: str) -> None:
        if not (folder / name).exists():
            run(compiler, *FLAGS, "-c", source, "-o", folder / f"{name}.part")
            (folder / f"{name}.part").replace(folder / name)

    with (folder / "lock").open("w") as lock:  # several test processes start at once: one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                list(pool.map(lambda o: compiled(*o), objects))
            part = library.with_suffix(".part")
            run(compiler, "-shared", "-o", part, *(folder / name for _, name in objects))
            part.replace(library)
    return library


class _Settings(ctypes.Structure):
    _fields_ = [
        *(
            (n, ctypes.c_int32)
            for n in ["schedule", "landing", "approx", "resident", "num_sms", "check", "check_lanes"]
        ),
        ("seed", ctypes.c_uint64),
        ("max_steps", ctypes.c_uint64),
    ]


@functools.cache
def machine() -> ctypes.CDLL:
    """The library, built if need be."""
    lib = ctypes.CDLL(str(_build()))
    pointer, i32, u64, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64, ctypes.c_char_p
    for name, result, *args in (
        ("sg_program_new", pointer, text, pointer, pointer), ("sg_program_delete", None, pointer),
        ("sg_program_add", i32, pointer, text, text, pointer, pointer, pointer, i32, pointer, i32, u64),
        ("sg_program_pointer", None, pointer, i32),
        ("sg_program_constant", None, pointer, i32, i32, u64), ("sg_program_special", None, pointer, i32, i32),
        ("sg_memory_new", pointer), ("sg_memory_delete", None, pointer),
        ("sg_memory_register", i32, pointer, u64, u64, text, i32), ("sg_memory_forget", None, pointer, i32),
        ("sg_run", pointer, pointer, pointer, pointer, u64, pointer, ctypes.c_uint32, pointer, u64, pointer),
        ("sg_machine_delete", None, pointer), ("sg_steps", u64, pointer), ("sg_num_findings", u64, pointer),
        ("sg_finding_kind", text, pointer, u64), ("sg_finding_text", text, pointer, u64),
        ("sg_finding_numbers", None, pointer, u64, pointer), ("sg_counts", None, pointer, pointer), ("sg_keys", text),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.restype, function.argtypes = result, args
    return lib


def known_instructions() -> set[str]:
    """The keys of all instructions that the machine can execute."""
    return set(machine().sg_keys().decode().split())


# ---- programs --------------------------------------------------------------------------------------------------------


def _array(values: Sequence[int], dtype: Any) -> np.ndarray:
    return np.array(values, dtype)


@functools.lru_cache(maxsize=512)
def load(text: str, entry: str | None = None) -> Program:
    """The kernel `entry` (default: the only one) of a PTX text.

    Raises:
        ptx.Unreadable: the text cannot be parsed.
        Unsupported: an instruction is not known; the message has its text, its line and the kernel's name.
    """
    lib = machine()
    kernel = ptx.parse(text, entry)
    if not kernel.num_threads:
        raise Unsupported(f"softgpu: {kernel.name}: the text does not say how many threads a CTA has (.reqntid)")
    lowered = lower.lower(kernel)
    numbers = _array(
        (lowered.num_units, kernel.num_threads, kernel.max_registers, lowered.shared_static, lowered.local_bytes,
         lowered.shared_granule, lowered.global_granule, lowered.uses_wgmma, lowered.has_atomics), np.int32,
    )  # fmt: skip
    handle = lib.sg_program_new(
        kernel.name.encode(), numbers.ctypes.data, _array(lowered.cluster, np.int32).ctypes.data
    )
    for r in lowered.records:
        numbers = _array((r.line, r.pred, r.negated, r.num_dst), np.int32)
        op, width, imm = _array(r.operands, np.int32), _array(r.widths, np.uint8), _array(r.imms, np.int64)
        known = lib.sg_program_add(
            handle, r.key.encode(), r.text.encode(), numbers.ctypes.data, op.ctypes.data, width.ctypes.data, len(op),
            imm.ctypes.data, len(imm), r.origins,
        )  # fmt: skip
        if not known:
            lib.sg_program_delete(handle)
            raise Unsupported(f"softgpu: {kernel.name}, PTX line {r.line}: no such instruction is known: {r.text}")
    for c in lowered.constants:
        lib.sg_program_constant(handle, c.unit, c.bytes, c.value)
    for offset in lowered.pointers:
        lib.sg_program_pointer(handle, offset)
    for unit, which in lowered.specials:
        lib.sg_program_special(handle, unit, which)
    return Program(kernel.name, text, kernel, lowered, handle)


class Memory:
    """Which of the process's bytes are a GPU's global memory."""

    def __init__(self) -> None:
        self.handle = machine().sg_memory_new()

    def register(self, start: int, nbytes: int, name: str, tracked: bool | str = False) -> int:
        """An allocation at address start. Returns its number.

        `tracked` memory has not been written yet, and to read there is a finding; "poison": the host has filled it with
        0xff bytes, and may write it unseen: what is no longer 0xff it has written.
        """
        return machine().sg_memory_register(self.handle, start, nbytes, name.encode(), TRACKED.index(tracked))

    def forget(self, allocation: int) -> None:
        machine().sg_memory_forget(self.handle, allocation)

    def __del__(self) -> None:
        if "handle" in self.__dict__:
            machine().sg_memory_delete(self.handle)


def launch(
    program: Program, grid: Sequence[int], params: bytes, shared: int, memory: Memory, allowed: Sequence[int],
    settings: Settings = Settings(),
) -> Result:  # fmt: skip
    """Run a grid of CTAs to its end.

    Args:
        grid: CTAs along x, y, z (missing ones: 1).
        params: the parameter block, as the driver packs it (`program.kernel.params` has the offsets).
        shared: bytes of dynamic shared memory.
        memory, allowed: global memory, and the allocations of it that this launch may touch.
    """
    lib = machine()
    shape = _array((*grid, 1, 1, 1)[:3], np.uint32)
    block = np.frombuffer(params, np.uint8) if params else np.zeros(1, np.uint8)
    ids = _array(allowed, np.int32)
    s = _Settings(
        SCHEDULES.index(settings.schedule), LANDINGS.index(settings.landing), settings.approx, settings.resident,
        settings.num_sms, settings.check, settings.check_lanes, settings.seed, settings.max_steps,
    )  # fmt: skip
    start = time.perf_counter()
    m = lib.sg_run(
        program.handle, memory.handle, block.ctypes.data, len(params), shape.ctypes.data,
        program.lowered.shared_static + shared, ids.ctypes.data, len(ids), ctypes.byref(s),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    try:
        counts = np.zeros((len(program.lowered.records), len(COUNTS)), np.int64)
        lib.sg_counts(m, counts.ctypes.data)
        findings = [_finding(lib, m, k, program) for k in range(lib.sg_num_findings(m))]
        return Result(program, findings, counts, lib.sg_steps(m), seconds, int(np.prod(shape)))
    finally:
        lib.sg_machine_delete(m)


def _finding(lib: ctypes.CDLL, m: int, k: int, program: Program) -> Finding:
    numbers = np.zeros(3, np.int64)
    lib.sg_finding_numbers(m, k, numbers.ctypes.data)
    pc, other, count = map(int, numbers)
    records = program.lowered.records
    record = records[min(max(pc, 0), len(records) - 1)]
    return Finding(
        lib.sg_finding_kind(m, k).decode(), lib.sg_finding_text(m, k).decode(), program.name, record.line,
        records[other].line if 0 <= other < len(records) else None, count, record.source,
    )  # fmt: skip
