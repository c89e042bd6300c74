"""Shrinks a matrix of rates until it can be sent, without losing sight of a dead unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.history import History

# 16 384 units x 300 steps in full; 20 MB as float32, about half a second on a laptop.
MAX_CELLS = 5_000_000
MAX_ROWS = 16_384
MAX_COLUMNS = 2_048  # no screen has more pixels for one layer


@dataclass(frozen=True)
class PooledRates:
    """A matrix of steps x rows in which one row may stand for several neighbouring units.

    Attributes:
        rates: float32 ``(C, R)``: by step, as they were written, since a transposition would cost
            as much as everything else. Of one unit, its rate; of several, the mean rate of those
            alive, or of the dead if none is alive. NaN where none was seen.
        dead_share: Share of the row's seen units that are dead, float32 ``(C, R)``; None if every
            row is one unit. A mean of rates would hide one dead unit among many.
        units_per_row: How many units one row stands for; the last row may have fewer.
        columns: Which steps are shown, as rows of the history, ``(C,)``.
    """

    rates: NDArray[np.float32]
    dead_share: NDArray[np.float32] | None
    units_per_row: int
    columns: NDArray[np.int64]


def pool(history: History, order: NDArray[np.int64]) -> PooledRates:
    """Arrange the rates in ``order``, pooling neighbours if there are too many cells to send."""
    num_steps, num_units = history.rates.values.shape
    columns = evenly_spaced(num_steps, MAX_COLUMNS)
    max_rows = max(1, min(MAX_ROWS, MAX_CELLS // columns.size))
    units_per_row = -(-num_units // max_rows) or 1
    rates = history.rates.values
    if columns.size < num_steps:
        rates = rates[columns]  # a copy, which of a million units takes its time
    if units_per_row == 1:
        return PooledRates(rates[:, order], None, 1, columns)
    threshold = np.float32(history.dead_threshold)
    return _pool(rates, threshold, order, units_per_row, columns)


def evenly_spaced(total: int, at_most: int) -> NDArray[np.int64]:
    """Pick indices of ``range(total)``, the first and the last always among them."""
    if total <= at_most:
        return np.arange(total)
    return np.linspace(0, total - 1, at_most).round().astype(np.int64)


def _pool(
    rates: NDArray[np.float32],
    threshold: np.float32,
    order: NDArray[np.int64],
    units_per_row: int,
    columns: NDArray[np.int64],
) -> PooledRates:
    num_rows = -(-order.size // units_per_row)
    shown = np.empty((columns.size, num_rows), dtype=np.float32)
    share = np.empty_like(shown)
    padded = np.full(num_rows * units_per_row, np.nan, dtype=np.float32)
    # Step by step: a million units of one step fit into the cache, of all steps they do not.
    for column, rates_there in enumerate(rates):
        np.take(rates_there, order, out=padded[: order.size], mode="clip")
        cells = padded.reshape(num_rows, units_per_row)
        dead, living = cells >= threshold, cells < threshold  # both False for NaN
        num_dead, num_living = dead.sum(axis=1), living.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            of_living = cells.sum(axis=1, where=living) / num_living
            of_dead = cells.sum(axis=1, where=dead) / num_dead
            share[column] = num_dead / (num_dead + num_living)
        shown[column] = np.where(num_living > 0, of_living, of_dead)
    return PooledRates(shown, share, units_per_row, columns)
