"""Run pytest again and again, in forks of a process that has imported what nearly every test needs, nothing of ours.

It reads lines of JSON, [arguments, timeout in seconds], and answers each with [exit code, output]; the code is null
where pytest was not done in time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time

import numpy  # noqa: F401 (imported once for all)
import pytest
import safetensors.torch  # noqa: F401
import torch._dynamo  # noqa: F401 (an optimizer does)
import triton.language  # noqa: F401


def run(arguments: list[str], timeout: float) -> tuple[int | None, str]:
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = os.fork()
        if not child:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.exit(pytest.main(arguments))
        code = exit_code(child, timeout)
        with contextlib.suppress(ProcessLookupError):  # what the tests started, and itself where it hangs
            os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
        output.seek(0)
        return code, output.read()


def exit_code(child: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # the copy of the tree, in place of this file's folder
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
