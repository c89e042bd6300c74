"""The figures of all validations: what was logged, kept to be shown without a logger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lightning_deadunits.reporting.evidence import Window
from lightning_deadunits.reporting.export import import_pandas
from lightning_deadunits.reporting.report import DeadUnitsReport

if TYPE_CHECKING:
    import pandas

MOST_VALIDATIONS = 2000
"""From then on every second one is left out, as TensorBoard thins out what it shows."""
TOTAL = "total"
_FIELDS = ("step", "num_units", "num_dead", "zero_rate", "reinitialised")


@dataclass(frozen=True)
class Figures:
    """What a validation found in one layer.

    Attributes:
        step: Training step of the validation.
        num_units: Units of the layer.
        num_dead: How many of them were dead.
        zero_rate: Mean zero rate of the units.
        reinitialised: How many were re-initialised since the validation before.
    """

    step: int
    num_units: int
    num_dead: int
    zero_rate: float
    reinitialised: int = 0

    @property
    def dead_fraction(self) -> float:
        """Share of the units that were dead."""
        return self.num_dead / self.num_units


class Course:
    """Figures by layer and validation, of layers that saw a value."""

    def __init__(self) -> None:
        self._figures: dict[str, list[Figures]] = {}
        self._steps: list[int] = []
        self._fresh: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def windows(self) -> list[Window]:
        """The steps between validations, of which nothing else is known here."""
        starts = [0, *self._steps[:-1]]
        return [Window(start, end) for start, end in zip(starts, self._steps, strict=True)]

    @property
    def latest(self) -> Figures | None:
        """The total of the latest validation, None before the first one."""
        return self._totals()[-1] if self._figures else None

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order in which they were first seen."""
        return list(self._figures)

    def of(self, layer: str) -> list[Figures]:
        """Return the figures of a layer, or of :data:`TOTAL`, by step."""
        return self._totals() if layer == TOTAL else self._figures[layer]

    def record(self, report: DeadUnitsReport, step: int) -> None:
        """Take note of a validation."""
        self._steps.append(step)
        for name, layer in report.layers.items():
            if layer.observations:
                figures = Figures(
                    step, layer.num_units, len(layer.dead), layer.mean_zero_rate,
                    self._fresh.pop(name, 0),
                )  # fmt: skip
                self._figures.setdefault(name, []).append(figures)
        if len(self._steps) > MOST_VALIDATIONS:
            self._thin_out()

    def note_reinitialised(self, layer: str, units: int) -> None:
        """Take note of so many units that were re-initialised since the latest validation."""
        self._fresh[layer] = self._fresh.get(layer, 0) + units

    def _thin_out(self) -> None:
        """Leave out every second validation, never the latest."""
        self._steps = self._steps[::-1][::2][::-1]
        kept = set(self._steps)
        self._figures = {name: _thinned(own, kept) for name, own in self._figures.items()}

    def _totals(self) -> list[Figures]:
        """Sum over layers; the zero rate is the mean over all units."""
        by_step: dict[int, list[Figures]] = {}
        for own in self._figures.values():
            for figures in own:
                by_step.setdefault(figures.step, []).append(figures)
        return [
            Figures(
                step,
                units := sum(it.num_units for it in of_step),
                sum(it.num_dead for it in of_step),
                sum(it.zero_rate * it.num_units for it in of_step) / units,
                sum(it.reinitialised for it in of_step),
            )
            for step, of_step in sorted(by_step.items())
        ]

    def _rows(self) -> Iterator[dict[str, Any]]:
        for name in [*self._figures, TOTAL] if self._figures else []:
            for figures in self.of(name):
                yield {"layer": name, "dead_fraction": figures.dead_fraction, **vars(figures)}

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a data frame, see :meth:`History.to_dataframe`."""
        pandas = import_pandas("history.to_dataframe()")
        columns = ["step", "layer", *_FIELDS[1:3], "dead_fraction", *_FIELDS[3:]]
        frame = pandas.DataFrame(list(self._rows()), columns=columns)
        return frame.sort_values("step", kind="stable", ignore_index=True)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        return {
            "steps": list(self._steps),
            "fresh": dict(self._fresh),
            "figures": {
                name: torch.tensor(
                    [[getattr(it, field) for field in _FIELDS] for it in own], dtype=torch.float64
                )
                for name, own in self._figures.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._steps, self._fresh = list(state["steps"]), dict(state["fresh"])
        self._figures = {
            name: [
                Figures(int(step), int(units), int(dead), rate, int(fresh))
                for step, units, dead, rate, fresh in own.tolist()
            ]
            for name, own in state["figures"].items()
        }


def _thinned(figures: list[Figures], kept: set[int]) -> list[Figures]:
    """Leave out figures; the next one tells of their re-initialisations."""
    left, carried = [], 0
    for it in figures:
        if it.step in kept:
            left.append(replace(it, reinitialised=it.reinitialised + carried))
            carried = 0
        else:
            carried += it.reinitialised
    return left
