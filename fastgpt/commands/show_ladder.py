"""`fastgpt show ladder`: attention from three loops in Python to the shipped kernel, measured rung by rung."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.settings import check_choice

if TYPE_CHECKING:
    from ..study.ladder import Measured, Shape

AUTO = {"cpu": (256, 32, 1, "float32"), "cuda": (2048, 64, 16, "bfloat16")}  # tokens, head_dim, heads, dtype


@dataclass
class Command:
    """Causal attention in six short files, and the shipped kernel: time, memory traffic, memory and error of each.

    The files are kernels/attention/ladder/, each one idea beyond the one before; docs/ladder/ explains them. On a CPU
    the kernels run in Triton's interpreter, whose time says nothing of their speed; on a GPU all times are its own.
    """

    seq_len: int | None = None
    """Tokens; 256 on a CPU, 2,048 on a GPU if not given."""
    head_dim: int | None = None
    """Numbers of a query, key or value: 16, 32, 64 or 128; 32 on a CPU, 64 on a GPU if not given."""
    heads: int | None = None
    """Heads; 1 on a CPU, 16 on a GPU if not given."""
    dtype: str = "auto"
    """"float32", "float16", "bfloat16", or "auto": float32 on a CPU, bfloat16 on a GPU."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    seed: int = 0
    """Of the random q, k and v."""
    code: str | None = None
    """Print the source of a rung, e.g. "online_softmax", and measure nothing."""
    page: str | None = None
    """Write a page, an .html file: the figures, and each rung's source with what is new in it marked."""
    json: bool = False
    """Print one JSON object; times in seconds, sizes in bytes."""

    def run(self) -> int:
        import json
        import time
        from dataclasses import asdict

        from ..study import ladder, ladder_page
        from ..train.devices import resolve_device
        from ._outputs import check_page
        from ._status import status

        if self.code is not None:
            check_choice("show ladder", "code", self.code, tuple(ladder.TITLES))
            print(ladder.source(self.code), end="")
            return 0
        check_choice("show ladder", "device", self.device, ("auto", "cpu", "cuda"))
        device = resolve_device(self.device, owner="show ladder").type
        check_choice("show ladder", "dtype", self.dtype, ("auto", *ladder.DTYPES))
        seq_len, head_dim, heads, dtype = AUTO["cuda" if device == "cuda" else "cpu"]
        shape = ladder.Shape(
            seq_len if self.seq_len is None else self.seq_len,
            head_dim if self.head_dim is None else self.head_dim,
            heads if self.heads is None else self.heads,
            dtype if self.dtype == "auto" else self.dtype,
            device,
            self.seed,
        )
        check_page("show ladder", "page", self.page)
        try:
            start = time.monotonic()
            with status() as say:
                rungs = ladder.climb(shape, say)
            if self.page is not None:
                ladder_page.ladder_page(shape, rungs, time.monotonic() - start).save(self.page)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written") from None
        if self.json:
            print(json.dumps({"shape": asdict(shape), "rungs": [asdict(r) for r in rungs]}, allow_nan=False))
        else:
            print(_text(shape, rungs) if self.page is None else f"{_text(shape, rungs)}\n{self.page}")
        return 0


def _text(shape: Shape, rungs: list[Measured]) -> str:
    from ..study.ladder_page import described, duration, relative, size
    from ._table import note, side_by_side

    columns = ["time", "clock", "read", "written", "extra", "error"]
    rows, fast = {}, {}
    for n, rung in enumerate(rungs, 1):
        name = f"{n} {rung.name}"
        error = "" if rung.error is None else f"{rung.error:.0e}"
        sizes = [size(count) or "-" for count in (rung.read_bytes, rung.written_bytes, rung.extra_bytes)]
        rows[name] = ["left out"] + ["-"] * 5 if rung.left_out else [duration(rung.seconds), rung.clock, *sizes, error]
        fast[name] = relative(rung, rungs[n - 2] if n > 1 else None)
    if any(fast.values()):
        columns.append("against before")
        rows = {name: [*cells, fast[name] or "-"] for name, cells in rows.items()}
    lines = [f"causal attention: {described(shape)}", "", side_by_side(columns, rows), ""]
    lines += [note(f"{rung.name} is left out: {rung.left_out}.") for rung in rungs if rung.left_out]
    lines.append(note(EXPLAINED + (INTERPRETED if any(r.clock == "interpreter" for r in rungs) else "")))
    return "\n".join(lines)


EXPLAINED = (
    "read, written: bytes that Python, torch's operations and the kernels' loads and stores ask for, counted; caches "
    "serve a part of it. extra: the most memory taken at a time beyond q, k and v. error: the largest distance from "
    "float64. The sources are kernels/attention/ladder/; --code RUNG prints one."
)
INTERPRETED = " The interpreter's time says nothing of a kernel's speed: that needs a GPU."
