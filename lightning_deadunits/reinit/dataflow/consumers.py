"""Find consumers: tag the units at their spots, replay, and see which channels show them.

Every contraction returns what it returned before, so that only direct consumers show. Then the
units are clamped to zero and noise is put on everything else (:mod:`~.noise`): a channel that
reads a unit must stay zero, or its weights read something else as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lightning_deadunits.reinit.dataflow.noise import live_channels
from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.propagate import Place, Shown, tagged_on_tapes
from lightning_deadunits.reinit.ops.operation import Channel, Operation

Fed = dict[Channel, set[UnitKey]]
"""Channels of calls, and which units feed them."""

STEERS = (
    "its values may steer the model (Python reads them, or they choose what is used): what it does "
    "then cannot be traced"
)

_REASONS = {
    "result": "the model's output depends on it without a layer in between, or what is logged or "
    "kept does",
    "python": STEERS,
}

_OTHER_USE = (
    "uses the weights that read it, too (they are shared, or parametrised and so computed of "
    "themselves), on"
)

_UNREAD = "no layer reads it, unless by way of integers, which cannot be traced"

_HINTS = {
    "norm": "{} normalises it together with others before it is read",
    "product": "{} multiplies it with what is no plain parameter: with other activations, or with "
    "weights that are computed, pruned or parametrised",
    "opaque": "{} reads it, whose weights are no plain parameters (computed, pruned or "
    "parametrised), or cannot be traced to single units",
}


@dataclass
class Consumers:
    """What consumes the units.

    Attributes:
        channels: Channels of calls, and which units feed them.
        refused: Units whose consumers cannot be silenced, with the reason.
        hints: What stands between a unit and its consumers, should they turn out to be shared.
        sources: The units that feed each unit, as where what was rectified is rectified again.
    """

    channels: Fed = field(default_factory=dict)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    hints: dict[UnitKey, str] = field(default_factory=dict)
    sources: dict[UnitKey, set[UnitKey]] = field(default_factory=dict)

    def refuse(self, units: Iterable[UnitKey], reason: str) -> None:
        """Refuse units that are not refused yet, rather for what stands in between."""
        for unit in units:
            self.refused.setdefault(unit, self.hints.get(unit, reason))


def find_consumers(passes: Passes, units: list[UnitKey]) -> Consumers:
    """Find all that consumes some units, and whether it consumes anything else by those weights."""
    found = judged(passes, units, *tagged_on_tapes(passes, units, units))
    left = [unit for unit in units if unit in found.refused]
    if left and any(call.reads_by_factor for call in passes.calls):
        others = tagged_on_tapes(passes, left, left, factors=True)
        _take_over(found, judged(passes, left, *others), left)
    return found


def judged(
    passes: Passes,
    units: Iterable[UnitKey],
    shown: Iterable[Shown[UnitKey]],
    lost: Iterable[UnitKey],
) -> Consumers:
    """Return the consumers of units by where their tags have shown; lost ones had none."""
    found = _resolved(passes, shown)
    found.refused |= dict.fromkeys(lost, STEERS)
    direct = found.channels
    found.channels = _with_all_uses(passes, direct)
    for channel, what in live_channels(passes, found.channels).items():
        reads = "reads it together with" if channel in direct else _OTHER_USE
        found.refuse(found.channels[channel], f"{passes.calls[channel[0]].title} {reads} {what}")
    found.refuse(set(units).difference(*found.channels.values()), _UNREAD)
    return found


def _take_over(found: Consumers, other: Consumers, units: list[UnitKey]) -> None:
    """Have units that a factor of their own can silence consumed by that factor alone."""
    saved = {unit for unit in units if unit not in other.refused}
    channels = {channel: fed_by - saved for channel, fed_by in found.channels.items()}
    for channel, fed_by in other.channels.items():
        channels[channel] = channels.get(channel, set()) | (fed_by & saved)
    found.channels = {channel: fed_by for channel, fed_by in channels.items() if fed_by}
    found.refused = {unit: why for unit, why in found.refused.items() if unit not in saved}


def _resolved(passes: Passes, shown: Iterable[Shown[UnitKey]]) -> Consumers:
    """Follow units that feed other units to what consumes those."""
    spots, calls = passes.spots, passes.calls
    fed_by: dict[tuple[Place, int], set[UnitKey]] = {}
    fed: dict[UnitKey, set[UnitKey]] = {}
    for unit, place, channel in shown:
        fed_by.setdefault((place, channel), set()).add(unit)
        if place.kind == "unit" and (at := (spots[place.of].layer, channel)) != unit:
            fed.setdefault(unit, set()).add(at)
    before = {unit: _ancestors(unit, fed) for unit in set().union(*fed.values())}
    found = Consumers(sources=before)
    refusals: list[tuple[str, set[UnitKey]]] = []
    for (place, channel), direct in fed_by.items():
        units = set(direct).union(*(before.get(unit, set()) for unit in direct))
        if place.kind == "consumer":
            found.channels[(place.of, channel)] = units
        elif place.kind in _HINTS:
            hint = _HINTS[place.kind].format(calls[place.of].title)
            found.hints |= {unit: hint for unit in units if unit not in found.hints}
        elif place.kind in _REASONS:
            refusals.append((_REASONS[place.kind], units))
    for reason, units in refusals:
        found.refuse(units, reason)
    return found


def _ancestors(unit: UnitKey, fed: Mapping[UnitKey, set[UnitKey]]) -> set[UnitKey]:
    """Return the units that feed a unit, directly or through others."""
    found: set[UnitKey] = set()
    fresh = {unit}
    while fresh:
        fresh = {source for source, places in fed.items() if places & fresh} - found
        found |= fresh
    return found


def _with_all_uses(passes: Passes, channels: Mapping[Channel, set[UnitKey]]) -> Fed:
    """Add to channels that consume units the same channels of other calls with the same weights.

    There they may read something else, or a unit that is not due: noise will show.
    """
    calls = passes.calls
    found: Fed = {channel: set(units) for channel, units in channels.items()}
    calls_of: dict[tuple[object, ...], list[int]] = {}
    for index, call in enumerate(calls):
        if call.weight is not None and call.read_axes:
            calls_of.setdefault(_weight_of(passes, call), []).append(index)
    for (index, channel), units in channels.items():
        for other in calls_of.get(_weight_of(passes, calls[index]), ()):
            found.setdefault((other, channel), set()).update(units)
    return found


def _weight_of(passes: Passes, operation: Operation) -> tuple[object, ...]:
    """Return what tells the weights of a call, and how it reads them."""
    view = operation.weight
    assert view is not None
    place = view.storage_offset(), tuple(view.shape), tuple(view.stride())
    return (id(passes.parameters.owner(view)), place, operation.kind, operation.read_sizes)
