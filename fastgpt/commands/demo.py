"""`fastgpt demo`: everything once, on this machine, in a few minutes."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, field

from ..study.demo_config import DemoConfig
from ._signals import STATUS, WORDS


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
            if stop.stopped_by == "SIGINT":
                raise
            number = signal.Signals[stop.stopped_by]
            print(f"fastgpt demo: {WORDS[number]}; {stop}", file=sys.stderr)
            return STATUS[number]
