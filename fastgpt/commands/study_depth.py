"""`fastgpt study depth`: what the papers claim of depth, measured again."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from ..study.depth.config import DepthConfig
from ._signals import status_of


@dataclass
class Command:
    """Train the papers' grid of models, or any part of it, and judge their claims: <runs-dir>/<name>/study.html.

    2 to 12 layers, widths 256 and 512, 4 and 8 heads, unless told otherwise. The same command goes on with a study that
    was stopped: finished runs are not made again. --budget 30m chooses the number of tokens so that the grid fits.
    """

    data: tuple[str, ...] = ("shakespeare",)
    """Training data: "shakespeare" (embedded), a folder of `fastgpt prepare`, or text files and folders."""
    val_data: tuple[str, ...] = ()
    """Validation data, named likewise; if not given, the last part of the training data (of "shakespeare": its own)."""
    val_fraction: float = 0.01
    """Fraction of the training tokens that is held out when there is no validation data."""
    tokenizer: str = "gpt2"
    """"gpt2" (50,257 ids), "shakespeare" (4,096 ids), or a .tiktoken file."""
    threads: int | None = None
    """CPU threads that torch computes with; its own choice if not given."""
    progress: bool = True
    """Show a bar over the grid (in a log file: lines)."""
    study: DepthConfig = field(default_factory=DepthConfig)

    def run(self) -> int:
        import torch

        from ..base.settings import check_integer, check_number
        from ..data.tokenizer import Tokenizer
        from ..study.depth.study import run_study
        from ..study.interrupted import Interrupted
        from ..train.devices import resolve_device
        from . import _inputs

        resolve_device(self.study.device)
        check_number("study", "val_fraction", self.val_fraction, above=0, below=1)
        if self.threads is not None:
            torch.set_num_threads(check_integer("study", "threads", self.threads, least=1, most=1024))
        self.study.earlier()  # what is wrong with it is told before texts are tokenized
        tokenizer = Tokenizer.load(self.tokenizer)
        train_data, val_data = _inputs.open_both(
            self.data, self.val_data, self.val_fraction, tokenizer, progress=self.progress
        )
        try:
            found = run_study(self.study, train_data, val_data, tokenizer, progress=self.progress, say=_say)
        except Interrupted as stop:
            return status_of("fastgpt study depth", stop)
        for verdict in found.verdicts:
            print(f"{verdict.verdict}: {verdict.claim}\n    {verdict.numbers}\n    {verdict.scale}")
        print(found.page)
        if found.failed:
            print(f"{len(found.failed)} runs failed: {', '.join(found.failed)}", file=sys.stderr)
        return 1 if found.failed else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
