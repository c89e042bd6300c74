"""A layer's rates as CSV, exact and in the order of the units."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_deadunits.tensorboard_plugin.series import Series

# An upper bound of what one cell takes: a comma and the shortest text that reads back as the same
# float32, such as 1.17549435e-38.
BYTES_PER_CELL = 15
MAX_FILE_BYTES = 64 * 2**20


def csv_lines(rates: Series, units: range) -> Iterator[str]:
    """Write one line per unit, one column per step.

    Units are the rows because spreadsheets stop at 16 384 columns. A unit that was not seen is
    ``nan``.
    """
    yield ",".join(["unit", *(str(step) for step in rates.steps.tolist())]) + "\r\n"
    for unit in units:
        # dragon4's shortest text for float32; Python's own repr would print a float64
        cells = rates.values[:, unit].astype(np.str_)
        yield f"{unit}," + ",".join(cells.tolist()) + "\r\n"


def units_per_file(rates: Series, max_bytes: int) -> int:
    """Say how many units of a layer surely fit into a file of ``max_bytes``."""
    header = 21 * (rates.steps.size + 1)  # an int64 has at most 20 characters
    line = BYTES_PER_CELL * (rates.steps.size + 1)
    return max(1, (max_bytes - header) // line)


def csv_parts(rates: Series) -> list[str]:
    """Split a layer into ranges of units, ``first-last``, of which each fits into one file."""
    total, fitting = rates.values.shape[1], units_per_file(rates, MAX_FILE_BYTES)
    return [
        f"{first}-{min(first + fitting, total) - 1}" for first in range(0, max(total, 1), fitting)
    ]
