"""What the commands that show a model's steps have in common: the model trained here, and the text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..base.settings import SettingError, check_integer, check_number
from ..pages.figures import duration

if TYPE_CHECKING:
    from ..data.tokenizer import Tokenizer
    from ..study.small_models import Model, Small

TEXT = "To be, or not to be, that is the question:"
SECONDS = 10.0


def check_options(command: str, model: str | None, tokenizer: str | None, **typed: object) -> None:
    """Raise SettingError for what says how to train where a model is given, and for a tokenizer where none is."""
    if model is None and tokenizer is not None:
        raise SettingError(command, "tokenizer", tokenizer, "belongs to --model; give one, or leave it out")
    for name, value in typed.items():
        if model is not None and value is not None and value is not False:
            raise SettingError(
                command, name, value, f"says how to train, and --model {model} is trained; leave one out"
            )


def train_here(
    command: str, what: str, make: Callable[[int], Model], *, untrained: bool, steps: int | None,
    seconds: float | None, seed: int | None, lr: float = 1e-2,
) -> Small:  # fmt: skip
    """A small model, trained on the embedded Shakespeare for so long, with a bar on a terminal.

    Raises:
        SettingError: settings that exclude each other, or cannot be. KeyboardInterrupt: it says that nothing is kept.
    """
    from ..study.small_models import trained
    from ._inputs import progress_bar

    if untrained and (steps is not None or seconds is not None):
        name, value = ("steps", steps) if steps is not None else ("seconds", seconds)
        raise SettingError(command, name, value, "cannot be given beside --untrained; leave one out")
    if steps is not None and seconds is not None:
        raise SettingError(command, "seconds", seconds, "cannot be given beside --steps; leave one out")
    if steps is not None:
        check_integer(command, "steps", steps, least=1)
    seconds = SECONDS if seconds is None else check_number(command, "seconds", seconds, above=0)
    seed = 0 if seed is None else check_integer(command, "seed", seed, least=0, most=2**64 - 1)
    long = "no steps" if untrained else f"{steps} steps" if steps is not None else f"about {seconds:g} s"
    print(f"training {what} on the embedded Shakespeare: {long}, seed {seed}", file=sys.stderr, flush=True)
    small = trained(
        make, seconds=seconds, steps=0 if untrained else steps, seed=seed, lr=lr,
        watch=lambda count: progress_bar("training", count),
    )  # fmt: skip
    if small.loss is not None:
        told = f"{small.steps} steps in {small.seconds:.1f} s: loss {small.loss:.2f} nats per token"
        print(told, file=sys.stderr, flush=True)
    return small


def token_ids(command: str, text: str | None, tokenizer: Tokenizer, max_len: int) -> list[int]:
    """The tokens of `text`, of stdin ("-"), or, if there is none, of a line of Shakespeare.

    Raises:
        SettingError: no token, or more than max_len.
    """
    from ._inputs import read_prompt

    text = TEXT if text is None else read_prompt(text)
    ids = tokenizer.encode(text)
    if not ids:
        need = f'is empty; give some text, e.g. fastgpt {command} "To be, or not to be"'
        raise SettingError(command, "prompt", text, need)
    if len(ids) > max_len:
        raise SettingError(
            command, "prompt", text, f"has {len(ids)} tokens, the model's max_len is {max_len}; shorten it"
        )
    return ids


def about(small: Small) -> str:
    """A sentence on what the model has learned."""
    if small.loss is None:
        return "The model is as it was made, from random numbers."
    return f"The model learned Shakespeare for {small.steps} steps: loss {small.loss:.2f} nats per token."


def provenance(small: Small, seed: int | None) -> list[tuple[str, object]]:
    """Rows on how a small model came to be."""
    rows: list[tuple[str, object]] = [("seed", seed or 0), ("steps", small.steps)]
    if small.loss is None:
        return rows
    return [
        *rows, ("tokens seen", f"{small.tokens:,}"), ("training time", duration(small.seconds)),
        ("loss, last tenth of the steps", f"{small.loss:.3f} nats per token"),
    ]  # fmt: skip
