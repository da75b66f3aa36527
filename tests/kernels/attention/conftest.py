"""Attention tests in the interpreter use few, large tiles: its time goes by their number, not by their size."""

import pytest

from fastgpt.kernels.attention import tiles
from tests.support.compiled import COMPILED


@pytest.fixture(autouse=True)
def large_tiles(request, monkeypatch):
    """64 x 64 tiles for the interpreter, whatever the table says; tests marked `table_tiles` keep the table's."""
    if not COMPILED and "table_tiles" not in request.fixturenames:
        monkeypatch.setattr(tiles, "_for_rows", lambda *_: tiles.Tile(64, 64, 32, 4, 2))


@pytest.fixture
def table_tiles():
    """Ask for this to run with the tiles of the table."""
