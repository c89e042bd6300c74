"""What stands in for the tab when it cannot be loaded: it says why, and harms nothing.

It must work when anything else does not, so it needs the standard library and TensorBoard's base
class only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from tensorboard.plugins import base_plugin

_PAGE = """\
export function render() {
  document.documentElement.lang = 'en';
  const heading = document.createElement('h1');
  heading.textContent = 'The Dead Units tab could not be loaded';
  const reason = document.createElement('pre');
  reason.textContent = REASON;
  const advice = document.createElement('p');
  advice.textContent = 'The other tabs are not affected. Repair the Python environment that '
    + 'TensorBoard runs in (pip check helps) and restart TensorBoard.';
  document.body.style.cssText = 'font: 16px system-ui, sans-serif; margin: 3em; max-width: 60em; '
    + 'background: white; color: #222';
  document.body.append(heading, reason, advice);
}
"""


class BrokenTab(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard ships no types
    """A tab that only says what is wrong.

    Args:
        reason: Why the real tab could not be loaded.
    """

    plugin_name = "dead_units"

    def __init__(self, reason: str) -> None:
        self._module = _PAGE.replace("REASON", json.dumps(reason)).encode()

    def get_plugin_apps(self) -> dict[str, Callable[..., Iterable[bytes]]]:
        """Return the one route: the page."""
        return {"/static/index.js": self._serve_page}

    def is_active(self) -> bool:
        """Answer False: TensorBoard shows the tab anyway if there is data of this plugin."""
        return False

    def frontend_metadata(self) -> Any:
        """Name the tab and the module that draws it."""
        return base_plugin.FrontendMetadata(
            es_module_path="/static/index.js", tab_name="Dead Units"
        )

    def _serve_page(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        headers = [
            ("Content-Type", "text/javascript; charset=utf-8"),
            ("Content-Length", str(len(self._module))),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-cache"),
        ]
        start_response("200 OK", headers)
        return [self._module]
