"""A study or demo that a signal has stopped: what was kept, for the command's last line."""

from __future__ import annotations


class Interrupted(KeyboardInterrupt):
    """The message says what was kept.

    stopped_by  "SIGINT", "SIGTERM" or "SIGHUP"
    """

    def __init__(self, message: str, stopped_by: str = "SIGINT") -> None:
        super().__init__(message)
        self.stopped_by = stopped_by
