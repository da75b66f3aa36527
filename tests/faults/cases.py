"""What is run, and every way in which it is disturbed."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .shim import EVER, KINDS, Plan

Calls = list[tuple[str, str]]

# ---- what is run -----------------------------------------------------------------------------------------------

_MODEL = "--n-layers 1 --n-heads 2 --d-model 16 --d-ff 32 --max-len 16 --dropout 0.1"
_TRAIN = (
    f"train --data tokens --tokenizer bytes.tiktoken {_MODEL} --batch-size 2 --steps 6 --save-every 2 --eval-every 3 "
    "--keep 2 --val-fraction 0.1 --device cpu --threads 1 --log-every 0"
)
_QUIET = f"{_TRAIN} --no-tensorboard"
_PREPARE = "prepare text.txt --tokenizer bytes.tiktoken --shard-tokens 1000"


@dataclass(frozen=True)
class Work:
    """A command line of fastgpt, or the name of a function below; until a moment that ends it, if any (see `Case`)."""

    words: str
    moment: tuple[str, int, tuple[str, ...]] | None = None

    def run(self) -> int | None:
        if self.words in FUNCTIONS:
            return _in_one_line(FUNCTIONS[self.words])
        import sys

        from fastgpt.cli import main

        sys.argv = ["fastgpt", *self.words.split()]
        return main()


@dataclass(frozen=True)
class Scenario:
    """work      what is disturbed
    result    the folder that it writes, which holds what it says, whole, or what was there before
    first     what is done before, in a new folder with texts in it
    repeat    what an undisturbed second call is, where the result is there already
    part      only calls about paths that contain this are counted
    """

    name: str
    work: Work
    result: str
    first: tuple[Work, ...] = ()
    repeat: Work | None = None
    part: str = ""

    def run(self) -> int | None:
        return self.work.run()

    @property
    def trains(self) -> bool:
        return self.work.words.startswith("train")


_STEP_6 = ("fastgpt.train.trainer:Trainer.begin_step", 6, ("SIGKILL",))

_OUT = "--out tokens"
_OLDER = "prepare older.txt --tokenizer bytes.tiktoken --shard-tokens 1000"
_PREPARED = (Work(f"{_PREPARE} {_OUT}"),)
_REPREPARE = Work(f"{_PREPARE} {_OUT} --overwrite")
_RUN = "runs/run"

_ALL = (
    Scenario("prepare", Work(f"{_PREPARE} {_OUT}"), "tokens", repeat=_REPREPARE),
    Scenario("prepare --overwrite", _REPREPARE, "tokens", first=(Work(f"{_OLDER} {_OUT}"),)),
    Scenario("train", Work(_QUIET), _RUN, first=_PREPARED),
    Scenario("train --tensorboard", Work(_TRAIN), _RUN, first=_PREPARED, part="/tensorboard"),
    Scenario("train --resume", Work("train --resume"), _RUN, first=(*_PREPARED, Work(_QUIET, _STEP_6))),
    Scenario("train --overwrite", Work(f"{_QUIET} --overwrite"), _RUN, first=(*_PREPARED, Work(f"{_QUIET} --seed 5"))),
    Scenario("save_pretrained", Work("save_pretrained"), "model", first=(Work("older model"),)),
    Scenario("Tokenizer.save", Work("Tokenizer.save"), "tokenizer", first=(Work("older tokenizer"),)),
    Scenario("token_cache", Work("token_cache"), "cache"),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}


def write_texts(folder: Path) -> None:
    import base64

    ranks = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256))
    (folder / "bytes.tiktoken").write_bytes(ranks)
    for name, word in (("text.txt", "words"), ("older.txt", "letters")):
        lines = (f"line {n} of a text that is no poem, {n * n} {word} long\n" for n in range(60))
        (folder / name).write_text("".join(lines))


def _model(seed: int) -> Any:
    import torch

    from fastgpt import GPT, GPTConfig

    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=257, max_len=16, n_layers=1, n_heads=1 + seed, d_model=16))  # of the same shapes


def _tokenizer(folder: str = ".", reverse: bool = False) -> Any:
    from fastgpt.data.tokenizer import Tokenizer

    ranks = Path(folder, "bytes.tiktoken").read_bytes()
    if reverse:
        words = [line.split()[0] for line in ranks.splitlines()][::-1]
        ranks = b"".join(b"%s %d\n" % (word, n) for n, word in enumerate(words))
    return Tokenizer("bytes", ranks)


def _token_cache() -> None:
    from fastgpt.data import token_cache

    print(len(token_cache.tokenized(["text.txt"], _tokenizer(), progress=False)))


FUNCTIONS: dict[str, Callable[[], None]] = {
    "older model": lambda: _model(0).save_pretrained("model"),
    "save_pretrained": lambda: _model(1).save_pretrained("model"),
    "older tokenizer": lambda: _tokenizer(reverse=True).save("tokenizer"),
    "Tokenizer.save": lambda: _tokenizer().save("tokenizer"),
    "token_cache": _token_cache,
}


def _in_one_line(function: Callable[[], None]) -> int:
    """What a script does that catches the errors that the function documents."""
    import signal
    import sys

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        function()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        return 128 + stop.args[0]
    return 0


# ---- how it is disturbed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One disturbance of one scenario: by `plans` (see shim.py), at a `moment` (function, which of its calls, signals
    sent before it), or after `seconds` by a signal. `at`: words for where, if no plan says it."""

    scenario: str
    plans: tuple[Plan, ...] = ()
    moment: tuple[str, int, tuple[str, ...]] | None = None
    seconds: tuple[float, str] | None = None
    at: str = ""

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Case:
        plans = tuple(Plan(**{**plan, "kinds": tuple(plan["kinds"])}) for plan in fields["plans"])
        moment = fields["moment"] and (*fields["moment"][:2], tuple(fields["moment"][2]))
        return Case(**{**fields, "plans": plans, "moment": moment})

    @property
    def name(self) -> str:
        if self.moment:
            how = f"{'+'.join(self.moment[2])} before {self.moment[0].rpartition(':')[2]} {self.moment[1]}"
        elif self.seconds:
            how = f"{self.seconds[1]} after {self.seconds[0]:.4f} s"
        else:
            how = ", ".join(plan.words for plan in self.plans)
        return f"{self.scenario}: {how}"

    @property
    def signals(self) -> tuple[str, ...]:
        if self.moment:
            return self.moment[2]
        return (self.seconds[1],) if self.seconds else tuple(plan.signal for plan in self.plans if plan.signal)

    @property
    def errors(self) -> set[str]:
        return {plan.error for plan in self.plans if plan.error}

    @property
    def row(self) -> tuple[str, str]:
        """(kind of call, what is done), for the table."""
        if self.moment or self.seconds:
            kind, done = "moment" if self.moment else "time", list(self.signals)
        else:
            kinds = {plan.kinds for plan in self.plans}
            kind = "any" if any(len(some) > 1 for some in kinds) else self.plans[0].kinds[0]
            done = [word for plan in self.plans for word in plan.does]
        twice = " twice" if len(done) > len(set(done)) else ""
        on = ", from then on" if any(plan.last == EVER for plan in self.plans) else ""
        return kind, " then ".join(dict.fromkeys(done)) + twice + on


_ERRORS = {
    "open": ("ENOSPC", "EACCES"), "write": ("ENOSPC", "EIO"), "fsync": ("EIO", "ENOSPC"), "rename": ("EIO", "EPERM"),
    "mkdir": ("ENOSPC", "EACCES"), "unlink": ("EPERM", "EIO"), "rmdir": ("EPERM", "EIO"),
    "truncate": ("ENOSPC", "EIO"), "chmod": ("EPERM",), "link": ("EPERM", "ENOSPC"),
}  # fmt: skip
_GROWS = ("open", "write", "fsync", "mkdir", "truncate", "link")  # what a full disk refuses
_SHRINKS = ("unlink", "rmdir", "rename")  # what a folder that may not be written refuses

# (function, which calls of it): the phases of a run of which the calls about files say nothing.
MOMENTS = (
    ("fastgpt.commands._inputs:open_data", (1,)),
    ("fastgpt.train.trainer:Trainer.fit", (1,)),
    ("fastgpt.train.run_folder:write_settings", (1,)),
    ("fastgpt.train.trainer:Trainer.begin_step", (1, 2, 3, 6)),
    ("torch.optim:AdamW.step", (1, 2, 6)),
    ("fastgpt.train.checkpoint:save", (1, 3)),
    ("fastgpt.train.trainer:evaluate", (1, 2)),
    ("torch.nn.functional:cross_entropy", (1, 4, 5, 6, 12)),
    ("fastgpt.train.checkpoint:prune", (1, 3)),
    ("fastgpt.train.metrics:MetricsLog.close", (1,)),
    ("fastgpt.train.run_report:page_of", (1,)),
)


def faults(scenario: str, calls: Calls) -> Iterator[Case]:
    """Each call of a run failing, alone and from then on, and writes taking half."""
    seen = dict.fromkeys(KINDS, 0)
    for place, (kind, path) in enumerate(calls):
        seen[kind] += 1
        n, errors = seen[kind], _ERRORS[kind]
        inside = kind == "write" and ("write", path) == calls[place - 1] == (*calls, None)[place + 1]
        if inside:  # of a file that is written in many pieces
            yield Case(scenario, (Plan((kind,), n, error=errors[n % 2]),))
            continue
        for error in errors:
            yield Case(scenario, (Plan((kind,), n, error=error),))
        if kind == "write":
            yield Case(scenario, (Plan((kind,), n, half=True),))
            before = sum(k in _GROWS for k, _ in calls[: place + 1])
            yield Case(scenario, (Plan((kind,), n, half=True), Plan(_GROWS, before + 1, EVER, error="ENOSPC")))
    for kinds, error in ((_GROWS, "ENOSPC"), (KINDS, "EIO"), (_SHRINKS, "EPERM")):
        count = sum(kind in kinds for kind, _ in calls)
        for n in range(1, count + 1, max(2, count // 60)):
            yield Case(scenario, (Plan(kinds, n, EVER, error=error),))


def kills(scenario: str, calls: Calls, count: int, seed: int) -> Iterator[Case]:
    """kill -9 before every rename and deletion, and at `count` seeded moments: before or after a call, in the middle of
    a write, by time."""
    for kind in _SHRINKS:
        for n in range(1, sum(k == kind for k, _ in calls) + 1):
            yield Case(scenario, (Plan((kind,), n, signal="SIGKILL"),))
    draw = random.Random(f"{scenario} {seed}")
    writes = sum(kind == "write" for kind, _ in calls)
    for number in range(count):
        how = number % 4
        if how < 2:
            yield Case(scenario, (Plan(KINDS, draw.randint(1, len(calls)), signal="SIGKILL", after=how == 1),))
        elif how == 2:
            yield Case(scenario, (Plan(("write",), draw.randint(1, writes), half=True, signal="SIGKILL", after=True),))
        else:
            yield Case(scenario, seconds=(draw.uniform(0.005, 0.2), "SIGKILL"), at="any")


def stops(scenario: str, calls: Calls, count: int, seed: int) -> Iterator[Case]:
    """SIGTERM and SIGINT, once and twice in a row, at `count` seeded calls."""
    draw = random.Random(f"{scenario} {seed}")
    for number in range(count):
        at = draw.randint(1, len(calls))
        for name in ("SIGTERM", "SIGINT"):
            first = Plan(KINDS, at, signal=name, after=number % 2 == 1)
            yield Case(scenario, (first,))
            second = dataclasses.replace(first, first=at + draw.choice((1, 2, 5, 20)))
            yield Case(scenario, (first, second))


def moments(scenario: str) -> Iterator[Case]:
    """SIGTERM, SIGINT, twice, and kill -9 at each of MOMENTS."""
    for function, which in MOMENTS:
        for n in which:
            for names in (("SIGTERM",), ("SIGINT",), ("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGKILL",)):
                yield Case(scenario, moment=(function, n, names), at=function.rpartition(":")[2])


def every_case(recorded: Callable[[str], Calls], seed: int) -> list[Case]:
    """All that `make faults` tries; `recorded` says what calls an undisturbed run of a scenario makes."""
    cases: list[Case] = []
    for name, scenario in SCENARIOS.items():
        calls = recorded(name)
        cases += itertools.islice(faults(name, calls), 0, None, 3 if scenario.part else 1)
        cases += kills(name, calls, 60 if scenario.trains else 12, seed)
        cases += stops(name, calls, 16 if scenario.trains else 6, seed)
    return cases + list(moments("train"))


# ---- where it struck -------------------------------------------------------------------------------------------

_PHASES = (
    (r"/runs/run/tensorboard", "TensorBoard"),
    (r"/runs/run/settings\.json|/runs/run/\.[^/]*/settings\.json", "settings"),
    (r"/runs/run/metrics\.jsonl|/runs/run/\.[^/]*/metrics\.jsonl", "metrics"),
    (r"/runs/run/report\.html|/runs/run/\.[^/]*/report\.html", "report"),
    (r"/checkpoints/\.", "save"),
    (r"/checkpoints/step-", "checkpoints"),
    (r"/runs/run", "run folder"),
    (r"/runs", "run folder"),
)


def phase_of(kind: str, path: str) -> str:
    """What the run was doing at this call."""
    if "/step-" in path and kind in ("unlink", "rmdir"):
        return "prune"
    found = next((phase for pattern, phase in _PHASES if re.search(pattern, path)), None)
    return found or (re.sub(r"^/(\.fastgpt-.*)?|/.*", "", path) or "folder")
