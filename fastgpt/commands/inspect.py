"""`fastgpt inspect`: draw a model's attention maps of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Command:
    """Draw a model's attention weights on a prompt: <out>/attention.html and <out>/attention.png."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run (runs/<name>: its newest checkpoint), or a model's folder."""
    prompt: Positional[Annotated[str | None, arg(metavar="PROMPT")]] = None
    """The text to look at; "-" (or nothing, in a pipe): read it from stdin."""
    layers: tuple[int, ...] = ()
    """Layers to draw, from 0; negative numbers count from the end; all if not given."""
    heads: tuple[int, ...] = ()
    """Heads to draw, from 0; all if not given."""
    out: str = "attention"
    """Folder to write."""
    tokenizer: str | None = None
    """The model's own if not given; else "gpt2", "shakespeare" or a .tiktoken file."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def run(self) -> int:
        import sys

        import torch

        from ..study import attention_maps
        from ..trainer import resolve_device
        from . import _inputs

        device = resolve_device(self.device)
        model, tokenizer = _inputs.open_model(self.model, device, self.tokenizer)
        ids = tokenizer.encode(_inputs.read_prompt(self.prompt))
        if not ids:
            raise ValueError(
                'the prompt is empty; give some text, e.g. fastgpt inspect runs/demo "To be, or not to be"'
            )
        if len(ids) > model.config.max_len:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, the model's max_len is {model.config.max_len}; shorten it"
            )
        heads = [h % model.config.n_heads for h in self.heads] or list(range(model.config.n_heads))
        maps = model.attention_maps(
            torch.tensor([ids], device=device), layers=list(self.layers) or None, heads=list(self.heads) or None
        )
        tokens = attention_maps.token_labels(tokenizer, ids)
        folder = Path(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        page = attention_maps.maps_page(maps, tokens, f"Attention weights of {self.model}", heads)
        (folder / "attention.html").write_text(page, encoding="utf-8")
        print(folder / "attention.html")
        try:
            attention_maps.save_png(maps, tokens, folder / "attention.png", heads)
            print(folder / "attention.png")
        except ImportError as error:
            print(f"no PNG: {error}", file=sys.stderr)
        return 0
