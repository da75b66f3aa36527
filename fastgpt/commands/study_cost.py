"""`fastgpt study cost`: how a training step's bytes and seconds grow with layers, tokens and width."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..study.cost.config import SYMBOLS, CostConfig

OWNER = "study cost"


@dataclass
class Command:
    """Fit power laws to the memory and the time of a training step over layers L, tokens T and width D.

    Bytes are counted on paper for each implementation, so this runs anywhere; also where each runs out of --gpu. Time
    is measured on a CUDA GPU if there is one, on a CPU with --time, where a small grid does: --base 2 128 128 --layers
    1 2 4 --seq-lens 64 128 256 --widths 64 128 256 --heads 4 --vocab-size 4096 --batch-size 4.
    """

    time: bool = False
    """Measure the time of steps on a CPU too; on a CUDA GPU it is measured in any case."""
    time_limit: float = 60.0
    """Seconds for all timing: larger points, which would take longer, are left out."""
    device: str = "auto"
    """Where time is measured: "auto" (a GPU if there is one), "cpu" or "cuda"."""
    out: str | None = None
    """A file of JSON to write: every point, exponent and limit, the machine."""
    page: str | None = None
    """A page (.html) to write: log-log plots with the fitted lines, and tables."""
    json: bool = False
    """Print one JSON object in the place of the tables."""
    study: CostConfig = field(default_factory=CostConfig)

    def run(self) -> int:
        import json

        from ..base.settings import check_number
        from ..study.cost import study as cost
        from ..study.cost.counting import Paper
        from ..train.devices import resolve_device
        from ._outputs import check_both
        from ._status import status

        device = resolve_device(self.device, owner=OWNER)
        check_number(OWNER, "time_limit", self.time_limit, above=0)
        Paper.of(self.study)
        check_both(OWNER, self.out, self.page, cost.is_ours)
        is_timed = self.time or device.type == "cuda"
        with status() as say:
            record = cost.cost_study(
                self.study, time_on=str(device) if is_timed else None, time_limit=self.time_limit, say=say
            )
        print(json.dumps(record, allow_nan=False) if self.json else text(record))
        self._write(record)
        return 0

    def _write(self, record: dict[str, Any]) -> None:
        from ..study.cost import page
        from ..study.study_folder import write_record

        written: list[str] = []
        try:
            for path, write in ((self.out, write_record), (self.page, page.save)):
                if path is not None:
                    write(path, record)
                    written.append(path)
                    if not self.json:
                        print(path)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"wrote {written[0]} only" if written else "nothing was written") from None


def text(record: dict[str, Any]) -> str:
    """Exponents and limits, for a terminal."""
    from ..study.cost.page import NAMES, cells, limit_rows, names_of, scale
    from ..study.cost.study import config_of
    from ._table import note, side_by_side

    short = NAMES | {"working": "activ. + transient"}
    exponents = {f"{short[quantity]} ~ {SYMBOLS[axis]}": row for (quantity, axis), row in cells(record).items()}
    limits = {f"largest {what}": row for what, *row in limit_rows(record)}
    names, config, gpu = names_of(record), config_of(record), record["gpu"]
    lines = [
        note(f"Exponents with 95 % intervals; {scale(record)}"),
        note(f"base: {config.base_point}"),
        "",
        side_by_side(names, exponents),
        "",
        note(f"{gpu['name']}: {gpu['memory'] / 2**30:,.1f} GiB, less a margin of {config.margin:g} GiB, is full at"),
        "",
        side_by_side(names, limits),
        "",
        note(
            "Bytes are counted, not measured; their intervals say how far they are from a power law. activations: what "
            "the blocks keep from forward to backward. activ. + transient: at the moment when most is held, logits and "
            "workspaces too. weights: with gradients and AdamW's moments."
        ),
    ]
    lines += [note(f"left out: {name}: {why}") for name, why in record["left_out"].items()]
    times = record["times"]
    if times is not None and times["left_out"]:
        lines.append(note(f"{len(times['left_out'])} points were not timed: {_reasons(times['left_out'])}"))
    return "\n".join(lines)


def _reasons(rows: list[dict[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(f"{row['why']}" for row in rows))
