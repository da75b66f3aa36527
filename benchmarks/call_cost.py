"""python -m benchmarks.call_cost: microseconds of Python that a call of each public operator takes.

    python -m benchmarks.call_cost                        this tree, with the detour past torch's dispatcher and without
    python -m benchmarks.call_cost --beside ../other      and another checkout, in turns on the same machine
    python -m benchmarks.call_cost --json                 figures as JSON; --write: benchmarks/results/call_cost.md

Everything that the host does for a call is done: checks, autograd, allocation, Triton's binder and its compiled
launcher. The GPU is not: the launcher ends in a driver that does nothing (`benchmarks/softgpu/libcuda.c`). Tensors are
small CPU tensors that say that they are on a GPU, so what torch computes beside the kernels (the products of gelu_ffn
and linear_cross_entropy) costs next to nothing, and no more than on a GPU.

Medians over calls, and then over rounds, so that other processes' work counts little; the processes of what is compared
run in turns. Kernels are compiled for an H100 at the first run (minutes; Triton's cache keeps them).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "call_cost.md"
KINDS = ("forward", "forward, gradients wanted", "forward + backward")
B, H, T, D = 1, 4, 512, 64  # long enough for the kernels that load by TMA
ROWS, WIDTH, CLASSES = 16, 64, 64

Case = Callable[[], object]
Figures = dict[str, dict[str, list[float]]]  # operator -> kind -> microseconds a call, one figure a round


def pretend_gpu() -> None:
    """CPU tensors pass for an H100's, and Triton launches through a driver that does nothing."""
    fake = runpy.run_path(str(ROOT / "scripts" / "gpu" / "fake_cuda.py"))
    fake["load_driver"]()
    fake["patch_cuda"]()
    torch.Tensor.is_cuda = property(lambda tensor: True)
    torch.Tensor.get_device = lambda tensor: 0
    torch._assert_async = lambda *_: None  # of what a kernel would have computed


def operators() -> Iterator[tuple[str, Callable[..., object], tuple[torch.Tensor, ...], dict[str, object]]]:
    """(name, function, its differentiable tensors, its other arguments) of every public operator."""
    from fastgpt import kernels

    def half(*shape: int) -> torch.Tensor:
        return torch.randn(shape).bfloat16()

    def heads() -> torch.Tensor:
        return half(B, T, H, D).transpose(1, 2)

    x, weight, bias = half(ROWS, WIDTH), half(WIDTH), half(WIDTH)
    matrix, classes, target = half(WIDTH, WIDTH), half(CLASSES, WIDTH), torch.randint(CLASSES, (ROWS,))
    q, k, v = heads(), heads(), heads()
    yield "flash_attention", kernels.flash_attention, (q, k, v), {}
    yield "flash_attention, dropout", kernels.flash_attention, (q, k, v), {"dropout_p": 0.1}
    attend = kernels.scaled_dot_product_attention
    yield "scaled_dot_product_attention", attend, (q, k, v), {"is_causal": True}
    lse = torch.zeros(B, H, T)
    yield "attention_weights", kernels.attention_weights, (q, k, lse), {"heads": [0]}
    norm = {"normalized_shape": (WIDTH,)}
    yield "layer_norm", lambda x, w, b: kernels.layer_norm(x, weight=w, bias=b, **norm), (x, weight, bias), {}
    yield "add_layer_norm", kernels.add_layer_norm, (x, half(ROWS, WIDTH), weight, bias), {}
    yield "add_layer_norm, dropout", kernels.add_layer_norm, (x, half(ROWS, WIDTH), weight, bias), {"dropout_p": 0.1}
    yield "linear_gelu", kernels.linear_gelu, (x, matrix, bias), {}
    yield "gelu_ffn", kernels.gelu_ffn, (x, matrix, bias, matrix.clone(), bias.clone()), {}
    yield "cross_entropy", lambda z: kernels.cross_entropy(z, target), (half(ROWS, CLASSES),), {}
    fused = kernels.linear_cross_entropy
    yield "linear_cross_entropy", lambda x, w: fused(x, w, target), (x, classes), {}


def cases() -> Iterator[tuple[str, str, Case]]:
    """(operator, kind, call) of everything that is timed."""
    for name, function, tensors, settings in operators():
        yield name, KINDS[0], lambda f=function, t=tensors, s=settings: f(*t, **s)
        if name == "attention_weights":  # has no derivative
            continue
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
        yield name, KINDS[1], lambda f=function, t=leaves, s=settings: f(*t, **s)
        out = function(*leaves, **settings)
        outs = out if isinstance(out, tuple) else (out,)
        upstream = tuple(torch.ones_like(tensor) for tensor in outs)

        def both(f=function, t=leaves, s=settings, g=upstream) -> object:
            out = f(*t, **s)
            return torch.autograd.grad(out if isinstance(out, tuple) else (out,), t, g)

        yield name, KINDS[2], both


def measure(rounds: int, calls: int) -> Figures:
    """Time every case of the tree that is first on sys.path."""
    torch.set_num_threads(1)
    pretend_gpu()
    figures: Figures = {}
    timed = list(cases())
    for _, _, call in timed:
        for _ in range(5):
            call()
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name, kind, call in timed:
            call()  # what ran before has left another's memory in the caches
            spent = []
            for _ in range(calls):
                start = time.perf_counter_ns()
                call()
                spent.append(time.perf_counter_ns() - start)
            figures.setdefault(name, {}).setdefault(kind, []).append(statistics.median(spent) / 1e3)
        gc.collect()
    return figures


def run_in(tree: Path, detour: bool, rounds: int, calls: int) -> Figures:
    """`measure` in a process of its own, of the package in `tree`."""
    program = (
        f"import sys, runpy; sys.path.insert(0, {str(tree)!r}); "
        f"m = runpy.run_path({str(Path(__file__).resolve())!r}); "
        f"import json; print(json.dumps(m['measure']({rounds}, {calls})))"
    )
    env = os.environ | {"FASTGPT_DETOUR": str(int(detour)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tree, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(figures: dict[str, Figures]) -> str:
    """One row for each operator and kind, one column of medians for each of what was compared."""
    columns = list(figures)
    lines = ["| operator | call | " + " | ".join(columns) + " |", "|---|---|" + "--:|" * len(columns)]
    for name, kinds in next(iter(figures.values())).items():
        for kind in kinds:
            medians = [statistics.median(figures[column][name][kind]) for column in columns]
            lines.append(f"| {name} | {kind} | " + " | ".join(f"{median:.1f}" for median in medians) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="TREE", help="another checkout to time too")
    parser.add_argument("--turns", type=int, default=3, help="processes for each of what is compared (default: 3)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in each process (default: 15)")
    parser.add_argument("--calls", type=int, default=40, help="calls in each round (default: 40)")
    parser.add_argument("--json", action="store_true", help="print medians as JSON")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    options = parser.parse_args(argv)
    compared = {"this tree": (ROOT, True), "without the detour": (ROOT, False)}
    if options.beside is not None:
        compared = {options.beside.name: (options.beside.resolve(), True)} | compared
    figures: dict[str, Figures] = {}
    for _ in range(options.turns):
        for column, (tree, detour) in compared.items():
            found = run_in(tree, detour, options.rounds, options.calls)
            for name, kinds in found.items():
                for kind, values in kinds.items():
                    figures.setdefault(column, {}).setdefault(name, {}).setdefault(kind, []).extend(values)
    if options.json:
        medians = {c: {n: {k: statistics.median(v) for k, v in ks.items()} for n, ks in f.items()}
                   for c, f in figures.items()}  # fmt: skip
        print(json.dumps(medians, indent=1))
    else:
        print(table(figures), end="")
    if options.write:
        RESULT.write_text(
            "# Python time of a call\n\n"
            "Microseconds a call, medians, by `python -m benchmarks.call_cost --write` "
            f"(Python {platform.python_version()}, torch {torch.__version__}); what it leaves out is in its header.\n\n"
            + table(figures)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
