"""Reads and checks the query of a request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from tensorboard.errors import InvalidArgumentError
from werkzeug import Request

_Choice = TypeVar("_Choice", bound=str)
_UNIT = re.compile(r"\d{1,10}", re.ASCII)
_RANGE = re.compile(r"(\d{1,10})-(\d{1,10})", re.ASCII)


def one(request: Request, name: str) -> str:
    """Return the one value of a parameter.

    Raises:
        InvalidArgumentError: If it is missing or repeated.
    """
    values = request.args.getlist(name)
    if len(values) != 1:
        raise InvalidArgumentError(f"expected one `{name}`, but got {len(values)}")
    return values[0]


def optional(request: Request, name: str) -> str | None:
    """Return the one value of a parameter, None if it is missing or empty.

    Raises:
        InvalidArgumentError: If it is repeated.
    """
    return (one(request, name) or None) if name in request.args else None


def choice(request: Request, name: str, choices: Sequence[_Choice]) -> _Choice:
    """Return the one value of a parameter out of ``choices``, the first of them if missing.

    Raises:
        InvalidArgumentError: If it is repeated or not one of ``choices``.
    """
    value = one(request, name) if name in request.args else choices[0]
    for candidate in choices:
        if candidate == value:
            return candidate
    raise InvalidArgumentError(f"expected `{name}` to be one of {list(choices)}, but got {value!r}")


def unit(request: Request) -> int:
    """Return the parameter ``unit``.

    Raises:
        InvalidArgumentError: If it is missing, repeated or not a whole number.
    """
    text = one(request, "unit")
    if not _UNIT.fullmatch(text):
        raise InvalidArgumentError(f"expected `unit` to be a whole number, but got {text!r}")
    return int(text)


def unit_range(request: Request) -> range | None:
    """Return the parameter ``units``, ``first-last`` with both included; None if missing.

    Raises:
        InvalidArgumentError: If it is repeated or not such a range.
    """
    if "units" not in request.args:
        return None
    text = one(request, "units")
    match = _RANGE.fullmatch(text)
    if not match or int(match[1]) > int(match[2]):
        raise InvalidArgumentError(f"expected `units` to be like 0-99, but got {text!r}")
    return range(int(match[1]), int(match[2]) + 1)
