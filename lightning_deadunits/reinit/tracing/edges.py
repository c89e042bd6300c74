"""Which unit was seen where, and what that means for it: readers, other units, or dead ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.sightings import Place


@dataclass
class Readers:
    """What reads the units.

    Attributes:
        channels: Channels of calls, and which units feed them.
        refused: Units whose readers cannot be silenced, with the reason.
        hints: What stands between a unit and its readers, should they turn out to be shared.
    """

    channels: dict[Channel, set[UnitKey]] = field(default_factory=dict)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    hints: dict[UnitKey, str] = field(default_factory=dict)


class Edges:
    """Collects which units were seen at which places."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Place, int], set[UnitKey]] = {}

    def add(self, place: Place, channel: int, units: Iterable[UnitKey]) -> None:
        """Take down that units were seen at a channel of a place."""
        self._seen.setdefault((place, channel), set()).update(units)

    def resolved(self, session: Session) -> Readers:
        """Follow units that feed other units to what reads those."""
        everywhere = self._with_ancestors()
        found = Readers()
        for (place, channel), units in everywhere.items():
            if place.kind == "read":
                found.channels[(int(place.of), channel)] = units
            elif place.kind in _HINTS:
                hint = _HINTS[place.kind].format(session.recorded.calls[int(place.of)].title)
                found.hints |= {unit: hint for unit in units if unit not in found.hints}
        reason = "the model's output depends on it without a layer in between"
        for (place, _), units in everywhere.items():
            if place.kind == "output":
                found.refused.update({unit: found.hints.get(unit, reason) for unit in units})
        return found

    def _with_ancestors(self) -> dict[tuple[Place, int], set[UnitKey]]:
        fed: dict[UnitKey, set[UnitKey]] = {}
        for (place, channel), units in self._seen.items():
            if place.kind == "unit":
                for unit in units - {(str(place.of), channel)}:
                    fed.setdefault(unit, set()).add((str(place.of), channel))
        before = {unit: _ancestors(unit, fed) for unit in set().union(*fed.values())}
        return {
            key: set(units).union(*(before.get(unit, set()) for unit in units))
            for key, units in self._seen.items()
        }


_HINTS = {
    "norm": "{} normalises it together with others before it is read",
    "product": "{} multiplies it with what is no plain parameter: with other activations, or with "
    "weights that are computed, pruned or parametrised",
    "opaque": "{} reads it, whose weights are no plain parameters (computed, pruned or "
    "parametrised), or cannot be traced to single units",
}


def _ancestors(unit: UnitKey, fed: Mapping[UnitKey, set[UnitKey]]) -> set[UnitKey]:
    """Return the units that feed a unit, directly or through others."""
    found: set[UnitKey] = set()
    fresh = {unit}
    while fresh:
        fresh = {source for source, places in fed.items() if places & fresh} - found
        found |= fresh
    return found
