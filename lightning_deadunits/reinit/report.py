"""ReinitReport: what one event did; the same in one line, and that of all events of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Units = dict[str, list[int]]

_MOST_LAYERS = 3
_MOST_LETTERS = 160


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

    def note(self, text: str) -> None:
        """Say something else, once."""
        if text not in self.notes:
            self.notes.append(text)

    def follow(self, layer: str, copy: str, renamed: Callable[[str], str]) -> None:
        """Take units of a copy of a layer for re-initialised, which got the edits of that layer.

        Args:
            layer: The layer.
            copy: The same layer in the copy.
            renamed: Returns the name that a parameter has there.
        """
        refused = self.refused.get(copy, {})
        same = [unit for unit in self.reinitialised.get(layer, ()) if unit in refused]
        if not same:
            return
        self.reinitialised = {**self.reinitialised, copy: same}
        left = {unit: why for unit, why in refused.items() if unit not in same}
        refusals = {**self.refused, copy: left}
        self.refused = {name: own for name, own in refusals.items() if own}
        for names in (self.made_by, self.read_by):
            names[copy] = [renamed(name) for name in names.get(layer, ())]
        self.note(f"Note: {copy} follows {layer}: its units got the same weights.")

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
        alive, dead = len(each_of(self.alive)), len(each_of(self.died_again))
        return (
            f"Of those re-initialised{_at(self)}, {alive} fire at the next look, {dead} died again."
        )

    def __str__(self) -> str:
        """Say it in plain words."""
        if not (self.reinitialised or self.refused or self.planned):
            return "\n".join((f"Nothing to re-initialise{_at(self)}.", *self.notes))
        lines = [f"Re-initialised {_count(self.num_reinitialised)}{_at(self)}."]
        if self.planned:
            planned = _count(len(each_of(self.planned)))
            lines = [f"Dry run{_at(self)}: would re-initialise {planned}."]
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


def _at(event: ReinitReport) -> str:
    return "" if event.step is None else f" at step {event.step}"


def _count(number: int) -> str:
    return "1 unit" if number == 1 else f"{number} units"


def _listed(units: list[int]) -> str:
    word = "unit" if len(units) == 1 else "units"
    return f"{word} {', '.join(map(str, units))}"


def headline(event: ReinitReport) -> str:
    """Return one line about an event, whatever its size; ``str(event)`` has the details."""
    at = _at(event)
    if event.planned:
        done = f"Dry run{at}: would re-initialise {_units(event.planned)}"
    elif event.reinitialised:
        done = f"Re-initialised {_units(event.reinitialised)}{at}"
    else:
        done = f"Re-initialised no unit{at}"
    refused = [reason for own in event.refused.values() for reason in own.values()]
    return f"{done}; {_refused(refused)}." if refused else f"{done}."


def _units(units: Units) -> str:
    """Say how many units, and in which layers."""
    first = [f"{len(own)} in {name}" for name, own in units.items()][:_MOST_LAYERS]
    if more := len(units) - len(first):
        first.append(f"the others in {more} more layer{'s' * (more > 1)}")
    return f"{_count(len(each_of(units)))} ({', '.join(first)})"


def _refused(reasons: Iterable[str]) -> str:
    """Say how many were refused and what the most common reason is, in one line."""
    counts = Counter(reasons)
    ((reason, number), *_) = counts.most_common(1)
    why = " ".join(reason.split())
    if len(why) > _MOST_LETTERS:
        why = f"{why[:_MOST_LETTERS]}..."
    if len(counts) > 1:
        why = f"{number} of them because {why}"
    return f"{counts.total()} refused: {why}"


@dataclass
class Summary:
    """Sums over the events of a training; survives a resume, for checkpoints hold its fields.

    Attributes:
        revived: How many units were re-initialised, each as often as it was.
        died_again: How many of them did not fire at the first verdict afterwards.
        refused: Layer to unit to reason, of those that were refused last time.
    """

    revived: int = 0
    died_again: int = 0
    refused: dict[str, dict[int, str]] = field(default_factory=dict)

    def add(self, event: ReinitReport) -> None:
        """Take an event."""
        self.revived += event.num_reinitialised
        for name, reasons in event.refused.items():
            self.refused.setdefault(name, {}).update(reasons)
        for name, units in event.reinitialised.items():
            for unit in units:
                self.refused.get(name, {}).pop(unit, None)

    def told(self, due: int = 0, dry_run: bool = False) -> str:
        """Say it in one line; empty if there was no event and nothing is due.

        Args:
            due: How many units were still due when the training ended.
            dry_run: Whether nothing was to be done.
        """
        reasons = [reason for own in self.refused.values() for reason in own.values()]
        if not (self.revived or reasons or due):
            return ""
        refused = _refused(reasons) if reasons else "0 refused"
        waiting = f"; {due} due when it ended" if due else ""
        what = "Re-initialisation in this training" + ", a dry run" * dry_run
        return (
            f"{what}: {self.revived} revived, {self.died_again} of them dead again at the next "
            f"look; {refused}{waiting}."
        )
