"""`fastgpt eval`: loss, perplexity and bits per byte of a model on a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg


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
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        import dataclasses
        import json

        from ..trainer import evaluate, resolve_device, resolve_dtype
        from . import _inputs

        device = resolve_device(self.device)
        model, tokenizer = _inputs.open_model(self.model, device, self.tokenizer)
        data = _inputs.open_data(self.data, "val", tokenizer, progress=not self.json)
        found = evaluate(
            model, data, batch_size=self.batch_size, seq_len=self.seq_len or model.config.max_len, device=device,
            dtype=resolve_dtype(self.dtype, device), max_batches=self.max_batches, tokenizer=tokenizer,
        )  # fmt: skip
        if self.json:
            print(json.dumps({"data": data.name} | dataclasses.asdict(found)))
        else:
            print(f"{data.name}: {found.tokens:,} tokens")
            print(f"loss           {found.loss:.4f} nats/token")
            print(f"perplexity     {found.perplexity:.2f}")
            print(f"bits per byte  {'n/a' if found.bits_per_byte is None else format(found.bits_per_byte, '.4f')}")
        return 0
