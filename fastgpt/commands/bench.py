"""`fastgpt bench`: how fast is a training step of this model here, and is that normal?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..base.settings import check_integer

if TYPE_CHECKING:
    import torch

    from ..model.config import GPTConfig

WARM_UP = 3
ON_A_CPU = "On a CPU the Triton kernels run only in the interpreter, whose speed means nothing: they are left out."


@dataclass
class Command:
    """Time training steps of a model with each implementation, side by side on this machine.

    The full suite, with other projects' kernels as peers, is `pytest benchmarks/ --benchmark` in the source tree.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]] = "gpt2-124m"
    """A preset, a run (runs/<name>), or a model's folder, transformers' GPT-2 too."""
    batch_size: int = 8
    """Sequences per step."""
    seq_len: int | None = None
    """Tokens per sequence; the model's max_len if not given."""
    steps: int = 20
    """Timed steps for each implementation, after 3 that are not."""
    compile: bool = False
    """Run each under torch.compile."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    json: bool = False
    """Print one JSON object; seconds and bytes."""

    def run(self) -> int:
        import json

        import torch

        from ..model.config import IMPLEMENTATION_SETS
        from ..train.devices import autocast, resolve_device, resolve_dtype
        from ..train.room import check_room
        from ..train.train_config import MOST_SEQUENCES
        from ._inputs import blamed_on, read_config
        from ._status import status

        check_integer("bench", "batch_size", self.batch_size, least=1, most=MOST_SEQUENCES)
        check_integer("bench", "steps", self.steps, least=1)
        device = resolve_device(self.device, owner="bench")
        dtype = resolve_dtype("auto", device, owner="bench")
        config = read_config(self.model)
        seq_len = config.max_len if self.seq_len is None else self.seq_len
        check_integer("bench", "seq_len", seq_len, least=1, most=config.max_len, hint=", the model's max_len")
        with blamed_on("model", self.model):
            check_room(config, batch_size=self.batch_size, seq_len=seq_len, device=device, dtype=dtype)
        left_out = {"fastgpt": ON_A_CPU} if device.type == "cpu" else {}
        found: dict[str, dict[str, Any] | None] = {}
        with status() as say:
            for implementation, parts in IMPLEMENTATION_SETS.items():
                if implementation in left_out:
                    continue
                say(f"{implementation}: the model is made")
                try:
                    found[implementation] = _time_steps(
                        config.replace(**parts), self.batch_size, seq_len, self.steps, self.compile, device,
                        lambda: autocast(device, dtype),
                        functools.partial(lambda name, text: say(f"{name}: {text}"), implementation),
                    )  # fmt: skip
                except torch.OutOfMemoryError:  # of one implementation, which the others may well not run into
                    found[implementation] = None
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        record = {
            "model": self.model, "batch_size": self.batch_size, "seq_len": seq_len, "steps": self.steps,
            "dtype": str(dtype).removeprefix("torch."), "device": str(device), "implementations": found,
            "left_out": left_out,
        }  # fmt: skip
        print(json.dumps(record, allow_nan=False) if self.json else _text(record))
        return 0 if any(found.values()) else 1


def _text(record: dict[str, Any]) -> str:
    from ._table import note, side_by_side

    def cells(show: Callable[[dict[str, Any]], str]) -> list[str]:
        return ["out of memory" if one is None else show(one) for one in record["implementations"].values()]

    rows = {
        "median step, ms": cells(lambda one: f"{one['median_seconds'] * 1e3:.2f}"),
        "spread (IQR)": cells(lambda one: f"{one['iqr_seconds'] / one['median_seconds']:.1%}"),
        "tokens/s": cells(lambda one: f"{one['tokens_per_second']:,.0f}"),
        "model TFLOP/s": cells(lambda one: f"{one['flops_per_second'] / 1e12:.3g}"),
        "peak memory, MiB": cells(
            lambda one: "n/a" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**20:,.0f}"
        ),
    }
    title = (
        f"{record['model']}: {record['batch_size']} x {record['seq_len']:,} tokens, {record['dtype']} on "
        f"{record['device']}, {record['steps']} steps each"
    )
    return "\n".join(
        [*map(note, record["left_out"].values()), title, "", side_by_side(list(record["implementations"]), rows)]
    )


def _time_steps(
    config: GPTConfig,
    batch_size: int,
    seq_len: int,
    steps: int,
    compile: bool,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Figures of AdamW training steps on random tokens; peak_bytes is None on a CPU."""
    import time

    import torch

    from ..model.gpt import GPT
    from ..train.optim import build_adamw

    torch.manual_seed(0)
    model = GPT(config).to(device)
    run = torch.compile(model) if compile else model
    optimizer = build_adamw(model, 1e-4)
    tokens = torch.randint(config.vocab_size, (batch_size, seq_len + 1), device=device)
    idx, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step in range(WARM_UP + steps):
        say(f"step {step - WARM_UP + 1} of {steps}" if step >= WARM_UP else "warming up")
        synchronize()
        start = time.perf_counter()
        with autocast():
            loss = run(idx, targets, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    seconds.sort()
    low, median, high = (seconds[round(q * (len(seconds) - 1))] for q in (0.25, 0.5, 0.75))
    tokens_per_second = batch_size * seq_len / median
    return {
        "median_seconds": median, "iqr_seconds": high - low, "tokens_per_second": tokens_per_second,
        "flops_per_second": model.flops_per_token(seq_len) * tokens_per_second,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }  # fmt: skip
