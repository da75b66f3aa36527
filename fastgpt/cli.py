"""`fastgpt <command>`: finds the command's module, fills its dataclass from the options, runs it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .base.settings import nearest, shown
from .commands import _terminal
from .commands._signals import Signals

# name -> what `fastgpt --help` says about it; the module is fastgpt.commands.<name>, of "study depth" study_depth
COMMANDS = {
    "demo": "train a small GPT, sample from it, write a report",
    "prepare": "tokenize texts into memory-mapped shards",
    "train": "train a GPT",
    "sample": "continue a prompt",
    "eval": "loss, perplexity and bits per byte of a model on a text",
    "export": "write a checkpoint's model for transformers or nanoGPT",
    "report": "a run's losses and speed, or several runs', as a page",
    "inspect": "draw a model's attention maps of a prompt",
    "show one-head": "draw what a model of one head computes, step by step",
    "show block": "draw what one block of a GPT does to a text, step by step",
    "show ladder": "attention from three loops to the shipped kernel, measured",
    "study depth": "train 2 to 12 layers, and judge what papers claim",
    "study smoothing": "how alike tokens become, layer by layer",
    "study cost": "how memory and time grow with layers, tokens, width",
    "plan": "memory of a training step, the largest batch on a GPU",
    "bench": "time training steps with each implementation, side by side",
    "verify": "compare every Triton kernel with the reference in float64",
}

EXAMPLES = (
    "examples:",
    "  fastgpt demo                                   everything once, in minutes",
    "  fastgpt train --data books/ --name mine        writes runs/mine",
    "  fastgpt train --name mine --resume             goes on where it stopped",
    '  fastgpt sample runs/mine "To be, or not to be"',
    "  fastgpt eval runs/mine --data other.txt",
)

_GROUPS = {name.partition(" ")[0] for name in COMMANDS if " " in name}

NOTES = (
    "fastgpt <command> --help shows every option; of one given twice the last counts.",
    "Exit status: 0 done, 1 failed, 2 wrong options, 128 + a signal (130: Ctrl-C).",
    "FASTGPT_DEBUG=1 shows where in the code an error arose.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; as a function of `argv`, it leaves the process's signal handlers alone.

    Returns:
        The exit status: 0, 1 (it ran and failed, or a bug of ours), 2 (wrong options or input), 130, 143 and 129
        (stopped by Ctrl-C, SIGTERM or SIGHUP).
    """
    is_process = argv is None
    argv = _help_first(_joined(list(sys.argv[1:] if argv is None else argv)))
    if _is_idle_rank() and not (argv[:1] == ["train"] and {"-h", "--help"}.isdisjoint(argv)):
        return 0
    _terminal.adapt()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    name = argv[0] if argv and argv[0] in COMMANDS else None
    signals = Signals(f"fastgpt {name}" if name else "fastgpt")
    status = 0
    try:
        with signals if is_process else contextlib.nullcontext():
            status = _answer(argv) if name is None else _run(name, argv[1:], signals)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except KeyboardInterrupt as stop:
        if not _speaks(stop):
            return signals.status
        with contextlib.suppress(OSError):  # a closed pipe, or a terminal that is gone
            print(signals.message(stop), file=sys.stderr)
        _drop_output()
        return signals.status
    except BrokenPipeError:  # `fastgpt sample ... | head`
        _drop_output()
        return status
    except OSError as error:  # stdout goes to a disk that is full
        if os.environ.get("FASTGPT_DEBUG"):
            raise
        from .base.files import reason

        if not status:
            with contextlib.suppress(OSError):
                status = _fail(signals.prog, f"stdout: {reason(error).lower()}; write elsewhere")
        _drop_output()
        return status or 2


def _is_idle_rank() -> bool:
    """Whether this is one of torchrun's processes, and not the first: all but training is one process's work."""
    rank = os.environ.get("RANK", "")
    return bool(os.environ.get("TORCHELASTIC_RUN_ID")) and rank.isdecimal() and int(rank) > 0


def _drop_output() -> None:
    """What cannot be written of what stdout and stderr still hold goes nowhere: Python would try again as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _answer(argv: list[str]) -> int:
    """What needs no command: help, the version, a name that is none."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in _GROUPS:
        return _answer_group(argv[0], argv[1:])
    if argv[0] in ("-V", "--version"):
        from ._version import __version__

        print(f"fastgpt {__version__}")
        return 0
    word = shown(argv[0])
    if argv[0].startswith("-"):
        return _fail("fastgpt", f"{word} before any command; write fastgpt <command> {word}, see fastgpt --help")
    what = nearest(argv[0], COMMANDS) or f"choose from {', '.join(COMMANDS)}"
    return _fail("fastgpt", f"unknown command {argv[0]!r}; {what}")


def _answer_group(group: str, words: list[str]) -> int:
    """`fastgpt study`, and `fastgpt study <what is none of its commands>`."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(group))
        return 0
    names = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{group} ")]
    if words[0].startswith("-"):
        need = f"{shown(words[0])} before any command; write fastgpt {group} <{'|'.join(names)}> {shown(words[0])}"
        return _fail(f"fastgpt {group}", need)
    what = nearest(words[0], names) or f"choose from {', '.join(names)}"
    return _fail(f"fastgpt {group}", f"unknown command {words[0]!r}; {what}")


def _joined(argv: list[str]) -> list[str]:
    """The words of a command's name, `study depth`, as one; also behind a `help` or `--help`."""
    for start in range(min(2, len(argv) - 1)):
        name = " ".join(argv[start : start + 2])
        if name in COMMANDS and argv[:start] in ([], ["help"], ["-h"], ["--help"]):
            return [*argv[:start], name, *argv[start + 2 :]]
    return argv


def _run(name: str, words: list[str], signals: Signals) -> int:
    prog = f"fastgpt {name}"
    given = None
    try:
        from .commands import _options, _read

        command_class = importlib.import_module(f".commands.{module_of(name)}", __package__).Command
        given = _options.Given(command_class, prog, _options.options_of(command_class))
        _read.read(given, words)
        command = given.make()
        import torch  # noqa: F401 (every command needs it; it is loaded while a signal can still end all quietly)

        signals.start_work()
        return command.run() or 0
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("FASTGPT_DEBUG"):
            raise
        from .commands import _mistakes

        if not _mistakes.is_ours(error):
            return _fail(prog, _mistakes.describe(error, given)) if _speaks(error) else 2
        traceback.print_exc()
        print(f"{prog}: this is a bug of fastgpt; please report it, with the lines above", file=sys.stderr)
        return 1


def _help_first(argv: list[str]) -> list[str]:
    """`help train`, `--help train` and `train help` as `train --help`."""
    if argv[:1] in (["help"], ["-h"], ["--help"]) and argv[1:2] and argv[1] != "help":
        return [argv[1], "--help"] if argv[1] in COMMANDS else argv[1:]
    if argv[1:] == ["help"] and argv[0] in COMMANDS and not Path("help").exists():
        return [argv[0], "--help"]
    return argv


def _speaks(error: BaseException) -> bool:
    """Whether this process tells of it: of the ranks of a job (torchrun) one does, who has learnt it of the others."""
    is_silent = getattr(error, "is_silent", None)  # of `fastgpt.parallel.launch`
    local_rank = os.environ.get("LOCAL_RANK", "")
    return not (local_rank.isdecimal() and int(local_rank) > 0) if is_silent is None else not is_silent


def _fail(prog: str, message: str) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2


def module_of(name: str) -> str:
    """The module of fastgpt.commands that has this command."""
    return name.replace(" ", "_").replace("-", "_")


def usage(group: str = "") -> str:
    """What `fastgpt --help` prints; of a group, what `fastgpt study --help` does."""
    chosen = {name: what for name, what in COMMANDS.items() if name.startswith(f"{group} " if group else "")}
    width = max(map(len, chosen))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in chosen.items()]
    if group:
        return "\n".join([f"usage: fastgpt {group} <command> [options]", "", *lines, "", NOTES[0]])
    return "\n".join(["usage: fastgpt <command> [options]", "", *lines, "", *EXAMPLES, "", *NOTES])


if __name__ == "__main__":
    raise SystemExit(main())
