"""How numbers read, everywhere: the table, the plot, the diagnosis and the TensorBoard tab.

One rule of rounding. A number in [0, 1] is rounded to thousandths, half up, and written as a rate
(``0.909``) or as a percentage (``90.9%``). Rounding never makes a little nothing, nor almost all
all: ``0`` and ``1`` (``0%`` and ``100%``) are written only where the number is exactly that, so a
unit that fired once among a billion values reads ``>0.999``, not ``1.000``.

The tab's ``text.js`` computes the same in the same IEEE arithmetic; ``tests/figures.json`` holds
what both must write. So nothing here uses Python's own rounding, which takes ties to even where
JavaScript takes them up. Needs neither torch nor the rest of the package.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_FINE = 10**12
"""Below 2**53, so that the scaled number is exact in a double, and above any layer's width."""
_THOUSANDTH = 10**9

_COLOURS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "tensorboard_plugin/static/colours.json").read_text()
)
DEAD_COLOUR: str = _COLOURS["light"]["dead"]
RATE_COLOURS: tuple[str, ...] = tuple(_COLOURS["light"]["scale"])
"""From never zero to always zero. These and the others are the tab's, which reads the same file."""
UNSEEN_COLOUR: str = _COLOURS["unseen"]
CURVE_COLOURS: tuple[str, ...] = tuple(_COLOURS["curves"])

UNKNOWN = "-"
"""What stands for a number that there is not: nothing was seen."""


def rate(value: float) -> str:
    """Write a zero-activation rate.

    Args:
        value: In [0, 1], or NaN.

    Example:
        >>> [rate(value) for value in (0.90851, 1 - 1e-9, 1.0, 1e-9, 0.0, 0.0625, 0.5)]
        ['0.909', '>0.999', '1', '<0.001', '0', '0.063', '0.500']
    """
    if math.isnan(value):
        return UNKNOWN
    if value in (0, 1):
        return str(int(value))
    thousandths = _thousandths(value)
    if thousandths in (0, 1000):
        return ">0.999" if thousandths else "<0.001"
    return f"0.{thousandths:03d}"


def percent(fraction: float) -> str:
    """Write a share as a percentage.

    Args:
        fraction: In [0, 1], or NaN. Of counts ``part / whole``: the division is the same in both
            languages.

    Example:
        >>> [percent(part / 2000) for part in (0, 0.1, 1, 938, 1999.9, 2000)]
        ['0%', '<0.1%', '0.1%', '46.9%', '>99.9%', '100%']
    """
    if math.isnan(fraction):
        return UNKNOWN
    if fraction in (0, 1):
        return f"{100 * int(fraction)}%"
    thousandths = _thousandths(fraction)
    if thousandths in (0, 1000):
        return ">99.9%" if thousandths else "<0.1%"
    return f"{thousandths // 10}.{thousandths % 10}%"


def count(number: int) -> str:
    """Write a count or a step, as in ``16,384``."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """Write a number and its noun, as in ``1 unit``, ``2 units``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def magnitude(value: float) -> str:
    """Write a loss or a learning rate, with three significant digits.

    Example:
        >>> [magnitude(value) for value in (0.08, 2.30259, 1e-05, 12345.6)]
        ['0.08', '2.3', '1e-05', '1.23e+04']
    """
    return f"{value:.3g}"


def _thousandths(value: float) -> int:
    """Round half up, after a rounding so fine that a tie is one however the number came about."""
    fine = math.floor(value * _FINE + 0.5)
    return (fine + _THOUSANDTH // 2) // _THOUSANDTH
