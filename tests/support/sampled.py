"""A pytest plugin that runs a sample: `-p tests.support.sampled --one-in 4`, of each test's cases one in four."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="of each test's cases run one in N, or one")


@pytest.hookimpl(trylast=True)  # of those that were selected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = sample([item.nodeid for item in items], config.getoption("--one-in"))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


def sample(nodeids: Iterable[str], one_in: int) -> set[str]:
    """Of each test's cases one in so many, and one at least; the same ones every time, spread over its parameters."""
    cases: dict[str, list[str]] = {}
    for nodeid in nodeids:
        cases.setdefault(nodeid.split("[")[0], []).append(nodeid)
    shuffled = (sorted(some, key=lambda nodeid: zlib.crc32(nodeid.encode())) for some in cases.values())
    return {nodeid for some in shuffled for nodeid in some[: math.ceil(len(some) / one_in)]}
