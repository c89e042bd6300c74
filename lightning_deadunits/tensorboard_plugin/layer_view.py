"""A layer's life as the heat map needs it, and one unit's as its curve needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.bundle import pack
from lightning_deadunits.tensorboard_plugin.export import csv_parts
from lightning_deadunits.tensorboard_plugin.history import STATES
from lightning_deadunits.tensorboard_plugin.ordering import Order, same_order, unit_order
from lightning_deadunits.tensorboard_plugin.pooling import pool
from lightning_deadunits.tensorboard_plugin.reading import LayerRecord
from lightning_deadunits.tensorboard_plugin.series import Series


def layer_bundle(
    record: LayerRecord,
    order: Order,
    like: LayerRecord | None = None,
    made_by: Sequence[str] = (),
) -> bytes:
    """Pack a layer's heat map, with what each unit has to tell beside it.

    Args:
        record: The layer in its run.
        order: In which order to stack its units.
        like: The layer in another run, whose order to take, so that maps side by side show the
            same unit in the same row.
        made_by: Names of what makes its units.
    """
    history = record.history
    arranged = unit_order(history, order)
    if like is not None:
        arranged = same_order(unit_order(like.history, order), arranged)
    pooled = pool(history, arranged)
    header = {
        "num_units": history.rates.num_units,
        "num_rows": pooled.rates.shape[1],
        "units_per_row": pooled.units_per_row,
        "steps": history.rates.steps[pooled.columns],
        "num_steps": history.rates.steps.size,
        "dead_threshold": history.dead_threshold,
        "order": order,
        "states": STATES,
        "made_by": made_by,
        "saw_nothing": bool(np.isnan(history.dead_fraction[-1])),
        "csv_parts": csv_parts(history.rates),
    }
    arrays: dict[str, NDArray[Any]] = {
        "rates": pooled.rates,
        "units": arranged.astype(np.uint32),
        "dead_since": _steps_or_nan(history.rates.steps, history.dead_since),
        "state": history.states,
        **_marks(record.marks),
    }
    if pooled.dead_share is not None:
        arrays["dead_share"] = pooled.dead_share
    return pack(header, arrays)


def unit_curve(record: LayerRecord, unit: int) -> dict[str, Any]:
    """Tell one unit's story, step by step."""
    history, rates = record.history, record.history.rates
    return {
        "unit": unit,
        "steps": rates.steps,
        "wall_times": rates.wall_times,
        "zero_rate": rates.values[:, unit],
        "dead_threshold": history.dead_threshold,
        "dead": bool(history.dead_now[unit]),
        "dead_since": _steps_or_nan(rates.steps, history.dead_since)[unit],
        "state": STATES[history.states[unit]],
        "reinitialised_at": _steps_of(record.marks, unit),
    }


def _steps_or_nan(steps: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Map rows of the history to steps, -1 to NaN."""
    return np.where(rows >= 0, steps[rows].astype(np.float64), np.nan)


def _marks(marks: Series | None) -> dict[str, NDArray[Any]]:
    """List the re-initialisations as pairs of a step and a unit: they are few."""
    if marks is None:
        return {"reinit_steps": np.zeros(0), "reinit_units": np.zeros(0, np.uint32)}
    rows, units = np.nonzero(marks.values > 0)  # False for NaN
    steps = marks.steps[rows].astype(np.float64)
    return {"reinit_steps": steps, "reinit_units": units.astype(np.uint32)}


def _steps_of(marks: Series | None, unit: int) -> list[int]:
    if marks is None or unit >= marks.values.shape[1]:
        return []
    return [int(step) for step in marks.steps[marks.values[:, unit] > 0]]
