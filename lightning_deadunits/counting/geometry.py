"""How a dense activation is folded so that bytes can count its columns."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

LANE = 255
"""Rows that one byte can count."""


class Geometry(NamedTuple):
    """A dense activation as ``(rows, units, after)``.

    Several rows are folded into a long one where there are more than a byte can count: ``folds``
    are pairs of how many long rows, and how many rows in each.
    """

    rows: int
    units: int
    after: int
    folds: tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=1024)
def geometry_of(shape: torch.Size, unit_dims: tuple[int, ...]) -> Geometry:
    """Return the geometry of a dense activation.

    Args:
        shape: Its shape.
        unit_dims: Axes next to each other, ascending, that together index the units.
    """
    first, last = unit_dims[0], unit_dims[-1]
    rows = shape[:first].numel()
    folds, left = [], rows
    while left:
        fold = -(-left // LANE)
        folds.append((left // fold, fold))
        left %= fold
    units, after = shape[first : last + 1].numel(), shape[last + 1 :].numel()
    return Geometry(rows, units, after, tuple(folds))
