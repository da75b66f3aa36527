"""`fastgpt train` as it is typed, with a tiny model and a tiny text: what the tests of it share."""

from __future__ import annotations

from pathlib import Path

from ..support import command
from ..support.command import Done

TINY = [
    "--data", "a.txt", "--val-fraction", "0.2", "--tokenizer", "shakespeare", "--n-layers", "1", "--n-heads", "2",
    "--d-model", "16", "--max-len", "16", "--batch-size", "2", "--steps", "3", "--save-every", "2", "--no-tensorboard",
    "--device", "cpu",
]  # fmt: skip
TEXT = "To be, or not to be, that is the question. " * 40


def train(folder: Path, *argv: str, **env: str) -> Done:
    return command.run("train", *argv, cwd=folder, **{"FASTGPT_CACHE": str(folder / "cache")} | env)


def error(done: Done, code: int = 2) -> str:
    assert done.code == code, (done.out, done.err)
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("fastgpt train: error: ")
    return last.removeprefix("fastgpt train: error: ")


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def checkpoints(folder: Path, name: str = "a") -> list[str]:
    return sorted(path.name for path in (folder / "runs" / name / "checkpoints").iterdir())
