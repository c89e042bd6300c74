"""Counts per column of an activation, and their sums per unit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.counting.geometry import LANE, Geometry
from lightning_deadunits.counting.scratch import SCRATCH

_FLOATS = 1 << 16
"""Floats that are made of bytes at once, which stay in a core's cache."""
_EXACT = 1 << 24
"""Whole numbers below it add up exactly in float32."""
_UNSUMMED = 8
"""Most numbers per unit that are kept apart until passes are added up."""


class Columns(NamedTuple):
    """Counts of what is not zero per column, before they are summed per unit.

    They are summed later, for that is the same for all layers of a pass and need not be done in the
    middle of it, when neither code nor data are in the caches.

    Attributes:
        parts: For each of ``geometry.folds`` a byte per column of its long rows.
        geometry: Shape of the activation.
        nonfinite: How many values are not finite.
    """

    parts: list[Tensor]
    geometry: Geometry
    nonfinite: int

    @property
    def device(self) -> torch.device:
        """Where the counts are."""
        return self.parts[0].device

    @property
    def observations(self) -> int:
        """Values per unit."""
        return self.geometry.rows * self.geometry.after

    def nonzeros(self) -> Tensor:
        """Return how many values of every unit are not zero, int64 of shape ``(U,)``."""
        _, units, after, folds = self.geometry
        sums = [_units_of(*part, units, after) for part in zip(self.parts, folds, strict=True)]
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)

    @property
    def _is_flat(self) -> bool:
        _, _, after, folds = self.geometry
        return after == 1 and len(folds) == 1 and folds[0][1] <= _UNSUMMED

    def unsummed(self) -> tuple[Tensor, int]:
        """Return what is not zero as whole numbers, some times in a row for every unit."""
        if not self._is_flat:
            return self.nonzeros(), 1
        fold = self.geometry.folds[0][1]
        return self.parts[0].view(torch.uint8)[: fold * self.geometry.units], fold


def _units_of(lanes: Tensor, shape: tuple[int, int], units: int, after: int) -> Tensor:
    """Sum what the columns counted over the columns of each unit: int64 of shape ``(units,)``."""
    fold = shape[1]
    width = fold * units * after
    counts = lanes.view(torch.uint8)
    if len(counts) != width:
        counts = counts[:width]
    if after > 1:
        counts = _sum_rows(counts.view(fold * units, after))
    return (
        counts.to(torch.int64) if fold == 1 else counts.view(fold, units).sum(0, dtype=torch.int64)
    )


def _sum_rows(counts: Tensor) -> Tensor:
    """Sum the rows of a table of bytes, exactly, by way of the vectorised sums of floats."""
    rows, width = counts.shape
    if width * LANE >= _EXACT:
        return counts.sum(1, dtype=torch.int64)
    sums = torch.empty(rows, dtype=torch.float32, device="cpu")
    step = max(1, _FLOATS // width)
    for top in range(0, rows, step):
        values = counts[top : top + step].to(torch.float32)
        # A product with ones: torch's own sum takes four times as long where rows are short.
        torch.mv(values, SCRATCH.ones(width), out=sums[top : top + step])
    return sums
