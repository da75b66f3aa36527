"""After an error that ends a run: what can be saved is, and the user reads what is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from . import checkpoint

_log = logging.getLogger("fastgpt")


def end(
    error: Exception, root: Path, step: int, is_whole: Callable[[], bool], save: Callable[[], Path], *, alone: bool
) -> None:
    """Save the updates up to `step` that no checkpoint in `root` holds, if they are whole, and say what is kept.

    Not `alone`, this rank cannot know whether the others have the error too, and would wait for them: nothing is saved.

    Raises:
        FloatingPointError: `error`, if it is one, with what is kept added to its message.
    """
    kept = _rescue(error, root, step, is_whole, save) if alone else checkpoint.kept(root)
    if isinstance(error, FloatingPointError):
        raise FloatingPointError(f"{error}; {kept}") from error
    if isinstance(error, checkpoint.CheckpointError) or step == 0:
        return  # it says so itself; nothing was there to lose
    is_saved = checkpoint.latest(root) is not None
    then = "go on with resume=True (--resume)" if is_saved else "start again"
    _log.warning("Trainer: an error ends the run at step %d; %s; %s", step, kept, then)


def _rescue(error: Exception, root: Path, step: int, is_whole: Callable[[], bool], save: Callable[[], Path]) -> str:
    """Save, if there is something to. Returns what is kept, in words."""
    newest = checkpoint.folder_of(root, step)
    if step == 0 or isinstance(error, checkpoint.CheckpointError):
        return checkpoint.kept(root)
    if not newest.exists():
        if not is_whole():
            return f"{checkpoint.kept(root)}, what follows it is lost"
        try:
            newest = save()
        except checkpoint.CheckpointError as failed:
            return str(failed)
    others = ", ".join(path.name for path in checkpoint.all_checkpoints(root) if path != newest)
    return f"{newest} is kept{f', and before it {others}' if others else ''}"
