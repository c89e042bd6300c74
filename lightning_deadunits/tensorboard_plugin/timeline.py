"""A run over its steps: the dead of all layers, and the events that gave units a new life."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from lightning_deadunits.tensorboard_plugin.metadata import UnreadableTagError
from lightning_deadunits.tensorboard_plugin.reading import LayerRecord


def total_dead(records: Collection[LayerRecord | UnreadableTagError]) -> dict[str, Any]:
    """Add up the dead of all layers, step by step.

    Returns:
        ``steps``, and for each how many units were ``dead`` of how many ``units``, of those layers
        that saw something there.
    """
    dead: Counter[int] = Counter()
    units: Counter[int] = Counter()
    for record in records:
        if isinstance(record, UnreadableTagError):
            continue
        history = record.history
        seen = history.saw_something
        for step, number, width in zip(
            history.rates.steps[seen].tolist(),
            history.num_dead[seen].tolist(),
            history.rates.widths[seen].tolist(),
            strict=True,
        ):
            dead[step] += number
            units[step] += width
    steps = sorted(units)
    return {
        "steps": steps,
        "dead": [dead[step] for step in steps],
        "units": [units[step] for step in steps],
    }


def reinitialisations(
    records: Collection[LayerRecord | UnreadableTagError],
) -> list[dict[str, int]]:
    """List at which steps units of any layer were re-initialised, and how many."""
    events: Counter[int] = Counter()
    for record in records:
        if isinstance(record, UnreadableTagError) or record.marks is None:
            continue
        numbers = np.count_nonzero(record.marks.values > 0, axis=1)  # False for NaN
        for step, number in zip(record.marks.steps.tolist(), numbers.tolist(), strict=True):
            events[step] += number
    return [{"step": step, "units": events[step]} for step in sorted(events) if events[step]]
