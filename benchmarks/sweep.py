"""Time other tiles than the table's, on a GPU, most valuable first, until the time is up.

    python -m benchmarks.sweep --out sweep.jsonl [--seconds 200] [--only attention]

For each workload the table's own tile comes first, then its neighbours: tiles that differ from it in one field, then in
two. Every figure is appended to the file as soon as it is measured. All tiles are compiled beforehand, in parallel and
offline, into Triton's cache, so that the GPU does not wait for a compiler; one that does not compile is left out.
`scripts/fold_results.py` shows which table entries the figures would change.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import append_row, device, median_seconds

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
FAMILY_CHOICES = {"layer_norm": {"block_m": (1, 2, 4, 8)}}  # whole rows, of which a program holds few


@dataclasses.dataclass(frozen=True)
class Workload:
    """One call whose tile is to be found.

    family, function  `kernels/<family>/tiles.py` and the function there whose answer is replaced
    fields            which fields of the tile may change
    shape             of the call, as `make` takes it
    role              replaces the answer only for calls that mention it (the FFN's products share one function)
    """

    family: str
    function: str
    fields: tuple[str, ...]
    shape: tuple[int, ...]
    mode: str  # "forward" or "backward"
    role: str | None = None

    @property
    def name(self) -> str:
        return ".".join(filter(None, (self.family, self.function, self.role)))

    @property
    def tiles(self) -> Any:
        return importlib.import_module(f"fastgpt.kernels.{self.family}.tiles")

    def candidates(self, default: Any) -> list[Any]:
        """`default`, then every tile that differs from it in one field, then those that differ in two."""
        choices, values = CHOICES | FAMILY_CHOICES.get(self.family, {}), _as_dict(default)
        found = [default]
        for count in (1, 2):
            for changed in itertools.combinations([f for f in self.fields if f in values], count):
                for new in itertools.product(*(choices.get(f, (values[f] // 2, values[f] * 2)) for f in changed)):
                    if all(n != values[f] for n, f in zip(new, changed)):
                        found.append(_replaced(default, dict(zip(changed, new))))
        return found


def workloads() -> list[Workload]:
    """Most valuable first: attention at long and short T, the FFN, the norms, the loss."""
    attention = ("block_m", "block_n", "edge", "num_warps", "num_stages")
    ffn = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "programs_per_sm", "parts")
    found = [
        Workload("attention", function, attention, (16384 // T, 2048 // d, T, d), mode)
        for T in (4096, 1024)
        for d in (64, 128)
        for function, mode in (("forward", "forward"), ("dkdv", "backward"), ("dq", "backward"))
    ]
    found += [Workload("ffn", "product_tile", ffn, (16384, d), m, r) for d in (768, 1600) for m, r in _FFN_ROLES]
    found += [
        Workload("layer_norm", "forward_tile", ("block_m", "num_warps"), (32768, n), "forward") for n in (768, 1600)
    ]
    found += [
        Workload("layer_norm", "backward_tile", ("programs", "num_warps", "stages", "block_m"), (32768, n), "backward")
        for n in (768, 1600, 4096)
    ]
    found += [
        Workload("layer_norm", "backward_tile", ("programs", "num_warps", "stages"), (32768, n), "backward")
        for n in (8192, 12288)
    ]
    return [
        *found,
        Workload("linear_cross_entropy", "whole_row", ("num_warps", "lanes"), (16384, 768, 50257), "forward"),
    ]


_FFN_ROLES = (("forward", "up"), ("backward", "dgelu"))


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
        yield given
    finally:
        setattr(work.tiles, work.function, original)


def make(work: Workload, where: torch.device) -> Callable[[], None]:
    """The call, on tensors at `where`; for "backward" the forward has been run, and only its backward is called."""
    from fastgpt import kernels

    bf16 = torch.bfloat16

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=where).to(bf16).requires_grad_(work.mode == "backward")

    match work.family:
        case "attention":
            B, H, T, d = work.shape
            inputs = [randn(B, T, H, d).transpose(1, 2) for _ in range(3)]
            out = lambda: kernels.flash_attention(*inputs)  # noqa: E731
            wanted = inputs[:1] if work.function == "dq" else inputs[1:]
        case "ffn":
            M, d = work.shape
            inputs = [randn(M, d), randn(4 * d, d), randn(4 * d), randn(d, 4 * d), randn(d)]
            out = lambda: kernels.gelu_ffn(*inputs)  # noqa: E731
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
    if work.mode == "forward":
        return lambda: out()
    result = out()
    grad = torch.ones_like(result)
    return lambda: torch.autograd.grad(result, wanted, grad, retain_graph=True)


def _compile(work: Workload, tile: Any, arch: str) -> str | None:
    """Compile what `work` launches with `tile`, in this process; an error message if that fails."""
    from benchmarks.gate.offline import offline
    from fastgpt.memory import PeakMemory

    try:
        # PeakMemory makes our operators run their launch code on meta tensors, in place of their shape functions.
        with offline(arch), answering(work, tile), PeakMemory():
            make(work, torch.device("meta"))()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    return None


def sweep(out: Path, seconds: float, only: str | None, arch: str, most: int | None = None) -> int:
    """Measure until `seconds` have passed, at most `most` tiles a workload; returns the number of figures."""
    end, figures = time.monotonic() + seconds, 0
    todo = [w for w in workloads() if only is None or w.family == only]
    workers = max(1, min(12, (os.cpu_count() or 2) - 1))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        plans = []
        for work in todo:
            with answering(work, None) as given:
                run = make(work, device())
                run()
            if given:
                tiles = work.candidates(given[-1])[:most]
                plans.append((work, [(t, pool.submit(_compile, work, t, arch)) for t in tiles]))
            del run
        for position, (work, tiles) in enumerate(plans):
            share = (end - time.monotonic()) / (len(plans) - position)
            stop = time.monotonic() + share
            for tile, compiled in tiles:
                if time.monotonic() > stop:
                    break
                try:
                    error = compiled.result(timeout=max(1.0, stop - time.monotonic()))
                except (concurrent.futures.TimeoutError, concurrent.futures.process.BrokenProcessPool):
                    break
                row = {"workload": work.name, "shape": work.shape, "arch": arch, "tile": _as_dict(tile)}
                if error is None:
                    error, row["seconds"] = _measure(work, tile)
                append_row(out, row | {"default": tile == tiles[0][0], "error": error})
                figures += error is None
        pool.shutdown(wait=False, cancel_futures=True)
    return figures


def _measure(work: Workload, tile: Any) -> tuple[str | None, float | None]:
    try:
        with answering(work, tile):
            return None, median_seconds(make(work, device()), rounds=15)
    except Exception as error:  # out of resources at launch: this tile is not for this GPU
        return f"{type(error).__name__}: {error}"[:300], None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("sweep.jsonl"), help="JSON lines are appended here")
    parser.add_argument("--seconds", type=float, default=200.0, help="stop after this long")
    parser.add_argument("--only", choices=["attention", "ffn", "layer_norm", "linear_cross_entropy"])
    parser.add_argument("--tiles", type=int, metavar="N", help="at most N tiles of each workload")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: a sweep times kernels, and there is no CUDA GPU here", file=sys.stderr)
        return 2
    major, minor = torch.cuda.get_device_capability()
    count = sweep(args.out, args.seconds, args.only, f"sm_{major}{minor}", args.tiles)
    print(f"{count} figures -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
