"""What a request is answered with: JSON, bytes, or what is wrong with it, never a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tensorboard.backend import http_util
from tensorboard.errors import PublicError
from tensorboard.util import tb_logging
from werkzeug import Request, Response

from lightning_deadunits.tensorboard_plugin.bundle import nullable

MAX_BYTES = 64 * 2**20
WsgiApp = Callable[..., Any]
_logger = tb_logging.get_logger()


class TooLargeError(PublicError):  # type: ignore[misc]  # TensorBoard ships no types
    """The answer would be too large; corresponds to HTTP 413."""

    http_code = 413

    def __init__(self, details: str) -> None:
        super().__init__(f"Too large: {details}")


def application(answer: Callable[[Request], Response]) -> WsgiApp:
    """Turn a function of a request into a WSGI application that always answers."""

    @Request.application
    def app(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _refusal(request, 405, "Expected GET.", [("Allow", "GET, HEAD")])
        try:
            return answer(request)
        except PublicError as error:
            return _refusal(request, error.http_code, str(error), error.headers)
        except Exception as error:
            _logger.exception("The Dead Units tab could not answer %s", request.path)
            return _refusal(request, 500, f"The Dead Units tab failed: {type(error).__name__}.", [])

    return app


def json_answer(request: Request, content: Any) -> Response:
    """Answer with JSON in which NaN is null."""
    text = json.dumps(nullable(content), allow_nan=False)
    return _respond(request, text, "application/json")


def binary_answer(request: Request, content: bytes) -> Response:
    """Answer with the bytes of a bundle."""
    return _respond(request, content, "application/octet-stream")


def csv_answer(request: Request, content: bytes, stem: str) -> Response:
    """Answer with a file to save, its name made of the safe characters of ``stem``."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem) + ".csv"
    headers = [("Content-Disposition", f'attachment; filename="{name}"')]
    return _respond(request, content, "text/csv", headers=headers)


def _respond(request: Request, content: Any, content_type: str, **options: Any) -> Response:
    if len(content) > MAX_BYTES:
        raise TooLargeError(f"{len(content)} bytes, and the limit is {MAX_BYTES}")
    response: Response = http_util.Respond(request, content, content_type, **options)
    return response


def _refusal(request: Request, code: int, reason: str, headers: Any) -> Response:
    response: Response = http_util.Respond(
        request, reason, "text/plain", code=code, headers=list(headers)
    )
    return response
