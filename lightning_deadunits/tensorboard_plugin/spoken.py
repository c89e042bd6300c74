"""What the callback said of a validation, in the figures and words of the terminal.

It is one string of JSON per validation, of which the latest is read. Where it speaks of the step
that the rates end with, its figures are shown rather than figures computed from the rates: those
are float32, and a mean over them may differ from the terminal's in the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np

from lightning_deadunits.tensorboard_plugin.source import Source


def read_verdict(source: Source, run: str) -> dict[str, Any]:
    """Return the latest verdict, empty if there is none or it cannot be read."""
    for event in reversed(source.verdict(run)):
        try:
            verdict = json.loads(np.asarray(event.numpy).item())
        except (ValueError, TypeError):
            return {}
        if isinstance(verdict, dict) and isinstance(verdict.get("layers"), dict):
            return verdict
    return {}


def of_layer(verdict: dict[str, Any], layer: str, step: int) -> dict[str, Any]:
    """Return what a verdict says of a layer at a step, empty if it speaks of another one."""
    said = verdict.get("layers", {}).get(layer)
    return said if isinstance(said, dict) and verdict.get("step") == step else {}


def network_order(
    verdict: dict[str, Any], layers: Collection[str], first_seen: dict[str, float]
) -> list[str]:
    """Put layers into the order in which they ran.

    Args:
        verdict: Names them in that order.
        layers: Names of the layers.
        first_seen: When the first rates of each were written: within a validation they are written
            in that order, too, which serves where there is no verdict.
    """
    places = {name: place for place, name in enumerate(verdict.get("layers", {}))}
    return sorted(
        layers,
        key=lambda name: (
            places.get(name, len(places)),
            first_seen.get(name, float("inf")),
            name,
        ),
    )
