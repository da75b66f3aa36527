"""A GPT that somebody's own code has wrapped on several ranks (fully_shard, DDP) does what it does in one process.

The checks run in the ranks, all in one start of processes; here each is a test.
"""

import pytest

from tests.support.ranks import run_ranks

from . import sharded_checks  # noqa: F401 (it fills CHECKS)
from .sharded_parts_checks import FOUR
from .wrapping import CHECKS, run


@pytest.fixture(scope="module")
def errors(tmp_path_factory, request):
    """{check: its error}, of those that failed. After one, the ranks start anew: they may be out of step."""
    chosen = {item.callspec.params["name"] for item in request.session.items if item.fspath == request.path}
    found = {}
    for size, names in ((2, [name for name in CHECKS if name not in FOUR]), (4, FOUR)):
        left = [name for name in names if name in chosen]
        while left:
            folder = tmp_path_factory.mktemp("ranks")
            try:
                run_ranks(run, size, str(folder), left, timeout=280.0)  # seconds; 15 where nothing else runs
                left = []
            except AssertionError as error:
                begun = [path.read_text().splitlines() for path in folder.glob("begun-*")]
                failed = min(begun, key=len)[-1] if begun else left[0]
                found[failed] = str(error)
                left = left[left.index(failed) + 1 :]
    return found


@pytest.mark.needs("triton")
@pytest.mark.parametrize("name", CHECKS)
def test_on_ranks(errors, name):
    if name in errors:
        pytest.fail(errors[name], pytrace=False)
