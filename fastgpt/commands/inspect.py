"""`fastgpt inspect`: a model's attention weights on a prompt, as a page to explore and as a picture."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..base.settings import SettingError, check_choice
from ..pages.figures import duration


@dataclass
class Command:
    """Look into a model's attention on a prompt: <out>/attention.html, a page to explore, and <out>/attention.png.

    The page shows all heads small and one enlarged, each weight by its tokens, what a token attends to, and scores by
    which heads are found that look at the previous, the first or the same token. Weights are exact up to 128 tokens;
    of longer prompts they are rounded, by how much it says.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run (runs/<name>: its newest checkpoint), or a model's folder."""
    prompt: Positional[Annotated[str | None, arg(metavar="PROMPT")]] = None
    """The text to look at; "-" (or nothing, in a pipe): read it from stdin."""
    layers: tuple[int, ...] = ()
    """Layers to draw, from 0; negative numbers count from the end; all if not given."""
    heads: tuple[int, ...] = ()
    """Heads to draw, from 0; all if not given."""
    scale: str = "sqrt"
    """How weights become colours: "linear", "sqrt" (small weights show), or "log" (from 0.0001). The page has all."""
    out: str = "attention"
    """Folder to write; pages and pictures of earlier calls in it are replaced."""
    tokenizer: str | None = None
    """The model's own if not given; else "gpt2", "shakespeare" or a .tiktoken file."""
    verify: bool = False
    """Hash every file of a run's checkpoint, those too that are not read here and look untouched."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def run(self) -> int:
        import time

        import torch

        from ..base.files import check_folder
        from ..study import attention_maps, explorer
        from ..study.palette import SCALES
        from ..train.devices import resolve_device
        from . import _inputs, _status
        from ._outputs import why_not

        device = resolve_device(self.device)
        check_choice("inspect", "scale", self.scale, SCALES)
        folder = check_folder("inspect", "out", self.out)
        for path in (folder / name for name in ("attention.html", "attention.png")):
            if os.path.lexists(path) and not (path.is_file() and attention_maps.is_ours(path)):
                need = f"holds {path.name}, which `fastgpt inspect` did not write; choose another folder"
                raise SettingError("inspect", "out", self.out, need)
        if why := why_not(folder / "attention.html"):
            raise SettingError("inspect", "out", self.out, f"cannot be written: {why}")
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
            began, idx = time.perf_counter(), torch.tensor([ids], device=device)
            maps = model.attention_maps(idx, layers=list(self.layers) or None, heads=list(self.heads) or None)
            tokens = attention_maps.token_labels(tokenizer, ids)
            with _inputs.progress_bar("heads", len(maps) * len(heads)) as on_head:
                title = f"Attention weights of {self.model}"
                page = explorer.explorer_page(maps, tokens, idx[0], title, heads, scale=self.scale, on_head=on_head)
            page.provenance(
                [
                    ("model", f"{self.model}, {model.num_parameters():,} parameters"),
                    ("tokens", len(ids)),
                    ("time taken", duration(time.perf_counter() - began)),
                ]
            )
            page.save(folder / "attention.html")
            print(_note(folder / "attention.html", written))
            with _status.status() as say:
                say("drawing the picture")
                attention_maps.save_png(maps, tokens, folder / "attention.png", heads, self.scale)
            print(_note(folder / "attention.png", written))
        except SettingError as error:
            if error.owner == "head_scores":  # what the model computed is not finite
                raise ValueError(f"{self.model}: its attention weights {error.need}") from None
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
