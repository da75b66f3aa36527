"""What several commands do first: find the data, the tokenizer and the model that the options name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..data import TokenDataset
    from ..model import GPT
    from ..tokenizer import Tokenizer


def open_data(
    paths: Sequence[str], split: str, tokenizer: Tokenizer, cache: Path, *, progress: bool = True
) -> TokenDataset:
    """The data that `paths` name: ("shakespeare",), a folder of token shards, or texts.

    Texts are tokenized once into `cache`, and found there again while they and the tokenizer stay the same.

    Raises:
        ValueError: shards made with another tokenizer, and whatever `prepare` raises.
    """
    from ..data import TokenDataset, prepare, shakespeare_tokens

    if list(paths) == ["shakespeare"] and not Path("shakespeare").exists():
        return shakespeare_tokens(split, tokenizer)
    if len(paths) == 1 and (Path(paths[0]) / "manifest.json").is_file():
        dataset = TokenDataset.open(paths[0])
        if dataset.tokenizer_sha256 != tokenizer.sha256:
            raise ValueError(
                f"{paths[0]}: these shards were made with another tokenizer (sha256 "
                f"{dataset.tokenizer_sha256[:12]}...) than {tokenizer!r}; name theirs with --tokenizer"
            )
        return dataset
    from ..sources import find_sources

    files = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in find_sources(paths)]
    key = hashlib.sha256(json.dumps([files, tokenizer.sha256]).encode()).hexdigest()[:16]
    folder = cache / key
    if (folder / "manifest.json").is_file():
        return TokenDataset.open(folder)
    return prepare(paths, folder, tokenizer, progress=progress)


def model_folder(path: str) -> Path:
    """`path` itself, or the newest checkpoint if it is a run's folder.

    Raises:
        FileNotFoundError: there is no such path.
    """
    from ..checkpoint import latest

    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; give a run (runs/<name>) or a model's folder")
    return latest(folder / "checkpoints") or latest(folder) or folder


def open_model(path: str, device: torch.device, tokenizer: str | None, **overrides: str) -> tuple[GPT, Tokenizer]:
    """The model in a run's or a model's folder, ready on `device`, and its tokenizer.

    Raises:
        ValueError: the folder holds no tokenizer and none is named, or its vocabulary is larger than the model's.
    """
    from ..model import GPT
    from ..tokenizer import Tokenizer

    folder = model_folder(path)
    model = GPT.from_pretrained(folder, device=device, **overrides).eval()
    if tokenizer is not None:
        found = Tokenizer.load(tokenizer)
    elif (folder / "fastgpt_tokenizer.json").is_file():
        found = Tokenizer.from_pretrained(folder)
    elif 50257 <= model.config.vocab_size <= 50304:  # GPT-2's, perhaps padded to a multiple of 64
        found = Tokenizer.named("gpt2")
    else:
        raise ValueError(f"{folder}: holds no tokenizer; name the one that the model was trained with: --tokenizer")
    if found.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the model has {model.config.vocab_size} token ids, tokenizer {found.name!r} has "
            f"{found.vocab_size}; name the tokenizer that the model was trained with"
        )
    return model, found


def read_prompt(prompt: str | None) -> str:
    """The prompt given, or what stands on stdin ("-", or none given and stdin is not a terminal); else empty."""
    import sys

    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return sys.stdin.read()
    return prompt or ""
