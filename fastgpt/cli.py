"""`fastgpt <command>`: finds the command's module, fills its dataclass from the options, runs it."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from .settings import SettingError, SettingTypeError

# name -> what `fastgpt --help` says about it; the module is fastgpt.commands.<name>
COMMANDS = {
    "demo": "train a small GPT on Shakespeare, sample from it, check the kernels, write a report",
    "prepare": "tokenize texts into memory-mapped shards",
    "train": "train a GPT",
    "sample": "continue a prompt",
    "eval": "loss, perplexity and bits per byte of a model on a text",
    "inspect": "draw a model's attention maps of a prompt",
    "plan": "count the memory of a training step, and the largest batch that fits a GPU",
    "bench": "time training steps with each implementation, side by side",
    "verify": "compare every Triton kernel with the reference in float64",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status: 0, 1 (it ran and failed), 2 (wrong options or input)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from . import __version__

        print(f"fastgpt {__version__}")
        return 0
    name, options = argv[0], argv[1:]
    if name not in COMMANDS:
        print(f"fastgpt: error: unknown command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        from .commands import _options

        command_class = importlib.import_module(f".commands.{name.replace('-', '_')}", __package__).Command
        return _options.parse(command_class, options, prog=f"fastgpt {name}").run() or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `fastgpt sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, LookupError, ImportError) as error:
        if os.environ.get("FASTGPT_DEBUG"):
            raise
        if isinstance(error, TypeError) and not isinstance(error, SettingTypeError):
            raise
        print(f"fastgpt {name}: error: {as_typed(error, command_class)}", file=sys.stderr)
        print("(FASTGPT_DEBUG=1 shows where)", file=sys.stderr)
        return 2


def as_typed(error: BaseException, command_class: type) -> str:
    """The error's message; of a setting that is an option of the command, with the option's name."""
    from .commands._options import option_names

    if isinstance(error, (SettingError, SettingTypeError)) and error.name in option_names(command_class):
        return f"--{error.name.replace('_', '-')} {error.value} {error.need}"
    return str(error)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: fastgpt <command> [options]", "", *lines, "", "fastgpt <command> --help shows every option."]
    )


if __name__ == "__main__":
    raise SystemExit(main())
