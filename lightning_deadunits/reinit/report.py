"""ReinitReport: what one event did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Units = dict[str, list[int]]


@dataclass
class ReinitReport:
    """What was re-initialised, with which weights, and what was refused.

    Attributes:
        reinitialised: Layer to the units that were re-initialised.
        refused: Layer to unit to the reason why it was not. It is as it was, bit for bit.
        made_by: Layer to the parameters that got fresh values.
        read_by: Layer to the parameters that were silenced.
        silent: Layer to those re-initialised units that still do not fire on the example.
        planned: Layer to the units that a dry run would have re-initialised.
        notes: What else there is to say.
        step: Training step of the event, None outside of training.
        passes: How many replays of recorded passes it took.
        alive: Layer to the units that fire at the first verdict after the event; None before it.
        died_again: Layer to those that do not.
    """

    reinitialised: Units = field(default_factory=dict)
    refused: dict[str, dict[int, str]] = field(default_factory=dict)
    made_by: dict[str, list[str]] = field(default_factory=dict)
    read_by: dict[str, list[str]] = field(default_factory=dict)
    silent: Units = field(default_factory=dict)
    planned: Units = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    step: int | None = None
    passes: int = 0
    alive: Units | None = None
    died_again: Units | None = None

    @property
    def num_reinitialised(self) -> int:
        """Number of units re-initialised, of all layers."""
        return sum(len(units) for units in self.reinitialised.values())

    @property
    def num_refused(self) -> int:
        """Number of units refused, of all layers."""
        return sum(len(units) for units in self.refused.values())

    def refuse(self, reasons: Mapping[tuple[str, int], str]) -> None:
        """Take units that are refused, with the reasons."""
        for (layer, unit), reason in reasons.items():
            self.refused.setdefault(layer, {})[unit] = reason
        refused = sorted(self.refused.items())
        self.refused = {layer: dict(sorted(own.items())) for layer, own in refused}

    def tell_weights(self, layer: str, made_by: list[str], read_by: list[str]) -> None:
        """Name parameters that make units of a layer, and those that read them."""
        for known, names in ((self.made_by, made_by), (self.read_by, read_by)):
            known[layer] = list(dict.fromkeys((*known.get(layer, ()), *names)))

    def note(self, text: str) -> None:
        """Say something else, once."""
        if text not in self.notes:
            self.notes.append(text)

    def tell_outcome(self, dead: Mapping[str, Tensor]) -> None:
        """Take the first verdict after the event: which of its units live.

        Args:
            dead: Layer to which of its units are dead, bool of shape ``(U,)``.
        """
        judged = [unit for unit in each_of(self.reinitialised) if unit[0] in dead]
        self.died_again = by_layer((layer, unit) for layer, unit in judged if dead[layer][unit])
        self.alive = by_layer((layer, unit) for layer, unit in judged if not dead[layer][unit])

    @property
    def outcome(self) -> str:
        """What became of its units, in a sentence; empty before the first verdict after it."""
        if self.alive is None or self.died_again is None:
            return ""
        alive, dead = (sum(map(len, own.values())) for own in (self.alive, self.died_again))
        at = "" if self.step is None else f" at step {self.step}"
        return f"Of those re-initialised{at}, {alive} fire at the next look, {dead} died again."

    def __str__(self) -> str:
        """Say it in plain words."""
        at = "" if self.step is None else f" at step {self.step}"
        if not (self.reinitialised or self.refused or self.planned):
            return "\n".join((f"Nothing to re-initialise{at}.", *self.notes))
        lines = [f"Re-initialised {_count(self.num_reinitialised)}{at}."]
        if self.planned:
            lines = [
                f"Dry run{at}: would re-initialise {_count(sum(map(len, self.planned.values())))}."
            ]
        for layer, units in (self.planned or self.reinitialised).items():
            lines.append(f"  {layer}: {_listed(units)}")
            lines.append(f"    fresh: {', '.join(self.made_by.get(layer, ()))}")
            lines.append(f"    silenced: {', '.join(self.read_by.get(layer, ()))}")
            if layer in self.silent:
                lines.append(f"    still silent on the example: {_listed(self.silent[layer])}")
        if self.refused:
            lines.append(f"Refused {_count(self.num_refused)}.")
        for layer, reasons in self.refused.items():
            for reason in dict.fromkeys(reasons.values()):
                units = [unit for unit, own in reasons.items() if own == reason]
                lines.append(f"  {layer}: {_listed(units)}: {reason}")
        if self.outcome:
            lines.append(self.outcome)
        return "\n".join((*lines, *self.notes))


def by_layer(units: Iterable[tuple[str, int]]) -> Units:
    """Sort pairs of layer and unit by layer."""
    found: Units = {}
    for layer, unit in units:
        found.setdefault(layer, []).append(unit)
    return {layer: sorted(of_layer) for layer, of_layer in found.items()}


def each_of(units: Units) -> list[tuple[str, int]]:
    """List pairs of layer and unit."""
    return [(layer, unit) for layer, of_layer in units.items() for unit in of_layer]


def _count(number: int) -> str:
    return "1 unit" if number == 1 else f"{number} units"


def _listed(units: list[int]) -> str:
    word = "unit" if len(units) == 1 else "units"
    return f"{word} {', '.join(map(str, units))}"
