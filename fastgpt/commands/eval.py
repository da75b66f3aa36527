"""`fastgpt eval`: loss, perplexity and bits per byte of a model on a text."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..base.settings import SettingError

if TYPE_CHECKING:
    from ..train.evaluation import Validation


@dataclass
class Command:
    """Loss, perplexity and bits per byte of a model on a text, every token scored once."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run (runs/<name>: its newest checkpoint), or a model's folder."""
    data: tuple[str, ...] = ("shakespeare",)
    """"shakespeare" (its validation split), a folder of `fastgpt prepare`, or text files and folders."""
    seq_len: int | None = None
    """Tokens per window; the model's max_len if not given."""
    batch_size: int = 8
    """Windows at a time."""
    max_batches: int | None = None
    """Score only so many batches, spread over the data."""
    tokenizer: str | None = None
    """The model's own if not given; else "gpt2", "shakespeare" or a .tiktoken file."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    dtype: str = "float32"
    """"float32", "bfloat16" (autocast) or "auto"."""
    verify: bool = False
    """Hash every file of the data and of a run's checkpoint, those too that are not read here or look untouched."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        from ..train.devices import resolve_device, resolve_dtype
        from ..train.evaluation import evaluate
        from . import _inputs

        device = resolve_device(self.device)
        dtype = resolve_dtype(self.dtype, device)
        _inputs.check_at_least(
            "eval", 1, seq_len=self.seq_len, batch_size=self.batch_size, max_batches=self.max_batches
        )
        model, tokenizer = _inputs.open_model(self.model, device, self.tokenizer, verify=self.verify)
        max_len = model.config.max_len
        seq_len = max_len if self.seq_len is None else self.seq_len
        if seq_len > max_len:
            raise SettingError("eval", "seq_len", seq_len, f"must be at most the model's max_len, {max_len}")
        data = _inputs.open_data(self.data, "val", tokenizer, verify=self.verify)
        if len(data) < 2:
            raise ValueError(f"--data {data.name}: {len(data)} token, where the first is never scored; give more text")
        try:
            with _inputs.progress_bar("scoring", self._n_batches(len(data), seq_len)) as step:
                found = evaluate(
                    model, data, batch_size=self.batch_size, seq_len=seq_len, device=device, dtype=dtype,
                    max_batches=self.max_batches, tokenizer=tokenizer, stop=step,
                )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt("there is no result, and nothing was written") from None
        assert found is not None  # a bar stops nothing
        if not math.isfinite(found.loss):
            why = f"its training diverged, or {self.dtype} cannot hold its numbers"
            print(
                f"fastgpt eval: error: the loss of {self.model} on {data.name} is {found.loss}: {why}; try an earlier "
                "checkpoint, or --dtype float32", file=sys.stderr,
            )  # fmt: skip
            return 1
        self._print(data.name, len(data), found)
        return 0

    def _n_batches(self, n_tokens: int, seq_len: int) -> int:
        from ..data.sampler import windows_in
        from ..kernels._runtime import cdiv

        windows = windows_in(n_tokens, seq_len)
        if self.max_batches is not None:
            windows = min(windows, self.max_batches * self.batch_size)
        return cdiv(windows, self.batch_size)

    def _print(self, name: str, n_tokens: int, found: Validation) -> None:
        if self.json:
            finite = {k: v if v is None or math.isfinite(v) else None for k, v in dataclasses.asdict(found).items()}
            print(json.dumps({"data": name} | finite, allow_nan=False))
            return
        of = "" if self.max_batches is None else f" of {n_tokens - 1:,}"
        print(f"{name}: {found.tokens:,}{of} tokens scored")
        print(f"loss           {found.loss:.4f} nats/token")
        print(f"perplexity     {found.perplexity:.2f}")
        print(f"bits per byte  {'n/a' if found.bits_per_byte is None else format(found.bits_per_byte, '.4f')}")
