"""`fastgpt sample`: continue a prompt."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Command:
    """Continue a prompt, token by token, on stdout."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run (runs/<name>: its newest checkpoint), or a model's folder, ours or GPT-2's from transformers."""
    prompt: Positional[Annotated[str | None, arg(metavar="PROMPT")]] = None
    """The text to continue; "-" (or nothing, in a pipe): read it from stdin; empty: start a new document."""
    max_new_tokens: int = 200
    """Tokens to generate."""
    temperature: float = 0.8
    """Logits are divided by it; 0 takes the likeliest token every time."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest likeliest tokens whose probabilities sum to p."""
    seed: int | None = None
    """Of the draws; a new one each time if not given."""
    stop_at_end: bool = True
    """Stop at <|endoftext|>."""
    tokenizer: str | None = None
    """The model's own if not given; else "gpt2", "shakespeare" or a .tiktoken file."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def run(self) -> int:
        import torch

        from ..train.devices import resolve_device
        from . import _inputs

        device = resolve_device(self.device)
        _inputs.check_at_least("sample", 0, max_new_tokens=self.max_new_tokens)
        model, tokenizer = _inputs.open_model(self.model, device, self.tokenizer)
        prompt = _inputs.read_prompt(self.prompt)
        ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
        max_len = model.config.max_len
        stream = model.stream(
            torch.tensor([ids[-max_len:]], device=device), self.max_new_tokens, temperature=self.temperature,
            top_k=self.top_k, top_p=self.top_p, seed=self.seed, eos=tokenizer.end_of_text if self.stop_at_end else None,
        )  # fmt: skip
        if len(ids) > max_len:
            print(f"the prompt has {len(ids):,} tokens; the model reads the last {max_len:,} of them", file=sys.stderr)
        new = (int(token) for token in stream)
        visible = (token for token in new if token < tokenizer.end_of_text)  # neither the end nor padding of V
        try:
            print(prompt, end="", flush=True)
            for text in tokenizer.decode_stream(visible):
                print(text, end="", flush=True)
            print()
        except KeyboardInterrupt:
            print(flush=True)
            raise KeyboardInterrupt("what was drawn stands above, and nothing else was written") from None
        return 0
