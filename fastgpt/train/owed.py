"""What the reports still owe of a step when it is saved, so that whoever goes on from there makes it up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import metrics

_MEASURED = ("tokens_per_second", "mfu", "memory_bytes")  # what two equal runs do not have in common


@dataclass
class Owed:
    """What the reports may not have of a step when it is saved.

    lines       of metrics.jsonl, the step's own the last; without timings, by which equal runs would differ
    validation  whether one is due
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    validation: bool = False

    @classmethod
    def of(cls, state: dict[str, Any]) -> Owed:
        """What a checkpoint's training.json says; version 0.1 wrote none."""
        return cls(**state.get("owed", {}))

    def state(self) -> dict[str, Any]:
        """For training.json."""
        lines = [{k: v for k, v in line.items() if k not in _MEASURED} for line in self.lines]
        return {"lines": lines, "validation": self.validation}

    def left(self, folder: Path) -> Owed:
        """What the metrics.jsonl of the run in `folder` lacks of it."""
        path = folder / "metrics.jsonl"
        written = {line["step"]: line for line in metrics.read_metrics(path)} if path.exists() else {}
        last = self.lines[-1]["step"] if self.lines else None
        due = self.validation and last is not None and written.get(last, {}).get("val_loss") is None
        missing = [line for line in self.lines if line["step"] not in written]
        if due and last in written:
            missing.append(written[last])
        return Owed(missing, due)

    def __bool__(self) -> bool:
        return bool(self.lines)
