"""Time other tiles than the table's, on a GPU, most valuable first, until the time is up.

    python -m benchmarks.sweep --out sweep.jsonl [--seconds 200] [--only attention]

It goes round the workloads: every table's own tile, then every first neighbour, and so on, tiles that differ in one
field before those that differ in two; so a short time gives some figures of each. Tiles are compiled a little ahead, in
parallel and offline, into Triton's cache, and measured as they are ready. One that does not compile is left out, and
one whose results differ from those with the table's own is an error, however fast it is. Every figure is appended to
the file as soon as it is measured. Called again with the same file it goes on with the tiles that are not in it: a tile
that breaks the CUDA context ends the process (exit status 70), and costs no other tile.
`scripts/fold_results.py` shows which table entries the figures would change.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib
import itertools
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from benchmarks.gate.rows import attending_by
from benchmarks.measure import TINY, append_row, device, fatal, machine, median_seconds, size
from benchmarks.report import read_rows

# What a field may be instead of the table's value.
CHOICES = {
    "block_m": (32, 64, 128, 256),
    "block_n": (32, 64, 128, 256),
    "block_k": (32, 64, 128),
    "edge": (16, 32, 64),
    "num_warps": (2, 4, 8, 16),
    "num_stages": (1, 2, 3, 4),
    "stages": (1, 2, 3),
    "programs": (96, 132, 192, 264, 384, 528, 768),
    "programs_per_sm": (1, 2),
    "parts": (1, 2, 4),
    "group_m": (4, 8, 16),
}
HOPPER = "attention/hopper"
FAMILY_CHOICES = {
    "layer_norm": {"block_m": (1, 2, 4, 8)},  # whole rows, of which a program holds few
    HOPPER: {
        "block": (32, 64, 128), "stages": (2, 3, 4, 5), "consumers": (1, 2, 3), "overlaps": (False, True),
        "out_apart": (False, True),
    },
}  # fmt: skip

# The largest shapes of a rehearsal.
TINIEST = {
    "attention": (1, 1, 256, 128), HOPPER: (1, 1, 256, 128), "ffn": (128, 256), "layer_norm": (64, 1 << 14),
    "linear_cross_entropy": (32, 64, 1 << 16),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Workload:
    """One call whose tile is to be found.

    family, function  `kernels/<family>/tiles.py` and the function there whose answer is replaced
    fields            which fields of the tile may change
    shape             of the call, as `make` takes it
    role              replaces the answer only for calls that mention it (the FFN's products share one function)
    path              of attention's kernels, as FASTGPT_ATTENTION has it
    """

    family: str
    function: str
    fields: tuple[str, ...]
    shape: tuple[int, ...]
    mode: str  # "forward" or "backward"
    role: str | None = None
    path: str = "triton"

    @property
    def name(self) -> str:
        return ".".join(filter(None, (self.family, self.function, self.role)))

    @property
    def tiles(self) -> Any:
        return importlib.import_module(f"fastgpt.kernels.{self.family.replace('/', '.')}.tiles")

    def candidates(self, default: Any) -> list[Any]:
        """`default`, then tiles that differ from it in one field, then those that differ in two; the nearest first."""
        choices, values = CHOICES | FAMILY_CHOICES.get(self.family, {}), _as_dict(default)
        found = [default]
        for count in (1, 2):
            others = []
            for changed in itertools.combinations([f for f in self.fields if f in values], count):
                for new in itertools.product(*(choices.get(f, (values[f] // 2, values[f] * 2)) for f in changed)):
                    if all(n != values[f] for n, f in zip(new, changed)):
                        distance = sum(abs(math.log2(max(n, 1) / max(values[f], 1))) for n, f in zip(new, changed))
                        others.append((distance, _replaced(default, dict(zip(changed, new)))))
            found += [tile for _, tile in sorted(others, key=lambda other: other[0])]
        return found


def workloads() -> list[Workload]:
    """Most valuable first: attention at T = 4096; FFN, loss and norms of GPT-2 124M; then other lengths and widths."""
    attention = ("block_m", "block_n", "edge", "num_warps", "num_stages")
    hopper = tuple(FAMILY_CHOICES[HOPPER])
    ffn = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "programs_per_sm", "parts")
    norm = ("programs", "num_warps", "stages", "block_m")

    def attentions(T: int) -> list[Workload]:
        passes = (("forward", "forward"), ("dkdv", "backward"), ("dq", "backward"))
        return [
            Workload("attention", function, attention, (16384 // T, 2048 // d, T, d), mode)
            for d in (64, 128)
            for function, mode in passes
        ]

    def hoppers(T: int) -> list[Workload]:
        passes = (("forward", "forward"), ("dkdv", "backward"), ("dq", "backward"))
        return [
            Workload(HOPPER, "tile", hopper, (16384 // T, 2048 // d, T, d), mode, role, path="gluon")
            for d in (64, 128)
            for role, mode in passes
        ]

    def ffns(d: int) -> list[Workload]:
        roles = (("forward", "up"), ("backward", "dgelu"))
        return [Workload("ffn", "product_tile", ffn, (16384, d), mode, role) for mode, role in roles]

    def norms(n: int) -> list[Workload]:
        return [
            Workload("layer_norm", "forward_tile", ("block_m", "num_warps"), (32768, n), "forward"),
            Workload("layer_norm", "backward_tile", norm, (32768, n), "backward"),
        ]

    loss = Workload("linear_cross_entropy", "whole_row", ("num_warps", "lanes"), (16384, 768, 50257), "forward")
    found = [
        *hoppers(4096),
        *attentions(4096), *ffns(768), loss, *norms(768), *attentions(1024), *ffns(1600), *norms(1600), norms(4096)[1],
        *(Workload("layer_norm", "backward_tile", norm[:3], (32768, n), "backward") for n in (8192, 12288)),
    ]  # fmt: skip
    if TINY:
        found = [dataclasses.replace(w, shape=tuple(map(min, w.shape, TINIEST[w.family]))) for w in found]
    return list(dict.fromkeys(found))


def _as_dict(tile: Any) -> dict[str, Any]:
    return tile._asdict() if hasattr(tile, "_asdict") else dataclasses.asdict(tile)


def _replaced(tile: Any, changes: dict[str, Any]) -> Any:
    return tile._replace(**changes) if hasattr(tile, "_replace") else dataclasses.replace(tile, **changes)


@contextlib.contextmanager
def answering(work: Workload, tile: Any | None) -> Iterator[list[Any]]:
    """The table answers `tile` (None: its own) wherever `work` is concerned; yields the answers that it gave."""
    original = getattr(work.tiles, work.function)
    given: list[Any] = []

    def answer(*args: Any, **kwargs: Any) -> Any:
        own = original(*args, **kwargs)
        if work.role is not None and work.role not in args and work.role not in kwargs.values():
            return own
        given.append(own if tile is None else tile)
        return given[-1]

    setattr(work.tiles, work.function, answer)
    try:
        with attending_by(work.path), _without_memory(work):
            yield given
    finally:
        setattr(work.tiles, work.function, original)


@contextlib.contextmanager
def _without_memory(work: Workload) -> Iterator[None]:
    """The launch of Hopper's kernels asks for each tile anew, before and after."""
    if work.family != HOPPER:
        yield
        return
    from fastgpt.kernels.attention.hopper.launch import plan_of

    plan_of.cache_clear()
    try:
        yield
    finally:
        plan_of.cache_clear()


def call(work: Workload, where: torch.device) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    """The forward, on tensors at `where`, and those whose gradients its backward is to compute."""
    from fastgpt import kernels

    bf16 = torch.bfloat16

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=where).to(bf16).requires_grad_(work.mode == "backward")

    match work.family:
        case "attention" | "attention/hopper":
            B, H, T, d = work.shape
            inputs = [randn(B, T, H, d).transpose(1, 2) for _ in range(3)]
            out = lambda: kernels.flash_attention(*inputs)  # noqa: E731
            wanted = inputs[:1] if "dq" in (work.function, work.role) else inputs[1:]
        case "ffn":
            M, d = work.shape
            inputs = [randn(M, d), randn(4 * d, d), randn(4 * d), randn(d, 4 * d), randn(d)]
            out = lambda: kernels.gelu_ffn(*inputs, path="triton")  # noqa: E731
            wanted = inputs
        case "layer_norm":
            M, n = work.shape
            inputs = [randn(M, n), randn(n), randn(n)]
            out = lambda: kernels.layer_norm(inputs[0], (n,), *inputs[1:])  # noqa: E731
            wanted = inputs
        case _:
            N, d, V = work.shape
            inputs = [randn(N, d).requires_grad_(), randn(V, d).requires_grad_()]  # the forward makes the gradients
            target = torch.zeros(N, dtype=torch.int64, device=where)
            out = lambda: kernels.linear_cross_entropy(*inputs, target)  # noqa: E731
            wanted = inputs
    return out, wanted


def make(work: Workload, where: torch.device) -> Callable[[], object]:
    """What is timed; for "backward" the forward has been run, and only its backward is called."""
    out, wanted = call(work, where)
    if work.mode == "forward":
        return out
    result = out()
    grad = torch.ones_like(result)
    return lambda: torch.autograd.grad(result, wanted, grad, retain_graph=True)


def _compile(work: Workload, tile: Any, arch: str) -> str | None:
    """Compile what `work` launches with `tile`, in this process; an error message if that fails."""
    from benchmarks.gate.offline import offline
    from fastgpt.tools.memory import PeakMemory

    try:
        # PeakMemory makes our operators run their launch code on meta tensors, in place of their shape functions.
        with offline(arch), answering(work, tile), PeakMemory():
            make(work, torch.device("meta"))()
    except Exception as error:
        return _said(error)
    return None


@dataclasses.dataclass(frozen=True)
class Candidate:
    work: Workload
    tile: Any
    default: bool

    def row(self, arch: str) -> dict[str, Any]:
        tile, work = _as_dict(self.tile), self.work
        return {"workload": work.name, "shape": work.shape, "arch": arch, "tile": tile, "default": self.default}


def own_tile(work: Workload, arch: str) -> Any:
    """What the table answers for this workload; nothing is compiled or launched: that could end this process."""
    from fastgpt.tools.memory import on_paper

    with answering(work, None) as given, on_paper(arch):
        make(work, torch.device("meta"))()
    return given[-1]


def rounds(plans: list[list[Candidate]]) -> Iterator[Candidate]:
    """The first of every plan, then the second of every plan, and so on."""
    for some in itertools.zip_longest(*plans):
        yield from (candidate for candidate in some if candidate is not None)


def planned(out: Path, only: str | None, arch: str, most: int | None) -> Iterator[Candidate]:
    """The tiles to measure that `out` does not have, in order; a workload that fails is noted, and left out."""
    plans, known = [], {_key(row) for row in _rows(out)}
    for work in workloads():
        if (only is not None and work.family != only) or (work.path == "gluon" and arch != "sm_90"):
            continue
        try:
            tiles = work.candidates(own_tile(work, arch))[:most]
        except Exception as error:
            row = {"workload": work.name, "shape": work.shape, "arch": arch, "tile": None, "default": False}
            _note(out, row | {"seconds": None, "error": _said(error)})
            print(f"{work.name} {work.shape}: {_said(error)}", file=sys.stderr)
            continue
        candidates = [Candidate(work, tile, default=number == 0) for number, tile in enumerate(tiles)]
        plans.append([c for c in candidates if _key(c.row(arch)) not in known])
    return rounds(plans)


def _rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(out) if "workload" in row]


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row[field] for field in ("workload", "shape", "arch", "tile")])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def _note(out: Path, row: dict[str, Any]) -> None:
    append_row(out, row, about=machine)  # what the machine could do at best is no matter here


class ContextLost(RuntimeError):
    """A tile has left the CUDA context unusable: this process can measure nothing more."""


def sweep(out: Path, seconds: float, only: str | None, arch: str, most: int | None = None) -> int:
    """Measure until `seconds` have passed, at most `most` tiles a workload; returns the number of figures.

    Raises ContextLost behind the figure that was the last; called again it goes on with the next.
    """
    end, figures = time.monotonic() + seconds, 0
    begun = out.with_suffix(".begun")  # what is being measured: the process may end without a word
    if begun.exists():
        _note(out, json.loads(begun.read_text()) | {"seconds": None, "error": "the process ended here"})
        begun.unlink()
    sound = {(r["workload"], tuple(r["shape"])) for r in _rows(out) if r["default"] and r["error"] is None}
    queue = planned(out, only, arch, most)
    workers = max(1, min(12, (os.cpu_count() or 2) - 1))
    pool, waiting = compilers(workers), {}
    try:
        while time.monotonic() < end:
            for candidate in itertools.islice(queue, 2 * workers - len(waiting)):
                waiting[pool.submit(_compile, candidate.work, candidate.tile, arch)] = candidate
            if not waiting:
                break
            ready = next((future for future in waiting if future.done()), None)
            if ready is None:
                left = max(0.0, end - time.monotonic())
                concurrent.futures.wait(waiting, left, return_when=concurrent.futures.FIRST_COMPLETED)
                continue
            row = waiting[ready].row(arch) | {"seconds": None}
            try:
                error = ready.result()
            except BrokenProcessPool:  # by one of those that were in it: which one is not told
                for candidate in waiting.values():
                    _note(out, candidate.row(arch) | {"seconds": None, "error": "a compiler's process died"})
                waiting.clear()
                pool.shutdown(wait=False)
                pool = compilers(workers)
                continue
            candidate = waiting.pop(ready)
            if error is None:
                begun.write_text(json.dumps(row))
                # Where the table's own tile failed, or was not yet measured, running it here could end the process.
                workload = candidate.work.name, candidate.work.shape
                row["compared"] = not candidate.default and workload in sound
                error, row["seconds"] = _measure(candidate.work, candidate.tile, row["compared"])
                lost = error is not None and fatal()
                _note(out, row | {"error": error})
                begun.unlink()
                if lost:
                    raise ContextLost(f"{candidate.work.name} with {candidate.tile}: {error}")
                figures += error is None
                sound |= {workload} if candidate.default and error is None else set()
            else:
                _note(out, row | {"error": error})
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():  # a compilation can take longer than there is time
            process.terminate()
    return figures


def compilers(workers: int) -> concurrent.futures.Executor:
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _measure(work: Workload, tile: Any, compare: bool) -> tuple[str | None, float | None]:
    """(error, None) or (None, seconds). `compare`: a tile with other results than the table's own is an error."""
    watchdog = threading.Timer(HANGS, os._exit, [LOST])  # nothing else would end a wait for a kernel that never does
    watchdog.start()
    try:
        if compare:
            agree(*_results_of_both(work, tile))
        with answering(work, tile):
            return None, median_seconds(make(work, device()), rounds=15)
    except Exception as error:  # out of resources at launch: this tile is not for this GPU
        return _said(error), None
    finally:
        watchdog.cancel()


def _results_of_both(work: Workload, tile: Any) -> list[list[torch.Tensor]]:
    """Outputs and gradients with `tile`, and with the table's own, of the same inputs."""
    (out, wanted), found = call(work, device()), []
    for answer in (tile, None):
        with answering(work, answer):
            result = out()
            grads = torch.autograd.grad(result, wanted, torch.ones_like(result)) if result.requires_grad else ()
        found.append([result.detach(), *grads])
    return found


ROUNDING = 1.6e-2  # torch.testing's for bfloat16, in which all of them compute


def agree(found: list[torch.Tensor], own: list[torch.Tensor]) -> None:
    """Raises ValueError where a tensor of `found` is not that of `own` but for the order of sums.

    That order moves an element near 0 by a part of its terms, not of itself: what may differ is a part of the tensor's
    root mean square too.
    """
    for number, (a, b) in enumerate(zip(found, own, strict=True)):
        size = b.double().square().mean().sqrt().item()
        wrong = b.numel() - torch.isclose(a, b, rtol=ROUNDING, atol=ROUNDING * size).sum().item()
        if wrong:
            raise ValueError(f"result {number} differs from the table's own tile's in {wrong} of {b.numel()} elements")


HANGS = size(20, 600)  # seconds for one figure
LOST = 70  # the exit status by which the session knows that a new process would go on


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("sweep.jsonl"), help="JSON lines are appended here")
    parser.add_argument("--seconds", type=float, default=200.0, help="stop after this long")
    parser.add_argument("--only", choices=["attention", HOPPER, "ffn", "layer_norm", "linear_cross_entropy"])
    parser.add_argument("--tiles", type=int, metavar="N", help="at most N tiles of each workload")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: a sweep times kernels, and there is no CUDA GPU here", file=sys.stderr)
        return 2
    major, minor = torch.cuda.get_device_capability()
    try:
        count = sweep(args.out, args.seconds, args.only, f"sm_{major}{minor}", args.tiles)
    except ContextLost as lost:
        print(f"error: the CUDA context is lost ({lost}); call this again to go on with the next tile", file=sys.stderr)
        return LOST
    print(f"{count} figures -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
