"""Serves the page: only the files named here, read when the tab is made."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend import http_util
from werkzeug import Request, Response

from lightning_deadunits.tensorboard_plugin.answers import WsgiApp, application

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}


def static_routes() -> dict[str, WsgiApp]:
    """Map the path of every file of the page to a WSGI application.

    TensorBoard compares the paths exactly, so what is not in this mapping cannot be reached.
    """
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix in _TYPES)
    return {f"/static/{path.name}": _file(path.read_bytes(), _TYPES[path.suffix]) for path in files}


def _file(content: bytes, content_type: str) -> WsgiApp:
    def answer(request: Request) -> Response:
        response: Response = http_util.Respond(request, content, content_type)
        return response

    return application(answer)
