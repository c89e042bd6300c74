"""Since when units are dead: what one validation cannot tell and all together can."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reporting.diagnosis import Deaths, diagnose
from lightning_deadunits.reporting.report import ALIVE, DeadUnitsReport, LayerReport


@dataclass
class _Life:
    """What is known of one layer's units.

    Attributes:
        dead_since: Step at which each unit was first seen dead in a row, ``ALIVE`` if it is alive.
        ever_alive: Whether each unit was alive at any validation.
    """

    dead_since: Tensor
    ever_alive: Tensor


class History:
    """Follows every unit over validations; survives a resume by its ``state_dict``."""

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._deaths = Deaths()

    def record(self, report: DeadUnitsReport, step: int) -> DeadUnitsReport:
        """Take note of one validation and return its report, completed with the history.

        Args:
            report: The verdicts of this validation.
            step: Training step at which it took place.
        """
        died = sum(self._record_layer(layer, step) for layer in report.layers.values())
        self._deaths = self._deaths.then(step, died)
        completed = self.complete(report)
        return replace(completed, step=step, diagnosis=diagnose(self._deaths, completed))

    def complete(self, report: DeadUnitsReport) -> DeadUnitsReport:
        """Return a report with what is known of its units, without taking note of it."""
        layers = {name: self._complete_layer(layer) for name, layer in report.layers.items()}
        return replace(report, layers=layers)

    def _record_layer(self, layer: LayerReport, step: int) -> int:
        """Return how many units died since the last validation."""
        if not layer.observations:
            return 0
        dead = layer.dead_mask
        life = self._lives.get(layer.name)
        if life is None or len(life.dead_since) != layer.num_units:
            self._lives[layer.name] = _Life(torch.where(dead, step, ALIVE), ~dead)
            return 0
        died = dead & (life.dead_since == ALIVE)
        since = torch.where(died, step, torch.where(dead, life.dead_since, ALIVE))
        self._lives[layer.name] = _Life(since, life.ever_alive | ~dead)
        return int(died.sum())

    def _complete_layer(self, layer: LayerReport) -> LayerReport:
        life = self._lives.get(layer.name)
        if life is None or len(life.dead_since) != layer.num_units:
            return layer
        dead = layer.dead_mask
        since = torch.where(dead, life.dead_since, ALIVE)
        return replace(layer, dead_since=since, born_dead=dead & ~life.ever_alive)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only: Lightning resumes with ``weights_only=True``."""
        return {
            "deaths": self._deaths._asdict(),
            "lives": {
                name: {"dead_since": life.dead_since, "ever_alive": life.ever_alive}
                for name, life in self._lives.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._deaths = Deaths(**state["deaths"])
        self._lives = {name: _Life(**life) for name, life in state["lives"].items()}
