"""One row per layer: how it stands now, and how it came there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.metadata import UnreadableTagError
from lightning_deadunits.tensorboard_plugin.reading import LayerRecord
from lightning_deadunits.tensorboard_plugin.source import Layer

SPARKLINE_POINTS = 120  # a sparkline is about that many pixels wide


def overview_row(layer: Layer, record: LayerRecord | UnreadableTagError) -> dict[str, Any]:
    """Summarise a layer; one that cannot be read says why under ``problem``."""
    if isinstance(record, UnreadableTagError):
        return {"layer": layer.name, "problem": str(record)}
    return {
        "layer": layer.name,
        "problem": layer.marks_problem,
        "dead_threshold": layer.dead_threshold,
        **_state(record),
        **_story(record),
    }


def _state(record: LayerRecord) -> dict[str, Any]:
    history = record.history
    rates = history.rates.values[-1]
    seen = ~np.isnan(rates)
    return {
        "num_units": history.rates.num_units,
        "step": history.rates.steps[-1],
        "num_steps": history.rates.steps.size,
        "seen": bool(seen.any()),
        "dead": history.dead_now.sum(),
        "dead_fraction": history.dead_fraction[-1],
        "zero_rate": rates[seen].mean(dtype=np.float64) if seen.any() else None,
    }


def _story(record: LayerRecord) -> dict[str, Any]:
    history = record.history
    return {
        "born_dead": history.born_dead.sum(),
        "died": history.died.sum(),
        "revived": history.revived.sum(),
        "reinitialised": 0 if record.marks is None else np.nansum(record.marks.values > 0),
        "sparkline": _sparkline(history.rates.steps, history.dead_fraction),
    }


def _sparkline(steps: NDArray[np.int64], fraction: NDArray[np.float64]) -> dict[str, Any]:
    """Thin out a curve by the largest value of each stretch: a short death stays visible."""
    stretches = np.array_split(np.arange(steps.size), min(steps.size, SPARKLINE_POINTS))
    shown = np.where(np.isnan(fraction), -np.inf, fraction)
    peaks = np.array([shown[stretch].max() for stretch in stretches])
    return {"steps": [steps[it[-1]] for it in stretches], "dead_fraction": peaks}
