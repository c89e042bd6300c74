"""What the tests of the tab share: logs of a real training, and a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .training import train_runs

pytest.register_assert_rewrite(f"{__package__}.browsing")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def real_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``plain`` and ``reinit`` of one real training, and ``other`` without our data."""
    folder = tmp_path_factory.mktemp("real")
    train_runs(folder)
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's Chromium. On a user's machine without one, what needs it is skipped."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"No Chromium found (looked for {', '.join(BROWSERS)})."
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()
