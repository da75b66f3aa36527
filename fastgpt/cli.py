"""`fastgpt <command>`: finds the command's module, fills its dataclass from the options, runs it."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
import sys
import traceback
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

# A user's mistake, or something about this machine: one line that says what to do. All else is a mistake of ours.
_ONE_LINE = (
    ValueError, IndexError, OSError, RuntimeError, ImportError, MemoryError, OverflowError, FloatingPointError,
    SettingTypeError,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; as a function of `argv`, it leaves the process's signal handlers alone.

    Returns:
        The exit status: 0, 1 (it ran and failed, or a bug of ours), 2 (wrong options or input), 130 and 143 (stopped by
        Ctrl-C or SIGTERM).
    """
    from .commands import _signals, _terminal

    is_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    _terminal.adapt()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    name = argv[0] if argv and argv[0] in COMMANDS else None
    signals = _signals.Signals(f"fastgpt {name}" if name else "fastgpt")
    try:
        with signals if is_process else contextlib.nullcontext():
            status = _answer(argv) if name is None else _run(name, argv[1:], signals)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except KeyboardInterrupt as stop:
        with contextlib.suppress(BrokenPipeError):
            print(signals.message(stop), file=sys.stderr)
        return signals.status
    except BrokenPipeError:  # `fastgpt sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _answer(argv: list[str]) -> int:
    """What needs no command: help, the version, a name that is none."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        from . import __version__

        print(f"fastgpt {__version__}")
        return 0
    nearest = difflib.get_close_matches(argv[0], COMMANDS, n=1)
    what = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(COMMANDS)}"
    return _fail("fastgpt", f"unknown command {argv[0]!r}; {what}")


def _run(name: str, options: list[str], signals) -> int:
    prog = f"fastgpt {name}"
    command_class = None
    try:
        from .commands import _options

        command_class = importlib.import_module(f".commands.{name}", __package__).Command
        command = _options.parse(command_class, options, prog=prog)
        import torch  # noqa: F401 (every command needs it, and so it is loaded while a signal can still end all quietly)

        signals.start_work()
        return command.run() or 0
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("FASTGPT_DEBUG"):
            raise
        if not isinstance(error, _ONE_LINE) or isinstance(error, RecursionError):
            traceback.print_exc()
            print(f"{prog}: this is a bug of fastgpt; please report it, with the lines above", file=sys.stderr)
            return 1
        return _fail(prog, as_typed(error, command_class))


def _fail(prog: str, message: str) -> int:
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
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
