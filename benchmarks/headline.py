"""The figures that one asks for first, in one process: what a GPU session measures before anything else.

    python -m benchmarks.headline --out headline.jsonl [--only attention ffn] [--seconds 150]

In this order: the self-check of every kernel (`fastgpt verify`), the ceilings of the machine, attention, LayerNorm, the
GELU-FFN, the loss, and a training step of GPT-2 124M with the profiler's table. Every figure is printed and appended to
the file as soon as it is measured. Called again with the same file it goes on after the last section that was begun:
a kernel that breaks the CUDA context costs its own section, not those after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType

from benchmarks import measure, peers
from benchmarks.measure import Work, append_row, size
from benchmarks.ops import bound, randn
from benchmarks.report import ceilings_text, floor_text, notes, read_rows
from benchmarks.summary import rate_text

BF16 = torch.bfloat16
TOKENS, WIDTH = size(16384, 256), size(2048, 128)  # attention: B·T and H·head_dim, as in FlashAttention's own figures
PEERS = {
    "attention": (peers.OURS, peers.PORTABLE, "sdpa-flash", "sdpa-cudnn"),
    "layer_norm": (peers.OURS, "eager"),
    "add_layer_norm": (peers.OURS, "eager"),
    "ffn": (peers.OURS, "eager"),
    "linear_cross_entropy": (peers.OURS, "eager"),
}


@dataclass(frozen=True)
class Figure:
    """One call to time, for every implementation in `PEERS[op]`.

    inputs   makes the arguments; floating ones get gradients in mode "forward+backward"
    options  further arguments, as they are
    """

    op: str
    mode: str
    shape: dict[str, int]
    work: Work
    inputs: Callable[[], list[Tensor]]
    options: dict[str, Any]
    dtype: torch.dtype = BF16


def attention_shapes(head_dim: int) -> list[dict[str, int]]:
    """Causal calls: the same number of tokens in sequences of many lengths, and a few short ones, which fill no GPU."""
    full = [(TOKENS // T, T) for T in (size(128, 32), size(1024, 64), size(4096, 128), size(16384, 256))]
    small = [(1, size(256, 48)), (1, size(1024, 80)), (size(4, 2), size(1024, 64))]
    return [{"B": B, "H": WIDTH // head_dim, "T": T, "head_dim": head_dim} for B, T in dict.fromkeys(full + small)]


def attention() -> Iterator[Figure]:
    for shape in [*attention_shapes(64), *attention_shapes(128)]:
        B, H, T, head_dim = shape.values()
        for mode, passes in (("forward", 1.0), ("forward+backward", 3.5)):
            flops = passes * 4 * T * T * head_dim * H * B / 2  # causal; the backward counts 2.5 forwards
            # q, k, v and out; of a backward, whose lse and delta and partial sums are the kernels' own, no count
            memory = 4 * B * T * H * head_dim * 2 if mode == "forward" else 0
            work = Work(flops=flops, bytes=memory, tokens=B * T)

            def inputs(B: int = B, T: int = T, H: int = H, head_dim: int = head_dim) -> list[Tensor]:
                packed = randn(B, T, 3, H, head_dim, dtype=BF16).permute(2, 0, 3, 1, 4)
                return [t.detach() for t in packed.unbind(0)]

            yield Figure("attention", mode, shape, work, inputs, {})


ESTIMATES = Path(__file__).parent / "results" / "hopper.json"  # python -m benchmarks.hopper --write


def estimate_of(figure: Figure, impl: str) -> float | None:
    """Seconds that this should take on an H100 or H200, by our model of it; None where nobody has estimated them."""
    rows = json.loads(ESTIMATES.read_text()) if ESTIMATES.exists() and figure.op == "attention" else ()
    wanted = {"impl": impl, "mode": figure.mode, "shape": figure.shape}
    return next((row["seconds"] for row in rows if row.items() >= wanted.items()), None)


def layer_norm() -> Iterator[Figure]:
    M = size(32768, 64)
    for N in (768, 1600, 4096):
        for mode, passes in (("forward", 2), ("forward+backward", 5)):
            work = Work(bytes=passes * M * N * 2, tokens=M)
            make = lambda N=N: [randn(M, N, dtype=BF16), *(randn(N, dtype=BF16) for _ in range(2))]  # noqa: E731
            yield Figure("layer_norm", mode, {"M": M, "N": N}, work, make, {})
    N = 768
    for mode, passes in (("forward", 4), ("forward+backward", 8)):
        work = Work(bytes=passes * M * N * 2, tokens=M)
        make = lambda: [*(randn(M, N, dtype=BF16) for _ in range(2)), *(randn(N, dtype=BF16) for _ in range(2))]  # noqa: E731
        yield Figure("add_layer_norm", mode, {"M": M, "N": N}, work, make, {"dropout_p": 0.0})


def ffn() -> Iterator[Figure]:
    M = size(16384, 128)
    for d in (size(768, 128), size(1600, 200)):
        for mode, products in (("forward", 2), ("forward+backward", 6)):

            def inputs(d: int = d) -> list[Tensor]:
                weights = randn(4 * d, d, dtype=BF16) / d**0.5, randn(d, 4 * d, dtype=BF16) / (4 * d) ** 0.5
                return [randn(M, d, dtype=BF16), weights[0], randn(4 * d, dtype=BF16), weights[1], randn(d, dtype=BF16)]

            yield Figure("ffn", mode, {"M": M, "d": d}, Work(flops=products * 2 * M * d * 4 * d, tokens=M), inputs, {})


def loss() -> Iterator[Figure]:
    N, d, V = size(16384, 32), size(768, 64), 50257
    for mode, products in (("forward", 1), ("forward+backward", 3)):

        def inputs() -> list[Tensor]:
            target = torch.randint(V, (N,), device=measure.device())
            return [randn(N, d, dtype=BF16), randn(V, d, dtype=BF16) / d**0.5, target]

        work = Work(flops=products * 2 * N * d * V, tokens=N)
        yield Figure("linear_cross_entropy", mode, {"N": N, "d": d, "V": V}, work, inputs, {})


FIGURES = {"attention": attention, "layer_norm": layer_norm, "ffn": ffn, "loss": loss}


class Session:
    """Where the figures of one section go: a line of the table, and a line of the file."""

    def __init__(self, out: Path, section: str, rounds: int) -> None:
        self.out, self.section, self.rounds = out, section, rounds

    def write(self, kind: str, **row: Any) -> None:
        # Not the ceilings: the first to write may be the self-check, in a process of its own and on a cold GPU.
        append_row(self.out, {"section": self.section, "kind": kind} | row, about=measure.machine)

    def ceilings(self) -> dict[str, Any]:
        """The ceilings behind "of floor" of all figures in this file: its own, or else measured now and written."""
        for row in read_rows(self.out):
            if row.get("kind") == "ceilings":
                measure.adopt_ceilings(row)
                return row
        found = measure.ceilings() | {"gpu_state": measure.gpu_state()}
        self.write("ceilings", **found)
        return found

    def figures(self, figures: Iterator[Figure]) -> None:
        """Time each figure of every implementation; a ratio is the time of the best of the others over ours."""
        self.ceilings()
        for figure in figures:
            times = {impl: self._figure(figure, impl) for impl in PEERS[figure.op]}
            ours = times.pop(peers.OURS)
            others = [t for impl, t in times.items() if t is not None and impl != peers.PORTABLE]
            if ours is not None and others:
                print(f"  {figure.op} {figure.mode} {figure.shape}: {min(others) / ours:.2f}x of the best peer")

    def _figure(self, figure: Figure, impl: str) -> float | None:
        peer = peers.PEERS[figure.op][impl]
        try:
            run = bound(peer.get(), figure.inputs(), figure.options, figure.mode)
            with peer.during():
                peak = measure.Measure._peak_bytes(run)
                seconds = self._time(run, figure, impl, peer.version, peak)
        except Exception as error:
            if measure.fatal():
                raise
            message = str(error).splitlines()[0] if str(error) else ""
            self.write("skipped", op=figure.op, impl=impl, mode=figure.mode, shape=figure.shape, reason=message)
            print(f"  {figure.op} {figure.mode} {figure.shape} {impl}: {type(error).__name__}: {message[:200]}")
            return None
        return seconds

    def _time(self, run: Callable[[], None], figure: Figure, impl: str, version: str | None, peak: int | None) -> float:
        call, late = measure.watched(run)
        times = measure.round_seconds(call, self.rounds)
        row = measure.figure(
            times, op=figure.op, impl=impl, dtype=figure.dtype, work=figure.work, shape=figure.shape, mode=figure.mode,
            version=version, peak_bytes=peak, late=late,
        )  # fmt: skip
        row["estimate"] = estimate_of(figure, impl)
        self.write("figure", **row)
        estimate = f" (estimate {row['estimate'] * 1e3:.3f})" if row["estimate"] else ""
        print(
            f"  {figure.op:20s} {figure.mode:16s} {_text(figure.shape):34s} {impl:16s} {row['seconds'] * 1e3:9.3f} ms"
            f"{estimate}  {rate_text(row):>14s}  {floor_text(row)} of the floor  spread {row['spread']:.0%}"
            f"{''.join(f'  ({note})' for note in notes(row))}"
        )
        return row["seconds"]


def _text(shape: dict[str, int]) -> str:
    return " ".join(f"{k}={v}" for k, v in shape.items())


# ---- the sections that are no lists of figures -----------------------------------------------------------------------


def verify(session: Session) -> None:
    from fastgpt.tools.verify import verify

    report = verify(measure.device())
    print(report)
    for row in report.record()["rows"]:
        session.write("verify", **row)
    session.write("verified", ok=report.ok, where=report.where, seconds=report.seconds)


def ceilings(session: Session) -> None:
    print(f"  {ceilings_text(session.ceilings())}")


GPT2_124M = {
    "vocab_size": size(50304, 512), "max_len": size(1024, 64), "n_layers": size(12, 2), "n_heads": size(12, 2),
    "d_model": size(768, 128),
}  # fmt: skip
BATCH = size(16, 2)


def train_step(session: Session) -> None:
    """Forward, backward and AdamW of GPT-2 124M, bf16 autocast: ours, and torch's own modules uncompiled."""
    from fastgpt import GPTConfig
    from fastgpt.model.config import IMPLEMENTATION_SETS

    config = GPTConfig(**GPT2_124M)
    shape = {"layers": config.n_layers, "d": config.d_model, "T": config.max_len, "B": BATCH}
    session.ceilings()
    steps = {}
    for impl in (peers.OURS, "torch"):
        step, work = training_step(config.replace(**IMPLEMENTATION_SETS[impl]))
        steps[impl] = step
        peak = measure.Measure._peak_bytes(step)
        times = measure.round_seconds(step, max(3, session.rounds // 3), flush=False)
        row = measure.figure(
            times, op="train_step", impl=impl, dtype=BF16, work=work, shape=shape, mode="gpt2", version=None,
            peak_bytes=peak,
        )  # fmt: skip
        session.write("figure", **row)
        print(
            f"  GPT-2 124M {impl:8s} {row['seconds'] * 1e3:8.2f} ms  {row['tokens_s']:9.0f} tokens/s"
            f"  {floor_text(row)} of the floor  {(peak or 0) / 2**30:.2f} GiB  {'; '.join(notes(row))}"
        )
    try:  # behind both figures: a profiler may fail on a machine where all else works
        profile(session, steps[peers.OURS])
    except Exception as error:
        if measure.fatal():
            raise
        reason = f"{type(error).__name__}: {error}"[:500]
        session.write("skipped", op="profile", impl=peers.OURS, mode="gpt2", shape=shape, reason=reason)
        print(f"  no profile: {reason}")


def training_step(config: Any) -> tuple[Callable[[], None], Work]:
    """(one step, what it must do)."""
    from benchmarks import models
    from fastgpt import GPT

    torch.manual_seed(0)
    model = GPT(config).to(measure.device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=torch.cuda.is_available())
    tokens = torch.randint(config.vocab_size, (BATCH, config.max_len + 1), device=measure.device())
    idx, targets = tokens[:, :-1], tokens[:, 1:].contiguous()

    def step() -> None:
        with models.autocast(BF16):
            loss = model(idx, targets, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, models.step_work(model, idx.numel())


def profile(session: Session, step: Callable[[], None]) -> None:
    """Where the GPU's time of one step goes, by kernel."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        measure.synchronize()
    kernels = sorted(by_kernel(profiler.key_averages()), key=lambda e: e.self_device_time_total, reverse=True)
    total = sum(e.self_device_time_total for e in kernels)
    print(f"  one step of ours: {total / 1e3:.2f} ms in {sum(e.count for e in kernels)} kernels")
    for e in kernels[:30]:
        share = e.self_device_time_total / total
        print(f"    {share:5.1%} {e.self_device_time_total / 1e3:8.3f} ms {e.count:5d} x {e.key[:100]}")
    session.write("profile", rows=[[e.key[:120], e.count, e.self_device_time_total] for e in kernels[:40]])


def by_kernel(averages: Sequence[Any]) -> list[Any]:
    """What ran on the GPU. The operators that launched it hold the same time again, and annotations span it."""
    return [e for e in averages if e.device_type == DeviceType.CUDA and not e.is_user_annotation]


OTHERS = {"verify": verify, "ceilings": ceilings, "train_step": train_step}
SECTIONS = ("verify", "ceilings", "attention", "layer_norm", "ffn", "loss", "train_step")


NO_GPU = 69  # the exit status by which the session knows that no later step has anything to measure


def begun(out: Path) -> set[str]:
    """The sections that an earlier call has begun, whether they ended or not."""
    return {row["section"] for row in read_rows(out) if row.get("kind") == "begin"}


def run(out: Path, sections: Sequence[str], seconds: float, rounds: int) -> int:
    """Measure `sections` that `out` does not have, while there is time; returns the number of those that failed."""
    end, failed, done = time.monotonic() + seconds, 0, begun(out)
    for section in sections:
        if section in done:
            continue
        session, start = Session(out, section, rounds), time.monotonic()
        if start > end:
            print(f"{section}: no time left")
            continue
        try:
            session.write("begin")
            session.figures(FIGURES[section]()) if section in FIGURES else OTHERS[section](session)
            measure.synchronize()
        except Exception as error:
            failed += 1
            with contextlib.suppress(Exception):
                session.write("failed", error=f"{type(error).__name__}: {error}"[:2000])
            print(f"{section}: FAILED: {type(error).__name__}: {str(error)[:500]}")
            if measure.fatal():
                raise
        print(f"{section}: {time.monotonic() - start:.1f} s", flush=True)
    return failed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headline", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("headline.jsonl"), help="JSON lines are appended here")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help="|".join(SECTIONS)
    )
    parser.add_argument("--seconds", type=float, default=150.0, help="begin no section after this long")
    parser.add_argument("--rounds", type=int, default=20, help="calls of which each figure is the median")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and set(args.only) - {"verify"}:
        print("error: these figures are a GPU's, and there is no CUDA GPU here (--only verify works)", file=sys.stderr)
        return NO_GPU
    return 1 if run(args.out, args.only, args.seconds, args.rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
