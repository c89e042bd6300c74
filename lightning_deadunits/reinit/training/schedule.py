"""Which units are due: dead for long enough, not re-initialised too often nor too recently."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.names import selects_named
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.report import ReinitReport, Units

_LONGEST_PAUSE = 64


@dataclass
class _Layer:
    """What is known of the units of one layer, all int64 of shape ``(U,)``.

    Attributes:
        streak: How many verdicts in a row found the unit dead.
        pause: For how many verdicts it is to be left alone.
        revivals: How often it was re-initialised.
        refusals: How often it was refused in a row.
    """

    streak: Tensor
    pause: Tensor
    revivals: Tensor
    refusals: Tensor

    @classmethod
    def of(cls, num_units: int) -> _Layer:
        return cls(*(torch.zeros(num_units, dtype=torch.int64) for _ in range(4)))


@dataclass
class Schedule:
    """Decides, verdict by verdict."""

    config: ReinitConfig
    names: LayerNames = field(default_factory=LayerNames)
    _layers: dict[str, _Layer] = field(default_factory=dict)

    def judge(self, dead: Mapping[str, Tensor]) -> Units:
        """Take one verdict and return the units that are due.

        Args:
            dead: Layer to which of its units are dead now, bool of shape ``(U,)``.
        """
        due = {}
        patterns = self.config.patterns
        for name, verdict in dead.items():
            if not selects_named(name, self.names, *patterns):
                continue
            layer = self._layers.get(name)
            if layer is None or len(layer.streak) != len(verdict):
                layer = self._layers[name] = _Layer.of(len(verdict))
            units = self._due(layer, verdict)
            if units:
                due[name] = units
        return due

    def _due(self, layer: _Layer, dead: Tensor) -> list[int]:
        layer.streak = torch.where(dead, layer.streak + 1, 0)
        ready = self._ready(layer, layer.streak)
        layer.pause = (layer.pause - 1).clamp(min=0)
        units: list[int] = torch.nonzero(ready).flatten().tolist()
        # The longest dead first; among equals the first one, on every process alike.
        units.sort(key=lambda unit: (-int(layer.streak[unit]), unit))
        return sorted(units[: self.config.limit(len(dead))])

    def may_be_due(self) -> bool:
        """Tell whether the next verdict may have a unit due; without any verdict yet, too."""
        if not self._layers:
            return self.config.patience == 1
        return any(bool(self._ready(own, own.streak + 1).any()) for own in self._layers.values())

    def _ready(self, layer: _Layer, streak: Tensor) -> Tensor:
        """Return which units are due if they were found dead so many times in a row."""
        ready = (streak >= (self.config.patience or 1)) & (layer.pause == 0)
        if self.config.max_per_unit is not None:
            ready &= layer.revivals < self.config.max_per_unit
        return ready

    def note(self, event: ReinitReport) -> None:
        """Take note of an event; what it refused is tried again, but ever more rarely."""
        for name, revived in event.reinitialised.items():
            layer = self._layers[name]
            layer.revivals[revived] += 1
            layer.refusals[revived] = 0
            layer.streak[revived] = 0
            layer.pause[revived] = self.config.grace_period or 0
        for name, refused in event.refused.items():
            layer = self._layers[name]
            for unit in refused:
                layer.refusals[unit] += 1
                layer.pause[unit] = min(2 ** int(layer.refusals[unit]), _LONGEST_PAUSE)

    def give_up(self, layer: str, units: list[int]) -> None:
        """Take note of units that are not to be tried again for as long as can be."""
        self._layers[layer].refusals[units] = _LONGEST_PAUSE.bit_length()
        self._layers[layer].pause[units] = _LONGEST_PAUSE

    def state_dict(self) -> dict[str, Any]:
        """Return tensors by layer."""
        return {name: deepcopy(vars(own)) for name, own in self._layers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._layers = {name: _Layer(**deepcopy(own)) for name, own in state.items()}
