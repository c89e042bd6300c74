"""One row per layer: how it stands now, and how it came there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.history import History
from lightning_deadunits.tensorboard_plugin.metadata import UnreadableTagError
from lightning_deadunits.tensorboard_plugin.reading import LayerRecord
from lightning_deadunits.tensorboard_plugin.source import Layer
from lightning_deadunits.tensorboard_plugin.spoken import network_order, of_layer

SPARKLINE_POINTS = 120  # a sparkline is about that many pixels wide

Records = dict[str, LayerRecord | UnreadableTagError]


def overview_rows(
    layers: dict[str, Layer], records: Records, verdict: dict[str, Any]
) -> list[dict[str, Any]]:
    """Summarise the layers of a run, in the order in which they ran."""
    first_seen = {
        name: float(record.history.rates.wall_times[0])
        for name, record in records.items()
        if isinstance(record, LayerRecord)
    }
    names = network_order(verdict, layers, first_seen)
    return [overview_row(layers[name], records[name], verdict) for name in names]


def overview_row(
    layer: Layer, record: LayerRecord | UnreadableTagError, verdict: dict[str, Any]
) -> dict[str, Any]:
    """Summarise a layer; one that cannot be read says why under ``problem``."""
    if isinstance(record, UnreadableTagError):
        return {"layer": layer.name, "problem": str(record)}
    step = int(record.history.rates.steps[-1])
    said = of_layer(verdict, layer.name, step)
    state = _state(record.history)
    if state["seen"]:
        state |= {ours: said[theirs] for ours, theirs in _SAID.items() if theirs in said}
    return {
        "layer": layer.name,
        "problem": layer.marks_problem,
        "beside": layer.beside,
        "dead_threshold": layer.dead_threshold,
        "made_by": said.get("made_by") or layer.made_by,
        "dead_since": said.get("dead_since"),
        **state,
        **_story(record),
    }


# Figures that the terminal shows, by their names here and in the verdict.
_SAID = {"dead": "num_dead", "dead_fraction": "dead_fraction", "zero_rate": "zero_rate"}


def _state(history: History) -> dict[str, Any]:
    rates = history.rates.values[-1]
    seen = ~np.isnan(rates)
    dead, units = int(history.dead_now.sum()), history.rates.num_units
    return {
        "num_units": units,
        "step": int(history.rates.steps[-1]),
        "num_steps": history.rates.steps.size,
        "seen": bool(seen.any()),
        "dead": dead,
        "dead_fraction": history.dead_fraction[-1],
        "zero_rate": rates[seen].mean(dtype=np.float64) if seen.any() else None,
        "wholly_dead": bool(seen.any()) and dead == units,
    }


def _story(record: LayerRecord) -> dict[str, Any]:
    history = record.history
    dates, numbers = np.unique(
        history.rates.steps[history.dead_since[history.died]], return_counts=True
    )
    return {
        "born_dead": history.born_dead.sum(),
        "died_at": [dates, numbers],
        "died_again": history.died_again.sum(),
        "recovered": history.recovered.sum(),
        "reinitialised": 0 if record.marks is None else np.count_nonzero(record.marks.values > 0),
        "sparkline": _sparkline(history.rates.steps, history.dead_fraction),
    }


def _sparkline(steps: NDArray[np.int64], fraction: NDArray[np.float64]) -> dict[str, Any]:
    """Thin out a curve by the largest value of each stretch: a short death stays visible."""
    stretches = np.array_split(np.arange(steps.size), min(steps.size, SPARKLINE_POINTS))
    shown = np.where(np.isnan(fraction), -np.inf, fraction)
    peaks = np.array([shown[stretch].max() for stretch in stretches])
    return {"steps": [steps[it[-1]] for it in stretches], "dead_fraction": peaks}
