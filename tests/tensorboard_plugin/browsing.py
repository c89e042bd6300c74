"""The tab in a real browser, with an eye on what must never happen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse


class Tab:
    """One browser page on TensorBoard, and the plugin's frame in it."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._requested)

    def open(self, fragment: str = "dead_units") -> Tab:
        """Go to an address of TensorBoard; return when the tab has drawn itself."""
        self.page.goto("about:blank")  # or a new fragment alone would not load anything
        self.page.goto(f"{self.url}/#{fragment}")
        self.settle()
        return self

    def reload_data(self) -> None:
        """Press TensorBoard's own reload button, without the focus that a mouse would take away."""
        self.page.locator("button.reload-button").dispatch_event("click")

    def choose_theme(self, title: str) -> None:
        """Choose in TensorBoard's own menu of themes."""
        self.page.get_by_label("Menu for changing light or dark theme").click()
        self.page.locator(f"button[mat-menu-item][title*='{title}']").click()

    @property
    def frame(self) -> Any:
        return self.page.frame_locator("iframe[src*='name=dead_units']")

    def settle(self) -> None:
        self.frame.locator("main[aria-busy='false']").wait_for(timeout=15_000)

    def evaluate(self, script: str, *arguments: Any) -> Any:
        """Evaluate a function in the plugin's frame."""
        (frame,) = [it for it in self.page.frames if "name=dead_units" in it.url]
        return frame.evaluate(script, *arguments)

    def told(self) -> Tab:
        """Wait for the scalars, which come after the layers."""
        self.frame.locator("main[data-scalars='shown']").wait_for(timeout=15_000)
        return self

    def rows(self) -> list[list[str]]:
        """The texts of the overview's cells, the whole name of a layer first."""
        return self.evaluate(
            "() => [...document.querySelectorAll('.overview tbody tr')].map("
            "(row) => [row.dataset.layer, "
            "...[...row.children].map((cell) => cell.innerText.trim())])"
        )

    def canvas(self, run: str | None = None) -> Any:
        panes = self.frame.locator("article.pane")
        pane = panes.first if run is None else panes.filter(has_text=run).first
        return pane.locator("canvas")

    def pixels(self, canvas: Any, rows: int, columns: int) -> list[list[list[int]]]:
        """The colours in the middle of every cell, row by row."""
        return canvas.evaluate(
            """(canvas, [rows, columns]) => {
              const scale = canvas.width / canvas.clientWidth;
              const context = canvas.getContext('2d');
              const [left, top, width, height] = canvas.dataset.plot.split(',').map(Number);
              const colour = (row, column) => {
                const x = left + ((column + 0.5) / columns) * width;
                const y = top + ((row + 0.5) / rows) * height;
                const at = [Math.round(x * scale), Math.round(y * scale)];
                return [...context.getImageData(...at, 1, 1).data];
              };
              const range = (size) => [...Array(size).keys()];
              return range(rows).map((row) => range(columns).map((column) => colour(row, column)));
            }""",
            [rows, columns],
        )

    def point(self, canvas: Any, row: float, column: float, rows: int, columns: int) -> dict:
        """Where the middle of a cell is, in the canvas."""
        left, top, width, height = map(float, canvas.get_attribute("data-plot").split(","))
        x = left + ((column + 0.5) / columns) * width
        y = top + ((row + 0.5) / rows) * height
        return {"x": x, "y": y}

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location['url']})")

    def _requested(self, request: Any) -> None:
        asked = urlparse(request.url)
        if asked.netloc and asked.netloc != urlparse(self.url).netloc:
            self.strangers.append(request.url)


@contextlib.contextmanager
def browse(browser: Any, url: str, width: int = 1400, height: int = 1000) -> Iterator[Tab]:
    """Open a page; when done, the console must be free of errors and no stranger contacted."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="light", accept_downloads=True
    )
    context.set_default_timeout(15_000)
    try:
        tab = Tab(context.new_page(), url)
        yield tab
        assert tab.complaints == []
        assert tab.strangers == []
    finally:
        context.close()
