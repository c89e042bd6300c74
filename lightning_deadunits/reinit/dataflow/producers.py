"""Find producers: tag every output channel, replay, decode the tags at the unit.

Each contraction and each norm returns what it returned before, its channels NaN by their tags. A
unit then shows who makes it. First a *candidate* is confirmed, which is right for most networks and
cheap: the last layer before the unit that is as wide, and for a norm the last one before it. What
is not confirmed in full is searched for: all channels of all layers at once, and for sums of layers
(residual streams) which layers are in it, and which of their channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from typing import Any

from torch import Size

from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey, WeightCall
from lightning_deadunits.reinit.dataflow.propagate import (
    ChannelTags,
    Place,
    bit_by_bit,
    on_tape,
    tagged,
    width_of,
)
from lightning_deadunits.reinit.dataflow.side_effects import SideEffects
from lightning_deadunits.reinit.dataflow.tags import Codebook
from lightning_deadunits.reinit.ops import Channel, Operation

SpotUnit = tuple[int, int]
"""A spot, and a unit of its layer."""

_MOST_PRODUCERS = 64
_MOST_MIXED = 124
"""How many channels of one call are tagged bit by bit."""

STEERS = "its pre-activation steers the model"
TOGETHER = "several channels make it together, which cannot be told apart"


@dataclass
class Producers:
    """What makes the units, and the calls before a norm that makes them.

    Attributes:
        of: Channels of calls that make each unit, at all of its spots.
        before: Channel of the call before a norm that makes a unit.
        refused: Units with no producer that could be found, with the reason.
    """

    of: dict[UnitKey, list[Channel]] = field(default_factory=dict)
    before: dict[Channel, Channel] = field(default_factory=dict)
    refused: dict[UnitKey, str] = field(default_factory=dict)


# --- candidates -----------------------------------------------------------------------------------


def confirm_candidates(passes: Passes, units: Iterable[UnitKey]) -> tuple[Producers, SideEffects]:
    """Return producers that are confirmed, for the units where they are, and links on the way."""
    units = list(units)
    found, effects = Producers(), SideEffects()
    confirmed = set(units)
    for tape in passes.distinct():
        own = [u for u in units if passes.recorded.of_layer(u[0], tape)]
        candidates = {u: c for u in own if (c := _candidates(passes, tape, u))}
        candidates = _distinct(candidates)
        search = partial(_confirmed, passes, tape, own, candidates)
        good = on_tape(passes, tape, search) if candidates else None
        confirmed -= {u for u in own if good is None or u not in good[0]}
        if good is not None:
            for unit in good[0]:
                for maker, *before in candidates[unit]:
                    found.of.setdefault(unit, []).append(maker)
                    found.before.update((maker, channel) for channel in before)
            effects.links += good[1]
    _add_twins(passes, found)
    effects.links = [
        pair
        for link, follows in effects.links
        for pair in zip(_twins(passes, link), _twins(passes, follows), strict=True)
    ]
    found.of = {u: c for u, c in found.of.items() if u in confirmed}
    kept = {channel for channels in found.of.values() for channel in channels}
    kept |= {found.before[channel] for channel in kept if channel in found.before}
    effects.links = [(link, follows) for link, follows in effects.links if follows in kept]
    return found, effects


def _distinct(candidates: dict[UnitKey, list[list[Channel]]]) -> dict[UnitKey, list[list[Channel]]]:
    """Leave out units with a candidate that another unit has, too."""
    owners: dict[Channel, set[UnitKey]] = {}
    for unit, chains in candidates.items():
        for channel in (channel for chain in chains for channel in chain):
            owners.setdefault(channel, set()).add(unit)
    shared = {unit for own in owners.values() if len(own) > 1 for unit in own}
    return {unit: chains for unit, chains in candidates.items() if unit not in shared}


def _candidates(passes: Passes, tape: int, unit: UnitKey) -> list[list[Channel]] | None:
    """Return per spot the candidate and what is before it if it is a norm; None if one lacks."""
    chains = []
    for spot in passes.recorded.of_layer(unit[0], tape):
        if (chain := _candidate(passes, spot, unit[1])) is None:
            return None
        chains.append(chain)
    return chains


def _candidate(passes: Passes, number: int, unit: int) -> list[Channel] | None:
    spot = passes.recorded.spots[number]
    width = Size([spot.activation.shape[axis] for axis in spot.dims]).numel()
    kinds = ("contraction", "norm")
    # Rather one that is trained: a frozen one may be a branch that is added.
    index = _last(passes, spot.tape, spot.reached, width, kinds, trained=True)
    if index is None:
        index = _last(passes, spot.tape, spot.reached, width, kinds)
    if index is None:
        return None
    operation = passes.recorded.calls[index].operation
    if operation.kind == "contraction" or operation.mixes:
        return [(index, unit)]
    before = _last(passes, spot.tape, index, width, ("contraction",))
    return None if before is None else [(index, unit), (before, unit)]


def _last(
    passes: Passes, tape: int, end: int, width: int, kinds: Sequence[str], trained: bool = False
) -> int | None:
    for index in range(end - 1, passes.recorded.first_call[tape] - 1, -1):
        call = passes.recorded.calls[index]
        if (
            call.out is not None
            and call.operation.kind in kinds
            and width_of(passes, index) == width
            and not (trained and _is_frozen(passes, call.operation))
        ):
            return index
    return None


def _is_frozen(passes: Passes, operation: Operation) -> bool:
    # A view tells nothing, for replays run without gradients.
    owners = (passes.parameters.owner(view) for view in (operation.weight, operation.bias))
    trained = [owner.requires_grad for owner in owners if owner is not None]
    return bool(trained) and not any(trained)


def _confirmed(
    passes: Passes,
    tape: int,
    units: list[UnitKey],
    candidates: dict[UnitKey, list[list[Channel]]],
    cells: int,
) -> tuple[set[UnitKey], list[tuple[Channel, Channel]]]:
    """Return the units whose candidates make them, and nothing else, with links on the way."""

    def replays(book: Codebook, code_of: Mapping[UnitKey, int]) -> Iterator[Any]:
        codes = {
            channel: code
            for unit, code in code_of.items()
            for chain in candidates[unit]
            for channel in chain
        }
        return ChannelTags(passes, tape, book, codes, units, everywhere=True).run()

    seen: dict[UnitKey, set[tuple[Place, int]]] = {unit: set() for unit in candidates}
    for unit, place, channel in tagged(list(candidates), cells, replays):
        seen[unit].add((place, channel))
    good, links = set(), []
    for unit, chains in candidates.items():
        spots = passes.recorded.of_layer(unit[0], tape)
        expected = {(Place("unit", spot), unit[1]) for spot in spots}
        expected |= {(Place("norm", c[0][0]), c[0][1]) for c in chains if len(c) > 1}
        if expected == {(p, c) for p, c in seen[unit] if p.kind != "link"}:
            good.add(unit)
            at_links = [(p.of, c) for p, c in seen[unit] if p.kind == "link"]
            # Any producer of the unit will do: whatever is on its way belongs to the unit.
            links += [(link, chains[0][0]) for link in at_links]
    return good, links


# --- a search over all channels ----------------------------------------------------------------


class _Shown:
    """What units and norms showed in a search over channels.

    Attributes:
        units: What each unit showed, by spot.
        norms: What each channel that a norm reads showed.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.channels = list(channels)
        self.units: dict[SpotUnit, set[int]] = {}
        self.norms: dict[Channel, set[int]] = {}
        self.channel_of: dict[int, Channel] = {}
        self.book: Codebook

    def read(
        self,
        passes: Passes,
        tape: int,
        units: Sequence[UnitKey],
        cells: int,
    ) -> _Shown:
        """Run the search."""
        self.book = Codebook.of(len(self.channels), cells)
        code_of = dict(zip(self.channels, self.book.codes.tolist(), strict=True))
        self.channel_of = {code: channel for channel, code in code_of.items()}
        for place, channel, code in ChannelTags(passes, tape, self.book, code_of, units).run():
            if place.kind == "unit":
                self.units.setdefault((place.of, channel), set()).add(code)
            elif place.kind == "norm":
                self.norms.setdefault((place.of, channel), set()).add(code)
        return self

    def decoded(self, codes: Iterable[int]) -> list[Channel] | None:
        """Return the channels behind some tags, None if some of them are mixed."""
        codes = list(codes)
        if any(code not in self.channel_of for code in codes):
            return None
        return list(dict.fromkeys(self.channel_of[code] for code in codes))

    def behind(self, codes: Iterable[int]) -> list[Channel]:
        """Return the channels that may be in mixtures of tags."""
        return [self.channel_of[own] for code in codes for own in self.book.inside(code)]


def find_producers(passes: Passes, units: Iterable[UnitKey], *, factors: bool = False) -> Producers:
    """Find the channels whose weights make some units.

    Args:
        passes: The passes.
        units: The units.
        factors: Whether to look for factors per channel, instead of contractions and norms.
    """
    found = Producers()
    units = list(units)
    for tape in passes.distinct():
        own = [u for u in units if passes.recorded.of_layer(u[0], tape)]
        if not own:
            continue
        calls = [
            index
            for index, call in enumerate(passes.recorded.calls)
            if call.tape == tape and _makes_something(call, factors)
        ]
        search = partial(_search, passes, tape, own, calls)
        result = on_tape(passes, tape, search) if calls else ({}, {})
        if result is None:
            for unit in own:
                found.refused.setdefault(unit, STEERS)
            continue
        makers, before = result
        found.before |= before
        for unit in own:
            spots = passes.recorded.of_layer(unit[0], tape)
            for spot in spots:
                _judge(passes, found, unit, spot, makers.get((spot, unit[1]), []))
    found.of = {unit: own for unit, own in found.of.items() if unit not in found.refused}
    _add_twins(passes, found)
    return found


def _twins(passes: Passes, channel: Channel) -> list[Channel]:
    return [(index, channel[1]) for index in passes.with_twins(channel[0])]


def _add_twins(passes: Passes, found: Producers) -> None:
    """Add what was found to be on the tapes that are as the one that was searched."""
    found.of = {
        unit: [twin for channel in own for twin in _twins(passes, channel)]
        for unit, own in found.of.items()
    }
    found.before = {
        norm: own
        for pair in found.before.items()
        for norm, own in zip(*(_twins(passes, channel) for channel in pair), strict=True)
    }


def _judge(
    passes: Passes, found: Producers, unit: UnitKey, spot: int, makers: list[Channel] | None
) -> None:
    if makers:
        known = found.of.setdefault(unit, [])
        known += [channel for channel in makers if channel not in known]
    elif makers is None:
        found.refused.setdefault(unit, TOGETHER)
    else:
        found.refused.setdefault(unit, _unmade(passes, spot))


def _unmade(passes: Passes, number: int) -> str:
    """Say why no producer was found: perhaps one that cannot be traced was seen before the unit."""
    spot = passes.recorded.spots[number]
    first = passes.recorded.first_call[spot.tape]
    for call in reversed(passes.recorded.calls[first : spot.reached]):
        if call.operation.kind == "opaque":
            return f"no layer that makes it was found, unless {call.title}, which cannot be traced"
    return "no layer that makes it was found"


def _makes_something(call: WeightCall, factors: bool) -> bool:
    if factors:
        return call.out is not None and call.operation.makes_by_factor
    return call.out is not None and call.operation.kind in ("contraction", "norm")


Makers = dict[SpotUnit, list[Channel] | None]


def _search(
    passes: Passes, tape: int, units: list[UnitKey], calls: list[int], cells: int
) -> tuple[Makers, dict[Channel, Channel]]:
    """Return what makes each unit at each spot of a tape, and what is before norms that do."""
    shown = _Shown(_channels_of(passes, calls)).read(passes, tape, units, cells)
    makers: Makers = {at: shown.decoded(codes) for at, codes in shown.units.items()}
    mixed = [at for at, channels in makers.items() if channels is None]
    if mixed:
        makers |= _separated(passes, tape, units, shown, mixed, calls, cells)
    before = {}
    for maker in {channel for channels in makers.values() for channel in channels or ()}:
        channels = shown.decoded(shown.norms.get(maker, ()))
        if channels and len(channels) == 1:
            before[maker] = channels[0]
    return makers, before


def _channels_of(passes: Passes, calls: Iterable[int]) -> list[Channel]:
    return [(index, channel) for index in calls for channel in range(width_of(passes, index))]


# --- sums of layers ----------------------------------------------------------------------------


def _separated(
    passes: Passes,
    tape: int,
    units: list[UnitKey],
    shown: _Shown,
    mixed: list[SpotUnit],
    calls: list[int],
    cells: int,
) -> Makers:
    """Return the producers of units that showed mixtures, None for what cannot be told apart.

    Which calls are in a mixture is asked bit by bit. Most sums are over equal channels; else each
    call is asked alone, and its channels bit by bit where several of them make the unit.
    """

    def replays(book: Codebook, code_of: Mapping[Channel, int]) -> Iterator[Any]:
        return ChannelTags(passes, tape, book, code_of, units, together=True).run()

    inside: dict[SpotUnit, list[int]] = {at: [] for at in mixed}
    for item, place, channel in bit_by_bit([(index, 0) for index in calls], cells, replays):
        if place.kind == "unit" and (at := (place.of, channel)) in inside:
            inside[at].append(item[0])
    found: Makers = {at: _same_channels(passes, at, shown, inside[at]) for at in mixed}
    left = [at for at in mixed if not found[at] and len(inside[at]) <= _MOST_PRODUCERS]
    alone: Makers = {at: [] for at in left}
    for index in dict.fromkeys(index for at in left for index in inside[at]):
        asked = [at for at in left if index in inside[at]]
        for at, channels in _within(passes, tape, units, index, asked, cells).items():
            known = alone[at]
            alone[at] = None if known is None or channels is None else known + channels
    return found | alone


def _same_channels(
    passes: Passes, at: SpotUnit, shown: _Shown, calls: Iterable[int]
) -> list[Channel] | None:
    """Return the channels of the unit's own number if they explain its mixture."""
    spot, number = at
    width = passes.recorded.num_units(passes.recorded.spots[spot].layer)
    code_of = {channel: code for code, channel in shown.channel_of.items()}
    same = [(index, number) for index in sorted(calls, reverse=True)]
    same = [channel for channel in same if width_of(passes, channel[0]) == width]
    explained = reduce(or_, (code_of[channel] for channel in same), 0)
    mixture = reduce(or_, shown.units[at], 0)
    return same if same and explained == mixture and len(same) <= _MOST_PRODUCERS else None


def _within(
    passes: Passes,
    tape: int,
    units: list[UnitKey],
    index: int,
    asked: list[SpotUnit],
    cells: int,
) -> Makers:
    """Return which channels of one call make some units."""
    shown = _Shown(_channels_of(passes, [index])).read(passes, tape, units, cells)
    found: Makers = {at: shown.decoded(shown.units.get(at, ())) for at in asked}
    mixed = [at for at in asked if found[at] is None]
    behind = sorted({channel for at in mixed for channel in shown.behind(shown.units[at])})
    if not mixed or len(behind) > _MOST_MIXED:
        return found

    def replays(book: Codebook, code_of: Mapping[Channel, int]) -> Iterator[Any]:
        return ChannelTags(passes, tape, book, code_of, units).run()

    exact: dict[SpotUnit, list[Channel]] = {at: [] for at in mixed}
    for item, place, channel in bit_by_bit(behind, cells, replays):
        if place.kind == "unit" and (at := (place.of, channel)) in exact:
            exact[at].append(item)
    return found | exact
