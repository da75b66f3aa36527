"""A real browser for the tests of pages: Debian's chromium, driven by playwright over file://.

def test_page(opened, tmp_path):
    page = opened(tmp_path / "page.html", width=400, dark=True)      # playwright's Page; its errors fail the test
    page.keyboard.press("ArrowRight")
    assert page.inner_text("h1") == "One head"
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Skips, with the reason, where there is none; FASTGPT_CHROMIUM names one. In CI (CI=true) it must be there."""
    path = os.environ.get("FASTGPT_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    missing = "no chromium on the PATH (apt install chromium)" if path is None else ""
    missing = missing or ("playwright is not installed" if sync_playwright is None else "")
    if missing and os.environ.get("CI"):
        pytest.fail(f"needs a browser, which CI installs: {missing}")
    if missing:
        pytest.skip(f"needs a browser: {missing}")
    with sync_playwright() as driver:
        # Without a sandbox, which needs rights that containers lack: the pages are our own.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """opened(path, width=1200, height=900, dark=False, offline: always) -> playwright's Page.

    What a page logs as an error, an exception in its scripts, and anything that it would fetch fail the test.
    """
    contexts, faults = [], []

    def open_page(path: str | os.PathLike[str], *, width: int = 1200, height: int = 900, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True,
            has_touch=width < 600,
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        own = Path(path).resolve().as_uri()
        page.on("request", lambda asked: faults.append(f"asks for {asked.url}") if is_foreign(asked.url, own) else None)
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def is_foreign(url: str, own: str) -> bool:
    """Whether a page that is one file would fetch this from elsewhere."""
    return url.partition("#")[0] != own and not url.startswith(("data:", "blob:", "about:"))


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than its window: 0 on a page that a phone can read."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
