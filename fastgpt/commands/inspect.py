"""`fastgpt inspect`: draw a model's attention maps of a prompt."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..base.settings import SettingError


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
    """Folder to write; pages and pictures of earlier calls in it are replaced."""
    tokenizer: str | None = None
    """The model's own if not given; else "gpt2", "shakespeare" or a .tiktoken file."""
    verify: bool = False
    """Hash every file of a run's checkpoint, those too that are not read here and look untouched."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def run(self) -> int:
        import torch

        from ..base.files import check_folder
        from ..study import attention_maps
        from ..train.devices import resolve_device
        from . import _inputs

        device = resolve_device(self.device)
        folder = check_folder("inspect", "out", self.out)
        for path in (folder / name for name in ("attention.html", "attention.png")):
            if os.path.lexists(path) and not (path.is_file() and attention_maps.is_ours(path)):
                need = f"holds {path.name}, which `fastgpt inspect` did not write; choose another folder"
                raise SettingError("inspect", "out", self.out, need)
        model, tokenizer = _inputs.open_model(self.model, device, self.tokenizer, verify=self.verify)
        config = model.config
        self._check("layers", self.layers, config.n_layers)
        self._check("heads", self.heads, config.n_heads)
        prompt = _inputs.read_prompt(self.prompt)
        ids = tokenizer.encode(prompt)
        if not ids:
            need = 'is empty; give some text, e.g. fastgpt inspect runs/demo "To be, or not to be"'
            raise SettingError("inspect", "prompt", prompt, need)
        if len(ids) > config.max_len:
            need = f"has {len(ids)} tokens, the model's max_len is {config.max_len}; shorten it"
            raise SettingError("inspect", "prompt", prompt, need)
        heads = [h % config.n_heads for h in self.heads] or list(range(config.n_heads))
        written: list[Path] = []
        try:
            maps = model.attention_maps(
                torch.tensor([ids], device=device), layers=list(self.layers) or None, heads=list(self.heads) or None
            )
            tokens = attention_maps.token_labels(tokenizer, ids)
            title = f"Attention weights of {self.model}"
            attention_maps.save_page(maps, tokens, folder / "attention.html", title, heads)
            print(_note(folder / "attention.html", written))
            attention_maps.save_png(maps, tokens, folder / "attention.png", heads)
            print(_note(folder / "attention.png", written))
        except SettingError as error:
            raise SettingError("inspect", "prompt", prompt, error.need) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"wrote {written[0]} only" if written else "nothing was written") from None
        except ImportError as error:
            print(f"no PNG: {error}", file=sys.stderr)
        return 0

    @staticmethod
    def _check(name: str, numbers: tuple[int, ...], count: int) -> None:
        """Raise SettingError for a layer or head that the model has not."""
        for number in numbers:
            if not -count <= number < count:
                what = f"there is no {name.removesuffix('s')} {number}: the model has {count}"
                raise SettingError("inspect", name, number, f"must lie between {-count} and {count - 1}: {what}")


def _note(path: Path, written: list[Path]) -> Path:
    written.append(path)
    return path
