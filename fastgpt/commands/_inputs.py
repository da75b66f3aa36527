"""What several commands do first: find the data, the tokenizer and the model that the options name."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.settings import SettingError, SettingTypeError, check_integer

if TYPE_CHECKING:
    import torch

    from ..data import TokenDataset
    from ..data.tokenizer import Tokenizer
    from ..model.config import GPTConfig
    from ..model.gpt import GPT
    from ..model.one_head import OneHeadLM


def open_data(
    paths: Sequence[str], split: str, tokenizer: Tokenizer, *, option: str = "--data", progress: bool = True,
    verify: bool = False,
) -> TokenDataset:  # fmt: skip
    """The data that `paths`, the values of `option`, name: ("shakespeare",), a folder of token shards, or texts.

    Its name is the paths as they were typed. Texts are tokenized once, see `data/token_cache.py`. `verify`: compare
    every byte of shards with their hashes.

    Raises:
        ValueError: shards made with another tokenizer, paths that hold no data, and whatever `prepare` raises.
        FileNotFoundError: no such path. Every message begins with `option`.
    """
    from ..data import SourceError, shakespeare_tokens, shards

    with of_option(option):
        if list(paths) == ["shakespeare"] and not os.path.exists("shakespeare"):
            return shakespeare_tokens(split, tokenizer)
        if "shakespeare" in paths and not os.path.exists("shakespeare"):
            raise SourceError("shakespeare: the embedded corpus stands alone; name it without other data")
        if len(paths) == 1 and shards.were_shards(paths[0]):
            return _open_shards(paths[0], tokenizer, verify=verify, progress=progress)
        from ..data import token_cache

        return token_cache.tokenized(paths, tokenizer, progress=progress, verify=verify)


def open_both(
    paths: tuple[str, ...], val_paths: tuple[str, ...], val_fraction: float, tokenizer: Tokenizer, **how: Any
) -> tuple[TokenDataset, TokenDataset]:
    """Training and validation data, of --data, --val-data and --val-fraction; `how`: see `open_data`.

    Raises:
        SettingError: too few tokens to be split. Else as `open_data`.
    """
    train_data = open_data(paths, "train", tokenizer, **how)
    if val_paths:
        return train_data, open_data(val_paths, "val", tokenizer, option="--val-data", **how)
    if paths == ("shakespeare",) and train_data.name.startswith("shakespeare/"):
        return train_data, open_data(paths, "val", tokenizer)
    n_tokens = len(train_data)
    train_data, val_data = train_data.split(val_fraction)
    if min(len(train_data), len(val_data)) < 2:
        need = (
            f"splits the {n_tokens} tokens of {train_data.name.removesuffix(' (train)')} into {len(train_data)} to "
            f"learn from and {len(val_data)} to validate with; both need 2: give more text, or --val-data"
        )
        raise SettingError("train", "val_fraction", val_fraction, need)
    return train_data, val_data


@contextlib.contextmanager
def of_option(option: str) -> Iterator[None]:
    """Errors about a file or its contents name the option that named it."""
    from ..data import ShardError, SourceError

    try:
        yield
    except (FileNotFoundError, ShardError, SourceError) as error:
        raise type(error)(f"{option} {error}") from error


@contextlib.contextmanager
def renamed(**options: str) -> Iterator[None]:
    """Errors about an argument of that name are about the option that gave it: `renamed(folder="out")`."""
    try:
        yield
    except (SettingError, SettingTypeError) as error:
        error.name = options.get(error.name, error.name)
        raise


@contextlib.contextmanager
def blamed_on(option: str, value: str, typed: Collection[str] = ()) -> Iterator[None]:
    """Errors about a model's sizes are about the option that named the model, but for sizes that were `typed`."""
    try:
        yield
    except SettingError as error:
        if error.owner not in ("GPTConfig", "OneHeadLM") or error.name in typed:
            raise
        raise SettingError(error.owner, option, value, f"has {error.name} {error.value}, which {error.need}") from None


def _open_shards(path: str, tokenizer: Tokenizer, *, verify: bool, progress: bool) -> TokenDataset:
    from ..data import ShardError, TokenDataset

    dataset = TokenDataset.open(path, verify=verify, progress=progress)
    if dataset.tokenizer_sha256 != tokenizer.sha256:
        raise ShardError(
            f"{path}: these shards were made with another tokenizer (sha256 {dataset.tokenizer_sha256[:12]}...) than "
            f"{tokenizer!r}; name theirs with --tokenizer"
        )
    return dataset


def model_folder(path: str) -> Path:
    """`path` itself, or the newest checkpoint if it is a run's folder.

    Raises:
        FileNotFoundError: there is no such path, or a run without a checkpoint.
    """
    from ..model.presets import names
    from ..train import overwritten
    from ..train.checkpoint import latest

    folder = Path(path)
    if not os.path.exists(path):
        what = "a preset, which has no weights" if path.lower() in names() else "no such file or folder"
        raise FileNotFoundError(f"{path}: {what}; give a run (runs/<name>) or a model's folder (nothing is downloaded)")
    if os.path.isfile(path):
        return folder.parent if folder.name in ("config.json", "model.safetensors") else folder
    if (folder / "config.json").is_file():
        return folder
    newest = overwritten.newest(folder / "checkpoints") or latest(folder)
    if newest is None and any((folder / name).exists() for name in ("settings.json", "checkpoints")):
        raise FileNotFoundError(
            f"{path}: a run without a finished checkpoint; train it with `fastgpt train`, or give another run"
        )
    runs = sorted(child for child in folder.iterdir() if overwritten.newest(child / "checkpoints"))
    if newest is None and runs:
        raise FileNotFoundError(f"{path}: a folder of runs; give one of them: {', '.join(map(str, runs[:5]))}")
    return newest or folder


def read_config(model: str) -> GPTConfig:
    """The config of a preset, or of whatever `open_model` opens; a folder of a preset's name comes first.

    Raises:
        FileNotFoundError, ValueError: neither, a folder that holds no model, or a config that GPT cannot express.
    """
    from ..model.config import GPTConfig
    from ..model.formats import folder
    from ..model.presets import ONE_HEAD, described, names

    if os.path.exists(model):
        return folder.read_config(model_folder(model))
    if model.lower() in names():
        return GPTConfig.preset(model)
    near = difflib.get_close_matches(model.lower(), names(), n=1)
    if model.lower() == ONE_HEAD:
        raise FileNotFoundError(f"{model}: a preset of OneHeadLM, which is no GPT; take {described()}")
    meant = f"did you mean {near[0]!r}? Give" if near and not os.path.dirname(model) else "give"
    raise FileNotFoundError(
        f"{model}: no such folder, and no preset; {meant} a run, a model's folder, or one of {described()}"
    )


def open_model(
    path: str, device: torch.device, tokenizer: str | None, *, verify: bool = False, **overrides: Any
) -> tuple[GPT | OneHeadLM, Tokenizer]:
    """The model in a run's or a model's folder, ready on `device`, and its tokenizer. `verify`: hash every file of a
    training checkpoint, and not only those that are read.

    Raises:
        ValueError: the folder holds no tokenizer and none is named, or its vocabulary is larger than the model's.
        SettingError: a tokenizer is named, and the folder holds another one.
    """
    from .. import interop
    from ..base import checksums
    from ..data.tokenizer import Tokenizer

    folder = model_folder(path)
    with pointing_back(folder):
        checksums.check(folder, whole=verify)
    beside = folder if folder.is_dir() else folder.parent
    own = Tokenizer.from_pretrained(beside) if os.path.lexists(beside / "fastgpt_tokenizer.json") else None
    found = own if tokenizer is None else Tokenizer.load(tokenizer)
    if own is not None and found != own:
        need = f"is not the tokenizer that {path} was trained with, {own!r}, but {found!r}; leave the option out"
        raise SettingError("open_model", "tokenizer", tokenizer, need)
    with pointing_back(folder):
        model = interop.open_model(folder, device=device, **overrides)
    if found is None and 50257 <= model.config.vocab_size <= 50304:  # GPT-2's, perhaps padded to a multiple of 64
        found = Tokenizer.named("gpt2")
    if found is None:
        raise ValueError(f"{folder}: holds no tokenizer; name the one that the model was trained with: --tokenizer")
    if found.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the model has {model.config.vocab_size} token ids, tokenizer {found.name!r} has "
            f"{found.vocab_size}; name the tokenizer that the model was trained with"
        )
    return model, found


@contextlib.contextmanager
def pointing_back(folder: Path) -> Iterator[None]:
    """Errors about a run's damaged checkpoint name the one before it."""
    from ..train.checkpoint import all_checkpoints

    try:
        yield
    except ValueError as error:
        found = all_checkpoints(folder.parent)
        before = found[: found.index(folder)] if folder in found else []
        if not before or isinstance(error, SettingError):
            raise
        raise ValueError(f"{error}; the checkpoint before it is {before[-1]}") from error


def read_prompt(prompt: str | None) -> str:
    """The prompt given, or what stands on stdin ("-", or none given and stdin is not a terminal); else empty.

    Raises:
        ValueError: what stands on stdin is not UTF-8.
    """
    import sys

    if prompt != "-" and (prompt is not None or sys.stdin is None or sys.stdin.isatty()):
        return prompt or ""
    if sys.stdin is None:
        raise ValueError("PROMPT -: there is no stdin to read it from; write the prompt in its place")
    try:
        stream = getattr(sys.stdin, "buffer", None)  # its bytes: the locale's encoding may be another
        return sys.stdin.read() if stream is None else stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the prompt on stdin is not UTF-8 text ({error}); convert it first, e.g. with iconv"
        ) from None


def check_at_least(command: str, least: int, **options: int | None) -> None:
    """Raise SettingError for the first of `options` that is given and smaller than `least`."""
    for name, value in options.items():
        if value is not None:
            check_integer(command, name, value, least=least)


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], bool]]:
    """A bar on stderr, if that is a terminal. Calling it moves it by one and returns False."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..base.progress import has_bars

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not has_bars(console)) as bar:
        task = bar.add_task(what, total=total)

        def step() -> bool:
            bar.advance(task)
            return False

        yield step
