"""`fastgpt demo`: everything once, on this machine, in a few minutes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..study.demo_config import DemoConfig
from ._signals import status_of


@dataclass
class Command:
    """Train a small GPT on the embedded Shakespeare, sample from it, check every kernel, and write
    <runs-dir>/demo/report.html (or demo-2, demo-3, ...: nothing is ever replaced). Exit status 1 if the loss stays
    near the unigram entropy or a kernel is off."""

    demo: DemoConfig = field(default_factory=DemoConfig)

    def run(self) -> int:
        from ..study.demo import Interrupted, run_demo

        try:
            return 0 if run_demo(self.demo).ok else 1
        except Interrupted as stop:
            return status_of("fastgpt demo", stop)
