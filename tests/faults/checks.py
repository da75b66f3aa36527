"""What must hold after a disturbed run, and after the undisturbed one that follows it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from fastgpt import GPT
from fastgpt.base import files
from fastgpt.data import TokenDataset
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.train import checkpoint, run_folder

from .cases import Case, Scenario, Work
from .shim import EVER


@dataclass(frozen=True)
class Done:
    """Exit status (-N: ended by signal N), stdout, stderr, the calls that were counted."""

    code: int
    out: str
    err: str
    calls: list[str]


_UNFINISHED = re.compile(r"/\.(writing|fastgpt|tmp)|-replaced")
_NO_SPACE = re.compile(r"no space|free (disk|some) space|free some|GB free|disk is full", re.I)
TIMES = ("tokens_per_second", "mfu", "memory_bytes")  # of a line of metrics: what no two runs have in common
_STATUS = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}


class Look:
    """At one case: `before` and `after` are the scenario's folder before and after an undisturbed run."""

    def __init__(self, scenario: Scenario, case: Case, done: Done, before: Path, here: Path, after: Path) -> None:
        self.scenario, self.case, self.done = scenario, case, done
        self.before, self.here, self.after = before, here, after
        self.result = here / scenario.result
        self.root = self.result / "checkpoints"
        lasting = any("rename" in plan.kinds and plan.last == EVER for plan in case.plans)
        self.settled = self._settled() if scenario.trains and (done.code == -9 or lasting) else self.result

    def _settled(self) -> Path:
        """A copy of the run as the next command finds it."""
        copy = self.here.with_name("settled") / self.result.name
        if self.result.exists():
            shutil.copytree(self.result, copy)
            run_folder.settle(copy)
        return copy

    # ---- after the disturbed run ---------------------------------------------------------------------------------

    def at_the_end(self) -> list[str]:
        found = [] if self._reached() else ["the fault was not reached"]
        found += self._status() + self._words()
        found += self._run() if self.scenario.trains else self._whole()
        # A second signal may come while the first one's debris is removed.
        if self.done.code != -9 and len(self.case.signals) < 2 and not self._hinders_cleaning():
            found += [f"left behind: {name}" for name in names(self.here) if _UNFINISHED.search(f"/{name}")]
        return found

    def _reached(self) -> bool:
        by_call = any(call.startswith("*") for call in self.done.calls)
        return by_call or self.case.seconds is not None or self.case.moment is not None

    def _hinders_cleaning(self) -> bool:
        return any({"unlink", "rmdir", "rename"} & set(plan.kinds) for plan in self.case.plans if plan.error)

    def _status(self) -> list[str]:
        code, signals = self.done.code, self.case.signals
        may = {0} | {_STATUS[name] for name in signals} if signals else {0, 1, 2}
        if signals and self.case.seconds is None:
            may.discard(0 if "SIGKILL" in signals else None)
        return [] if code in may else [f"exit status {code}"]

    def _words(self) -> list[str]:
        err = self.done.err
        found = ["a traceback"] if "Traceback" in err else []
        lines = err.splitlines()
        commands = self.scenario.work.words.startswith(("train", "prepare"))
        if (
            commands
            and self.done.code in (1, 2)
            and [line for line in lines if line.startswith("fastgpt ")] != lines[-1:]
        ):
            found.append("the error is not one line, the last")
        if commands and self.done.code in (130, 143) and len(lines) != 1:
            found.append("what is said of the signal is not one line")
        if self.case.errors and self.done.code and self._is_named(err) is False:
            found.append("the error does not name the file")
        if _NO_SPACE.search(err) and "ENOSPC" not in self.case.errors:
            found.append("says that space is short, which is not so")
        found += [f"says that {path} is kept, which is not so" for path in self._said_kept(err) if not _is_whole(path)]
        if "nothing is saved" in err and checkpoint.latest(self.root) is not None:
            found.append("says that nothing is saved, and something is")
        return found

    def _is_named(self, err: str) -> bool:
        """Whether the path of the first call that failed, as far as it lasts, is in the message."""
        struck = next((call.split(" ", 1)[1] for call in self.done.calls if call.startswith("*")), None)
        if struck is None:
            return True
        named = re.search(r"step-\d+|metrics\.jsonl|settings\.json|tensorboard", struck)
        return (named[0] if named else Path(self.scenario.result).name) in err or "step-" in err

    def _said_kept(self, err: str) -> list[Path]:
        return [self.settled / path for path in re.findall(r"(checkpoints/step-\d+) is kept", err)]

    def _run(self) -> list[str]:
        """Every checkpoint is whole; the run that was there stays until there is a new one."""
        found = []
        checkpoints = checkpoint.all_checkpoints(self.settled / "checkpoints")
        for path in checkpoints:
            try:
                checkpoint.verify(path)
            except checkpoint.CheckpointError as error:
                found.append(f"not whole: {error}")
        old = self.before / self.scenario.result
        had = checkpoint.latest(old / "checkpoints")
        if had is not None and not checkpoints:
            found.append("all checkpoints are gone")
        elif had is not None and self.scenario.name == "train --resume" and checkpoint.step_of(checkpoints[-1]) < 4:
            found.append("the newest checkpoint is gone")
        if self.scenario.name == "train --overwrite" and checkpoints and not self._is_new():
            is_left = contents(self.settled) == contents(old)
            found += [] if is_left else ["the old run is changed before the new one has a checkpoint"]
        if self.result.is_dir():
            try:
                with files.locked(self.result):
                    pass
            except OSError as error:
                found.append(f"the lock is not free: {error}")
        return found + ([] if self.done.code else self._finished("after exit status 0: "))

    def _is_new(self) -> bool:
        """Whether the newest checkpoint is of the disturbed run, not of the one that it overwrites."""
        newest = checkpoint.latest(self.settled / "checkpoints")
        if newest is None or self.scenario.name != "train --overwrite":
            return newest is not None
        state = json.loads((newest / "training.json").read_text())
        return state["settings"]["seed"] == 0

    def _finished(self, when: str) -> list[str]:
        """The run is that of the reference: the last checkpoint's bits, and the lines of metrics.jsonl."""
        reference = self.after / self.scenario.result
        name = checkpoint.latest(reference / "checkpoints").name
        found = []
        ours, theirs = (contents(root / "checkpoints" / name) for root in (self.result, reference))
        if ours != theirs:
            differ = sorted(what for what in ours.keys() | theirs.keys() if ours.get(what) != theirs.get(what))
            found.append(f"{when}the last checkpoint is not that of an undisturbed run: {', '.join(differ[:5])}")
        if "metrics.jsonl" not in self.done.err or not when:
            ours, theirs = (lines(root / "metrics.jsonl") for root in (self.result, reference))
            if ours != theirs:
                found.append(f"{when}metrics.jsonl is not that of an undisturbed run: {difference(ours, theirs)}")
        return found

    def _whole(self) -> list[str]:
        """The result is what was there before, or what is asked for; nothing in between."""
        now, options = (
            contents(self.result),
            [contents(path / self.scenario.result) for path in (self.before, self.after)],
        )
        if self.scenario.name == "token_cache":
            return []  # which nobody else reads; what the next call makes of it is looked at
        which = [] if self.done.code else ["after exit status 0: "]
        said = self.done.code == -9 or "partly replaced" in self.done.err
        if said and now not in options and self._is_refused():
            return []
        if now not in (options[1:] if which else options):
            return [f"{''.join(which)}{self.scenario.result} is neither the old nor the new: {sorted(now)}"]
        if self.scenario.result == "tokens" and now:
            TokenDataset.open(self.result, verify=True)
        return []

    def _is_refused(self) -> bool:
        """Whether what reads the result says that it is damaged."""
        read = {"tokens": TokenDataset.open, "model": GPT.from_pretrained, "tokenizer": Tokenizer.from_pretrained}
        try:
            read[self.scenario.result](self.result)
        except (ValueError, OSError):
            return True
        return False

    # ---- and then ------------------------------------------------------------------------------------------------

    def again(self) -> Callable[[], int | None]:
        """What a user does next: the same once more, or going on."""
        if self.scenario.trains and self._is_new():
            return Work("train --resume").run
        if self.scenario.repeat is not None and self.result.exists():
            return self.scenario.repeat.run
        return self.scenario.run

    def once_more(self, again: Done) -> list[str]:
        found = []
        if again.code:
            found.append(f"the next run ends with exit status {again.code}: {again.err.strip()}")
        elif self.scenario.trains:
            found += [f"then: {problem}" for problem in self._finished("")]
        elif contents(self.result) != contents(self.after / self.scenario.result):
            found.append(f"then: {self.scenario.result} is not that of an undisturbed run")
        extra = names(self.here) ^ names(self.after)
        if "TensorBoard" in self.done.err:
            extra = {name for name in extra if "/tensorboard" not in name}
        if any(words in self.done.err for words in ("in case that it gets worse", "is saved in")):
            extra = {name for name in extra if "/checkpoints/step-" not in name}
            kept = [
                len(checkpoint.all_checkpoints(root / self.scenario.result / "checkpoints"))
                for root in (self.here, self.after)
            ]
            if kept[0] != kept[1]:  # one of a step between the others stands in the place of an older one
                found.append(f"then: {kept[0]} checkpoints are kept, not {kept[1]}")
        return found + [f"then: files too many or too few: {', '.join(sorted(extra)[:5])}"] * bool(extra)


def _is_whole(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except checkpoint.CheckpointError:
        return False
    return True


def names(folder: Path) -> set[str]:
    """All that lies in a folder; of names that hold the time or a path's hash, that there are some."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {re.sub(r"(events\.out\.tfevents).*|(cache/\w+/)[0-9a-f-]{16,}", r"\1\2", name) for name in names}


def contents(folder: Path) -> dict[str, bytes]:
    """What the files of a folder hold: of tensors their bytes (no two files of the same tensors are alike: safetensors
    writes its metadata in any order), of JSON all but times and where the folder lies, of what is no result nothing."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = re.sub("^tokens/[0-9a-f-]{33}", "", str(path.relative_to(folder)))
        if not path.is_file() or _UNFINISHED.search(f"/{name}") or name.startswith("checked/"):
            continue
        if path.suffix == ".safetensors":
            found |= {f"{name}:{k}": v.numpy().tobytes() for k, v in load_file(path).items()}
        elif path.name != "checksums.json":  # of the files' bytes
            text = path.read_bytes().replace(str(folder.parent).encode(), b"")
            found[name] = re.sub(rb'"mtime_ns": \d+|"manifest_sha256": "\w+"', b"", text)
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, those that are none included, without what is measured by the clock."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            lines.append({k: v for k, v in json.loads(text).items() if k not in TIMES})
        except (ValueError, AttributeError):
            lines.append({"garbled": text})
    return lines


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    steps = [line.get("step") for line in ours]
    if steps != [line.get("step") for line in theirs]:
        return f"steps {steps}"
    for line, other in zip(ours, theirs):
        names = [name for name in other.keys() | line.keys() if line.get(name) != other.get(name)]
        if names:
            return f"step {line['step']}: {', '.join(sorted(names))}"
    return "their order"
