"""Take a screenshot of the Dead Units tab, as in the README.

Run it with ``python examples/tab_screenshot.py logs tab.png`` on logs that ``examples/digits.py``
left. It starts TensorBoard on a free port of this machine and looks at it with Chromium, which has
to be installed (Debian: ``apt install chromium``), driven by playwright.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOADING = 10.0  # seconds that TensorBoard may take to read the logs


def main(arguments: list[str] | None = None) -> None:
    """Start TensorBoard and a browser, and write the screenshot.

    Args:
        arguments: Command line arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description="Take a screenshot of the Dead Units tab.")
    parser.add_argument("logs", type=Path, help="log directory of TensorBoard")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--state", default="", help="what the address says, as in a link")
    parser.add_argument("--dark", action="store_true", help="in dark mode")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(options.logs)]
    board = subprocess.Popen([*command, "--port=0"], stderr=subprocess.PIPE, text=True)
    try:
        shoot(f"{address(board)}#dead_units{options.state}", options.picture, options.dark)
    finally:
        board.terminate()
        board.wait()


def address(board: subprocess.Popen[str]) -> str:
    """Return the address that TensorBoard prints when it is ready."""
    assert board.stderr is not None
    for line in board.stderr:
        if match := re.search(r"http://\S+:\d+/", line):
            return match[0]
    raise RuntimeError("Expected TensorBoard to start, but it ended.")


def shoot(url: str, picture: Path, dark: bool) -> None:
    """Open the address in a browser and write what is on screen."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"Expected one of {BROWSERS} to be installed.")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(
            viewport={"width": 1200, "height": 900}, color_scheme="dark" if dark else "light"
        )
        wait_for_data(page, url)
        page.screenshot(path=picture)
        chromium.close()


def wait_for_data(page: Page, url: str) -> None:
    """Load the page until TensorBoard has read the logs."""
    deadline = time.monotonic() + LOADING
    while time.monotonic() < deadline:
        page.goto("about:blank")
        page.goto(url)
        frame = page.frame_locator("iframe[src*='name=dead_units']")
        frame.locator("main[aria-busy='false']").wait_for()
        if frame.locator(".overview, canvas").count():
            frame.locator("main[data-scalars='shown']").wait_for()  # they come after a heat map
            return
        time.sleep(1)
    raise RuntimeError("Expected data of dead units in the logs, but there is none.")


if __name__ == "__main__":
    main()
