"""`fastgpt bench`: how fast is a training step of this model here, and is that normal?"""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass
class Command:
    """Time training steps of a model with each implementation, side by side on this machine.

    The full suite, with other projects' kernels as peers, is `pytest benchmarks/ --benchmark` in the source tree.
    """

    model: Positional[str] = "gpt2-124m"
    """A preset, or a folder with a model's config.json."""
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

    def run(self) -> int:
        import torch
        from rich.console import Console
        from rich.table import Table

        from ..config import IMPLEMENTATION_SETS
        from ..trainer import autocast, resolve_device, resolve_dtype
        from .plan import read_config

        device = resolve_device(self.device)
        dtype = resolve_dtype("auto", device)
        config = read_config(self.model)
        seq_len = self.seq_len or config.max_len
        for name, value in (("batch_size", self.batch_size), ("steps", self.steps), ("seq_len", seq_len)):
            if value < 1:
                raise ValueError(f"bench: {name} must be at least 1, got {value}")
        if device.type == "cpu":
            print(
                "On a CPU the Triton kernels run only in the interpreter, whose speed means nothing: they are left out."
            )
        table = Table(title=f"{self.model}: {self.batch_size} x {seq_len} tokens, {dtype} on {device}")
        for column in ("implementation", "median step", "spread (IQR)", "tokens/s", "model TFLOP/s", "peak memory"):
            table.add_column(column, justify="left" if column == "implementation" else "right")
        for implementation, parts in IMPLEMENTATION_SETS.items():
            if device.type == "cpu" and implementation == "fastgpt":
                continue
            seconds, flops, peak = _time_steps(
                config.replace(**parts), self.batch_size, seq_len, self.steps, self.compile, device,
                lambda: autocast(device, dtype),
            )  # fmt: skip
            low, median, high = (seconds[round(q * (len(seconds) - 1))] for q in (0.25, 0.5, 0.75))
            tokens = self.batch_size * seq_len
            table.add_row(
                implementation, f"{median * 1e3:.2f} ms", f"{(high - low) / median:.1%}", f"{tokens / median:,.0f}",
                f"{flops * tokens / median / 1e12:.2f}", "n/a" if peak is None else f"{peak / 2**20:,.0f} MiB",
            )  # fmt: skip
            if device.type == "cuda":
                torch.cuda.empty_cache()
        Console().print(table)
        return 0


def _time_steps(config, batch_size, seq_len, steps, compile, device, autocast):
    """(sorted seconds of each step, FLOPs per token, peak bytes or None) of AdamW training steps on random tokens."""
    import time

    import torch

    from ..model import GPT
    from ..optim import build_adamw

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
    for step in range(steps + 3):
        synchronize()
        start = time.perf_counter()
        with autocast():
            loss = run(idx, targets, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        if step >= 3:
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return sorted(seconds), model.flops_per_token(seq_len), peak
