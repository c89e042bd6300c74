"""What re-initialisation has done, in one line: an event, and all events of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_deadunits.reinit.report import ReinitReport, Units

_MOST_LAYERS = 3
_MOST_LETTERS = 160


def headline(event: ReinitReport) -> str:
    """Return one line about an event, whatever its size; ``str(event)`` has the details."""
    at = "" if event.step is None else f" at step {event.step}"
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
    number = sum(map(len, units.values()))
    first = [f"{len(own)} in {name}" for name, own in units.items()][:_MOST_LAYERS]
    if more := len(units) - len(first):
        first.append(f"the others in {more} more layer{'s' * (more > 1)}")
    return f"{number} unit{'s' * (number != 1)} ({', '.join(first)})"


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

    def told(self, due: int = 0) -> str:
        """Say it in one line; empty if there was no event and nothing is due.

        Args:
            due: How many units were still due when the training ended.
        """
        reasons = [reason for own in self.refused.values() for reason in own.values()]
        if not (self.revived or reasons or due):
            return ""
        refused = _refused(reasons) if reasons else "0 refused"
        waiting = f"; {due} due when it ended" if due else ""
        return (
            f"Re-initialisation in this training: {self.revived} revived, {self.died_again} of "
            f"them died again; {refused}{waiting}."
        )
