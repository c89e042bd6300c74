"""A report outside of the process: primitives for JSON, a data frame with one row per unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_deadunits.reporting.report import ALIVE, DeadUnitsReport, LayerReport

if TYPE_CHECKING:
    import pandas

VERSION = 1
"""Of the dictionary's layout, for those who read it later."""


def as_dict(report: DeadUnitsReport, per_unit: bool) -> dict[str, Any]:
    """Return a report as primitives, see :meth:`DeadUnitsReport.to_dict`."""
    layers = {name: _layer_as_dict(layer, per_unit) for name, layer in report.layers.items()}
    return {
        "version": VERSION,
        "step": report.step,
        "num_units": report.num_units,
        "num_dead": report.num_dead,
        "dead_fraction": _number(report.dead_fraction),
        "every_n_batches": report.every_n_batches,
        "diagnosis": report.diagnosis,
        "cause": report.cause,
        "unjudged": dict(report.unjudged),
        "layers": layers,
    }


def _layer_as_dict(layer: LayerReport, per_unit: bool) -> dict[str, Any]:
    states = layer.states
    figures: dict[str, Any] = {
        "made_by": list(layer.made_by),
        "num_units": layer.num_units,
        "num_dead": len(layer.dead),
        "dead_fraction": _number(layer.dead_fraction),
        "zero_rate": _number(layer.mean_zero_rate),
        "wholly_dead": layer.wholly_dead,
        "dead_since": layer.since(),
        "born_dead": states.count("born dead"),
        "died_again": states.count("died again after re-initialisation"),
        "recovered": states.count("recovered"),
        "reinitialised": 0 if layer.reinitialised is None else int(layer.reinitialised.sum()),
        "unit_dim": layer.unit_dim,
        "observations": layer.observations,
        "dead_threshold": layer.dead_threshold,
        "atol": layer.atol,
        "nonfinite": layer.nonfinite,
        "axis_assumed": layer.axis_assumed,
        "order_assumed": layer.order_assumed,
    }
    if per_unit:
        figures["units"] = {
            "zeros": layer.zeros.tolist(),
            "zero_rate": [_number(value) for value in layer.zero_rate.tolist()],
            "dead": layer.dead_mask.tolist(),
            "dead_since": _dates(layer),
            "state": states,
        }
    return figures


def _dates(layer: LayerReport) -> list[int | None]:
    """Return the step since which each unit is dead, None if it is not or nobody knows."""
    if layer.dead_since is None:
        return [None] * layer.num_units
    return [None if step == ALIVE else step for step in layer.dead_since.tolist()]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def as_dataframe(report: DeadUnitsReport) -> pandas.DataFrame:
    """Return a report as a data frame with one row per unit."""
    pandas = import_pandas("report.to_dataframe()")
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "layer", "unit", "zero_rate", "zeros", "observations", "dead", "dead_since", "state",
            "made_by",
        )
    }  # fmt: skip
    for name, layer in report.layers.items():
        units = layer.num_units
        columns["layer"] += [name] * units
        columns["unit"] += range(units)
        columns["zero_rate"] += layer.zero_rate.tolist()
        columns["zeros"] += layer.zeros.tolist()
        columns["observations"] += [layer.observations] * units
        columns["dead"] += layer.dead_mask.tolist()
        columns["dead_since"] += _dates(layer)
        columns["state"] += layer.states
        columns["made_by"] += [", ".join(layer.made_by)] * units
    # Int64, with a capital: a step that may be missing and still is a whole number.
    return pandas.DataFrame(columns).astype({"dead_since": "Int64", "dead": bool})


def import_pandas(what: str) -> Any:
    """Return pandas, an optional dependency.

    Raises:
        ModuleNotFoundError: If it is not installed, with the way to install it.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs pandas: pip install pandas, or lightning-deadunits[dataframe]."
        ) from error
    return pandas
