"""The kernel ladder, measured: time, memory traffic, memory and error from three loops to the shipped kernel.

    for rung in climb(Shape(seq_len=256, head_dim=32)):
        print(rung.title, rung.seconds, rung.read_bytes, rung.error)

The rungs are `fastgpt/kernels/attention/ladder/`, and the last one is `fastgpt.kernels.flash_attention`.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..base.settings import SettingError, check_choice, check_integer
from ..kernels import support
from ..kernels.attention import ladder
from ..kernels.attention.ladder import three_loops
from ..kernels.attention.ladder.arguments import HEAD_DIMS
from ..kernels.interpreter.traffic import Traffic
from ..tools.memory import peak_bytes
from ..tools.traffic import OperationTraffic

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

SHIPPED = "flash_attention"
# rung -> (title, what is new against the one before)
TITLES = {
    "three_loops": ("three loops", "the formula, number by number"),
    "naive": ("naive torch", "whole matrices in place of loops"),
    "tiled": ("tiled torch", "blocks of queries: T x T is never whole"),
    "online_softmax": ("online softmax", "blocks of keys too: a running maximum, sum and output"),
    "triton_forward": ("Triton forward", "one kernel: scores and state stay on the chip"),
    "tile_skipping": ("tile skipping", "the loop ends at the diagonal; full tiles have no mask"),
    SHIPPED: ("shipped kernel", "tiles chosen per GPU, every mask, dropout, any head dimension, gradients"),
}  # fmt: skip
KERNELS = ("triton_forward", "tile_skipping", SHIPPED)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

MOST_TOKENS = {"cpu": 1024, "cuda": 4096}  # a head's tiles are counted in the interpreter, some milliseconds each
MOST_STEPS = 1 << 23  # of the innermost loop of the three, a second or two of Python
WARM_UP, ROUNDS = 3, 20  # calls on CUDA before the clock, and under it
CPU_ROUNDS = 5


@dataclass(frozen=True)
class Shape:
    """What is computed: q, k and v (1, heads, seq_len, head_dim), normally distributed, by `seed`.

    Raises:
        SettingError, SettingTypeError: a number, dtype or device that cannot be.
    """

    seq_len: int = 256
    head_dim: int = 32
    heads: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("show ladder", "device", self.device, tuple(MOST_TOKENS))
        hint = "; the kernels' tiles are counted one by one in the interpreter"
        check_integer("show ladder", "seq_len", self.seq_len, least=1, most=MOST_TOKENS[self.device], hint=hint)
        check_integer("show ladder", "heads", self.heads, least=1, most=64)
        if self.head_dim not in HEAD_DIMS:
            need = f"must be one of {', '.join(map(str, HEAD_DIMS))}: tiles have sides that are powers of two"
            raise SettingError("show ladder", "head_dim", self.head_dim, need)
        check_choice("show ladder", "dtype", self.dtype, tuple(DTYPES))
        check_integer("show ladder", "seed", self.seed, least=0)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (1, heads, seq_len, head_dim) of `dtype`, on `device`."""
        generator = torch.Generator().manual_seed(self.seed)
        size = (3, 1, self.heads, self.seq_len, self.head_dim)
        q, k, v = torch.randn(size, generator=generator).to(self.device, DTYPES[self.dtype])
        return q, k, v


@dataclass(frozen=True)
class Measured:
    """One rung. What is None was not measured; `left_out` says why, of all of it.

    name, title, what  the module, or "flash_attention"; its name for readers; what is new against the rung before
    path               of its source
    seconds            of a call: the median of several; of Python and in the interpreter of one
    clock              "Python", "CPU" (one thread), "interpreter" (which says nothing of a GPU's speed) or "CUDA"
    read_bytes, written_bytes  counted, see `traffic`
    extra_bytes        most memory taken at a time beyond q, k and v, the output among it; of tensors, on paper
    error              largest distance from float64
    """

    name: str
    title: str
    what: str
    path: str
    seconds: float | None = None
    clock: str = ""
    read_bytes: int | None = None
    written_bytes: int | None = None
    extra_bytes: int | None = None
    error: float | None = None
    left_out: str = ""


def attention_of(name: str) -> Attention:
    """The function of a rung; the shipped kernel's, causal."""
    if name == SHIPPED:
        return functools.partial(kernels.flash_attention, causal=True)
    return ladder.attention_of(name)


def source(name: str) -> str:
    """The text of a rung's file; of the shipped kernel, of its device code."""
    return (Path(kernels.__file__).parents[1] / _path(name)).read_text(encoding="utf-8")


def _path(name: str) -> str:
    return "kernels/attention/forward.py" if name == SHIPPED else f"kernels/attention/ladder/{name}.py"


def climb(shape: Shape, say: Callable[[str], None] = lambda text: None) -> list[Measured]:
    """Each rung measured on the same inputs, from the lowest up.

    say  is told what is going on
    """
    q, k, v = shape.inputs()
    exact = _exact(q, k, v)
    found = []
    for name, (title, what) in TITLES.items():
        say(title)
        rung = Measured(name, title, what, _path(name), left_out=_why_not(name, shape))
        found.append(rung if rung.left_out else _measured(rung, shape, (q, k, v), exact))
    return found


def traffic(name: str, shape: Shape) -> tuple[int, int]:
    """Bytes that a rung reads and writes: counted on one head, and that times the heads, which are all alike.

    three loops  every number of q, k, v and out that Python reads or writes, at the size that it has in a tensor
    torch        every operation's tensors, each once: `OperationTraffic`
    kernels      every element that is loaded or stored, in the interpreter: `Traffic`. On a GPU, what several programs
                 load alike comes from caches for the most part.
    """
    q, k, v = (x[:, :1].cpu() for x in shape.inputs())
    attention = attention_of(name)
    count: OperationTraffic | Traffic | _Counts
    if name == "three_loops":
        count = _of_loops(q[0, 0], k[0, 0], v[0, 0])
    elif name in KERNELS:
        with kernels.interpret(), Traffic() as count:
            attention(q, k, v)
    else:
        with OperationTraffic() as count:
            attention(q, k, v)
    return count.read_bytes * shape.heads, count.written_bytes * shape.heads


def _why_not(name: str, shape: Shape) -> str:
    if name == "three_loops" and (steps := shape.heads * shape.seq_len**2 * shape.head_dim) > MOST_STEPS:
        return f"{steps:,} steps of Python would take long; at most {MOST_STEPS:,} are taken"
    if name in KERNELS and not support.has_triton():
        return "triton is not installed; pip install triton (Linux)"
    return ""


def _measured(rung: Measured, shape: Shape, qkv: tuple[Tensor, Tensor, Tensor], exact: Tensor) -> Measured:
    attention = attention_of(rung.name)
    out, seconds, clock = _timed(rung.name, shape, lambda: attention(*qkv))
    read, written = traffic(rung.name, shape)
    return replace(
        rung, seconds=seconds, clock=clock, read_bytes=read, written_bytes=written,
        extra_bytes=None if rung.name == "three_loops" else peak_bytes(attention, list(qkv), backward=False),
        error=(out.double() - exact).abs().max().item(),
    )  # fmt: skip


def _timed(name: str, shape: Shape, call: Callable[[], Tensor]) -> tuple[Tensor, float, str]:
    """(out, seconds of a call, whose clock)."""
    if name == "three_loops":
        return *_by_the_clock(call, 1), "Python"
    if shape.device == "cuda":
        return *_by_events(call), "CUDA"
    if name in KERNELS:
        with kernels.interpret():
            return *_by_the_clock(call, 1), "interpreter"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products gain nothing from more, and lose much where cores are busy
    try:
        call()  # the first one also fills caches
        return *_by_the_clock(call, CPU_ROUNDS), "CPU"
    finally:
        torch.set_num_threads(threads)


def _by_the_clock(call: Callable[[], Tensor], rounds: int) -> tuple[Tensor, float]:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - start)
    return out, statistics.median(seconds)


def _by_events(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Median over ROUNDS calls of the time between two events of the GPU. Inputs stay in its L2 cache if they fit."""
    for _ in range(WARM_UP):
        call()
    events = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        out = call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return out, statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def _exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in float64 by torch, head by head: as few T x T matrices at a time as can be."""
    q, k, v = q.double(), k.double(), v.double()
    one = (slice(h, h + 1) for h in range(q.shape[1]))
    heads = [F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h], is_causal=True) for h in one]
    return torch.cat(heads, 1)


# --- the three loops, counted ---


@dataclass
class _Counts:
    itemsize: int
    reads: int = 0
    writes: int = 0

    @property
    def read_bytes(self) -> int:
        return self.reads * self.itemsize

    @property
    def written_bytes(self) -> int:
        return self.writes * self.itemsize


class _Row(list[float]):
    """A row of numbers that counts how often they are read and written."""

    counts: _Counts

    def __getitem__(self, index: Any) -> Any:
        self.counts.reads += 1
        return list.__getitem__(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.counts.writes += 1
        list.__setitem__(self, index, value)


def _of_loops(q: Tensor, k: Tensor, v: Tensor) -> _Counts:
    """What the three loops read and write of one head (T, D)."""
    counts = _Counts(q.element_size())

    def rows(x: Tensor) -> list[_Row]:
        made = [_Row(row) for row in x.tolist()]
        for row in made:
            row.counts = counts
        return made

    three_loops.one_head(rows(q), rows(k), rows(v), rows(torch.zeros_like(q)))  # type: ignore[arg-type]
    return counts
