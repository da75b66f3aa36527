"""The kernel ladder as one page: what each rung costs, and its source with what is new in it marked."""

from __future__ import annotations

import difflib
import html
from collections.abc import Sequence

from ..pages.charts import Chart
from ..pages.page import Page, asset
from .ladder import SHIPPED, Measured, Shape, source

LEAD = (
    "Causal attention, out = softmax(q kᵀ / √D) v, computed in six ways that differ by one idea each, and by the "
    "kernel that is built on them. All compute the same; what changes is what moves through memory, and what is kept "
    "there."
)
TRAFFIC = (
    "Bytes that are read and written, on a logarithmic axis. In Python every number counts each time it is used; in "
    "torch every operation reads and writes its tensors once; of the kernels every load and store counts. Nothing is "
    "said of caches, which serve most of what several programs read alike. The shipped kernel's tiles are those of its "
    "table for a small GPU."
)
EXTRA = (
    "The most memory that is taken at a time beyond q, k and v, the output among it, on a logarithmic axis. Of "
    "Python's own numbers, in the first rung, nothing is counted."
)
TIMES = {
    "CPU": "On a CPU torch computes with one thread: the median of several calls.",
    "interpreter": "In the interpreter numpy computes a kernel tile by tile: its time says nothing of speed.",
    "CUDA": "On the GPU: the median time between two events, after warm-up; inputs stay in its L2 cache if they fit.",
}  # fmt: skip


def ladder_page(shape: Shape, rungs: Sequence[Measured], seconds: float) -> Page:
    """The page of what `climb` found. seconds: that it took."""
    page = Page("The kernel ladder", lead=LEAD, generator="fastgpt show ladder")
    page.style(asset("ladder.css", __package__))
    page.paragraph(f"Measured on {described(shape)}.")
    links = "".join(f'<li><a href="#{rung.name}">{html.escape(rung.title)}</a></li>' for rung in rungs)
    page.add(f'<nav aria-label="rungs"><ol class=rungs>{links}</ol></nav>')
    page.heading("What each rung costs")
    table(page, rungs)
    for clock, text in TIMES.items():
        if any(rung.clock == clock for rung in rungs):
            page.paragraph(text)
    _charts(page, rungs)
    for n, (rung, before) in enumerate(_beside_the_one_before(rungs), 1):
        _section(page, n, rung, before)
    page.provenance(
        [
            ("seed", shape.seed),
            ("shape of q, k and v", f"(1, {shape.heads}, {shape.seq_len}, {shape.head_dim}), {shape.dtype}"),
            ("time taken", f"{seconds:.1f} s"),
        ]
    )
    return page


HEADER = ("rung", "time", "clock", "read", "written", "extra memory", "error")
AGAINST = "against the rung before"


def table(page: Page, rungs: Sequence[Measured]) -> None:
    """A line for each rung; how much faster each is than the one before, where a GPU has timed both."""
    lines = []
    for n, (rung, before) in enumerate(_beside_the_one_before(rungs), 1):
        sizes = [None if b is None else (b, size(b)) for b in (rung.read_bytes, rung.written_bytes, rung.extra_bytes)]
        time = None if rung.seconds is None else (rung.seconds, duration(rung.seconds))
        error = None if rung.error is None else (rung.error, f"{rung.error:.1e}")
        clock = rung.clock or "left out"
        lines.append([f"{n} {rung.title}", time, clock, *sizes, error, relative(rung, before)])
    if any(line[-1] for line in lines):
        page.table((*HEADER, AGAINST), lines)
    else:
        page.table(HEADER, [line[:-1] for line in lines])
    for n, rung in enumerate(rungs, 1):
        if rung.left_out:
            page.paragraph(f"Rung {n} is left out: {rung.left_out}.")


def relative(rung: Measured, before: Measured | None) -> str:
    """How many times as fast as the rung before, where both ran on the GPU."""
    if before is None or rung.clock != "CUDA" or before.clock != "CUDA" or not rung.seconds or not before.seconds:
        return ""
    return f"{before.seconds / rung.seconds:.2f} x as fast"


def duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(count: int | None) -> str:
    """Bytes in KiB, MiB or GiB."""
    if count is None:
        return ""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 2**10:,.1f} KiB"


def described(shape: Shape) -> str:
    heads = "1 head" if shape.heads == 1 else f"{shape.heads} heads"
    return f"{heads} of {shape.seq_len:,} tokens x {shape.head_dim} numbers, {shape.dtype}, on {shape.device}"


def _beside_the_one_before(rungs: Sequence[Measured]) -> list[tuple[Measured, Measured | None]]:
    return list(zip(rungs, [None, *rungs]))


def _charts(page: Page, rungs: Sequence[Measured]) -> None:
    numbered = [(n, rung) for n, rung in enumerate(rungs, 1) if not rung.left_out]
    series = {
        "read": [(n, float(rung.read_bytes)) for n, rung in numbered if rung.read_bytes],
        "written": [(n, float(rung.written_bytes)) for n, rung in numbered if rung.written_bytes],
    }
    page.heading("Memory traffic")
    page.chart(Chart(series, "Memory traffic of each rung", "rung", "bytes", log_y=True), TRAFFIC)
    extra = {"extra memory": [(n, float(rung.extra_bytes)) for n, rung in numbered if rung.extra_bytes]}
    page.heading("Memory beyond q, k and v")
    page.chart(Chart(extra, "Most memory at a time, beyond q, k and v", "rung", "bytes", log_y=True), EXTRA)


def _section(page: Page, n: int, rung: Measured, before: Measured | None) -> None:
    text = source(rung.name)
    page.add(f'<h2 id="{rung.name}">{n}. {html.escape(rung.title)}: {html.escape(rung.what)}</h2>')
    about = html.escape(f"{rung.path}, {len(text.splitlines())} lines")
    if rung.name == SHIPPED or before is None:
        code = _code([("", line) for line in text.splitlines()], rung.path)
        folded = f"<details><summary>{about}</summary>{code}</details>"
        page.add(f"<p>{about}.</p>{code}" if before is None else folded)
        return
    lines = marked(source(before.name), text)
    gone = [line for kind, line in lines if kind == "-"]
    page.add(f"<p>{about}. Lines marked + are new against rung {n - 1}.</p>")
    page.add(_code([(kind, line) for kind, line in lines if kind != "-"], rung.path))
    page.add(
        f"<details><summary>{len(gone)} lines of rung {n - 1} that are gone</summary>"
        f"{_code([('-', line) for line in gone], 'lines that are gone')}</details>"
    )


def marked(before: str, after: str) -> list[tuple[str, str]]:
    """("+": new, "-": gone, "": kept; the line) of two texts. A line that is only indented otherwise is kept."""
    old, new = before.splitlines(), after.splitlines()
    found = []
    bare, bare_new = ([line.strip() for line in lines] for lines in (old, new))
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, bare, bare_new, autojunk=False).get_opcodes():
        found += [("-", line) for line in old[i:i_end]] if kind != "equal" else []
        found += [("" if kind == "equal" else "+", line) for line in new[j:j_end]]
    return found


_CLASSES = {"+": " class=new", "-": " class=gone", "": ""}


def _code(lines: Sequence[tuple[str, str]], label: str) -> str:
    body = "".join(
        f'<span{_CLASSES[kind]}><i aria-hidden="true">{kind or " "}</i> {html.escape(line)}\n</span>'
        for kind, line in lines
    )
    return f'<pre class=code tabindex=0 role=region aria-label="{html.escape(label)}"><code>{body}</code></pre>'
