"""Compile rows for architectures, in parallel processes that share Triton's cache of compiled kernels."""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from .limits import LIMITS
from .rows import Row
from .usage import Usage

FAMILIES = ("attention", "attention_weights", "ffn", "layer_norm", "linear_cross_entropy")
ARCHES = tuple(LIMITS)


@dataclass(frozen=True, order=True)
class Task:
    """One row on one architecture."""

    family: str
    label: str
    arch: str


@dataclass(frozen=True)
class Result:
    """What a task compiled: kernel name -> usage, in launch order. `error` is set instead when it did not compile."""

    task: Task
    kernels: dict[str, Usage]
    expect: frozenset[str] = frozenset()
    error: str = ""


@functools.cache
def rows_of(family: str) -> dict[str, Row]:
    """The rows of `benchmarks/gate/<family>.py`, by label."""
    rows = {}
    for row in importlib.import_module(f"benchmarks.gate.{family}").rows():
        if row.family != family:
            raise ValueError(f"benchmarks/gate/{family}.py: row {row.label!r} says that its family is {row.family!r}")
        if row.label in rows:
            raise ValueError(f"benchmarks/gate/{family}.py: two rows are labelled {row.label!r}")
        rows[row.label] = row
    return rows


def tasks_of(families: Iterable[str], arches: Iterable[str], labels: Iterable[str] = ("",)) -> list[Task]:
    """All tasks of some families on some architectures whose row's label contains one of `labels`."""
    arches, labels = tuple(dict.fromkeys(arches)), tuple(labels)
    tasks = [Task(f, row, arch) for f in dict.fromkeys(families) for row in sorted(rows_of(f)) for arch in arches]
    return [task for task in tasks if any(label in task.label for label in labels)]


def sample(tasks: list[Task], count: int, seed: int) -> list[Task]:
    """`count` of the tasks, always the same for a seed, spread evenly over families and architectures."""
    groups = defaultdict(list)
    for task in sorted(tasks):
        groups[task.family, task.arch].append(task)
    shuffle = random.Random(seed).shuffle
    for group in groups.values():
        shuffle(group)
    order = sorted(groups)
    shuffle(order)
    chosen: list[Task] = []
    while len(chosen) < min(count, len(tasks)):
        chosen += [groups[key].pop() for key in order if groups[key]]
    return sorted(chosen[:count])


def compile_task(task: Task) -> Result:
    """Compile one task in this process."""
    row = rows_of(task.family)[task.label]
    return compile_row(row, task.arch)


def compile_row(row: Row, arch: str) -> Result:
    """Compile `row` for `arch`; a kernel launched with several options appears once for each distinct code."""
    from .offline import offline
    from .usage import usage

    task = Task(row.family, row.label, arch)
    kernels: dict[str, Usage] = {}
    seen = set()
    try:
        with offline(arch) as compiled:
            row.call()
        for launch in compiled:
            identity = launch.kernel.hash
            if identity in seen:
                continue
            seen.add(identity)
            twins = sum(name.split("#")[0] == launch.name for name in kernels)
            kernels[launch.name + (f"#{twins + 1}" if twins else "")] = usage(launch, arch)
    except Exception as error:  # whatever the compiler, the launch function or ptxas raises is this row's failure
        return Result(task, {}, row.expect, f"{type(error).__name__}: {str(error).strip()[-600:]}")
    return Result(task, kernels, row.expect)


def compile_all(
    tasks: list[Task], jobs: int, on_result: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Compile the tasks in `jobs` processes; in this process if `jobs` is 1. Results are sorted by task."""
    results = []
    for result in _stream(tasks, jobs):
        on_result(result)
        results.append(result)
    return sorted(results, key=lambda r: r.task)


def _stream(tasks: list[Task], jobs: int) -> Iterator[Result]:
    if jobs == 1:
        yield from map(compile_task, tasks)
        return
    left = set(tasks)
    try:
        with _pool(jobs) as pool:
            for future in as_completed([pool.submit(compile_task, task) for task in tasks]):
                result = future.result()
                left.discard(result.task)
                yield result
    except BrokenProcessPool:  # an assertion inside LLVM ends the process: find out whose it was
        for task in sorted(left):
            try:
                with _pool(1) as pool:
                    yield pool.submit(compile_task, task).result()
            except BrokenProcessPool:
                yield Result(task, {}, error="the compiler crashed, and ended its process")


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one: an interrupt lets them finish the row at hand and start no other."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
