"""What several tests of the package begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from .train_command import TEXT


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a text to train on, a.txt, and `cache`, where its tokens are kept."""
    (tmp_path / "a.txt").write_text(TEXT)
    monkeypatch.setenv("FASTGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path
