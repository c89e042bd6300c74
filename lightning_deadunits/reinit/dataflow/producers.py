"""Find producers: tag every output channel, replay, decode the tags at the unit.

Each contraction and each norm returns what it returned before, its channels NaN by their tags. A
unit then shows who makes it. :func:`candidates` guesses, which is right for most networks: the last
layer before the unit that is as wide, and for a norm the last one before it. What is not confirmed
(:mod:`~lightning_deadunits.reinit.dataflow.trace`) is searched for by :func:`find_producers`: all
channels of all layers at once, and for sums of layers (residual streams) which layers are in it,
and which of their channels. :func:`find_side_effects` then tells what else reads the producers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.propagate import (
    Place,
    Shown,
    TagReplay,
    bit_by_bit,
    on_tapes,
    tagged_on_tapes,
)
from lightning_deadunits.reinit.dataflow.tags import Codebook
from lightning_deadunits.reinit.ops.operation import Channel, Operation

At = tuple[Place, int]
"""A place, and a channel of it."""

_MOST_PRODUCERS = 64
_MOST_MIXED = 124
"""How many channels of one call are tagged bit by bit."""

_UNTOLD: Channel = (-1, -1)
"""Stands for the producers of a unit that cannot be told apart."""

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


# --- candidates ---------------------------------------------------------------------------------


def candidates(passes: Passes, units: list[UnitKey]) -> dict[UnitKey, list[list[Channel]]]:
    """Guess per unit and spot the channel that makes it, and what is before it if it is a norm.

    Units are left out that have none at some spot, or one that another unit has, too.
    """
    spots_of = {layer: passes.of_layer(layer) for layer, _ in units}
    calls_of = {spot: _candidate(passes, spot) for own in spots_of.values() for spot in own}
    found: dict[UnitKey, list[list[Channel]]] = {}
    owners: dict[Channel, set[UnitKey]] = {}
    for layer, unit in units:
        chains = [[(call, unit) for call in calls_of[spot]] for spot in spots_of[layer]]
        for channel in (channel for chain in chains for channel in chain):
            owners.setdefault(channel, set()).add((layer, unit))
        if all(chains):
            found[(layer, unit)] = chains
    shared = {unit for own in owners.values() if len(own) > 1 for unit in own}
    return {unit: chains for unit, chains in found.items() if unit not in shared}


def _candidate(passes: Passes, number: int) -> list[int]:
    """Return the call that is likely to make the units of a spot; behind a norm, two calls."""
    spot, width, calls = passes.spots[number], passes.num_units_at(number), passes.calls
    fitting = [
        index
        for index in range(passes.first_call[spot.tape], spot.reached)
        if _makes_something(calls[index], factors=False) and passes.width(index) == width
    ]
    # A norm without weights is no candidate where anything else may make the unit.
    fitting = [i for i in fitting if _has_weights(calls[i])] or fitting
    # Rather one that is trained: a frozen one may be a branch that is added.
    trained = [index for index in fitting if not _is_frozen(passes, calls[index])]
    if not fitting:
        return []
    index = (trained or fitting)[-1]
    if calls[index].kind == "contraction" or calls[index].mixes:
        return [index]
    before = [i for i in fitting if i < index and calls[i].kind == "contraction"]
    return [index, before[-1]] if before else []


def _has_weights(operation: Operation) -> bool:
    return operation.weight is not None or operation.bias is not None


def _is_frozen(passes: Passes, operation: Operation) -> bool:
    # A view tells nothing, for replays run without gradients.
    owners = (passes.parameters.owner(view) for view in (operation.weight, operation.bias))
    trained = [owner.requires_grad for owner in owners if owner is not None]
    return bool(trained) and not any(trained)


# --- a search over all channels -----------------------------------------------------------------


def find_producers(passes: Passes, units: list[UnitKey], *, factors: bool = False) -> Producers:
    """Find the channels whose weights make some units: of contractions and norms, or factors."""

    def search(tape: int, cells: int) -> list[Shown[Channel]]:
        calls = [
            index
            for index, call in enumerate(passes.calls)
            if call.tape == tape and _makes_something(call, factors)
        ]
        if not (calls and passes.on_tape(tape, units)):
            return []
        return _Search(passes, tape, units, cells).all_of(calls)

    shown, lost = on_tapes(passes, search)
    found, makers = Producers(), dict[At, list[Channel]]()
    for channel, place, own in shown:
        makers.setdefault((place, own), []).append(channel)
    for (place, own), channels in makers.items():
        if place.kind == "norm" and len(channels) == 1 and channels[0] != _UNTOLD:
            found.before[(place.of, own)] = channels[0]
    for unit in units:
        for spot in passes.of_layer(unit[0]):
            channels = makers.get((Place("unit", spot), unit[1]), [])
            if passes.spots[spot].tape in lost:
                found.refused.setdefault(unit, STEERS)
            elif _UNTOLD in channels:
                found.refused.setdefault(unit, TOGETHER)
            elif not channels:
                found.refused.setdefault(unit, _unmade(passes, spot))
            known = found.of.setdefault(unit, [])
            known += [channel for channel in channels if channel not in known]
    found.of = {unit: own for unit, own in found.of.items() if unit not in found.refused}
    return found


def _unmade(passes: Passes, number: int) -> str:
    """Say why no producer was found: perhaps one that cannot be traced was seen before the unit."""
    spot = passes.spots[number]
    first = passes.first_call[spot.tape]
    for call in reversed(passes.calls[first : spot.reached]):
        if call.kind == "opaque":
            return f"no layer that makes it was found, unless {call.title}, which cannot be traced"
    return "no layer that makes it was found"


def _makes_something(call: Operation, factors: bool) -> bool:
    if factors:
        return call.out is not None and call.makes_by_factor
    return call.out is not None and call.kind in ("contraction", "norm")


class _Search:
    """A search over channels of one tape."""

    def __init__(self, passes: Passes, tape: int, units: list[UnitKey], cells: int) -> None:
        self._passes, self._tape, self._units, self._cells = passes, tape, units, cells

    def all_of(self, calls: list[int]) -> list[Shown[Channel]]:
        """Return which channels of some calls show at units and at norms."""
        everything = self._codes_shown(calls)
        found = {at: everything.channels(at) for at in everything.codes}
        mixed = [at for at, own in found.items() if _UNTOLD in own and at[0].kind == "unit"]
        if mixed:
            found |= self._separated(everything, mixed, calls)
        return [(channel, *at) for at, channels in found.items() for channel in channels]

    def _replay(
        self, book: Codebook[Any], tags: Mapping[Channel, int] | None = None
    ) -> Iterator[tuple[Place, int, int]]:
        tags = book.code_of if tags is None else tags
        return TagReplay(self._passes, self._tape, book, self._units, tags).run()

    def _channels(self, index: int) -> list[Channel]:
        return [(index, channel) for channel in range(self._passes.width(index))]

    def _codes_shown(self, calls: Iterable[int]) -> _Codes:
        channels = [channel for index in calls for channel in self._channels(index)]
        found = _Codes(Codebook.of(channels, self._cells))
        for place, channel, code in self._replay(found.book):
            found.codes.setdefault((place, channel), set()).add(code)
        return found

    # --- sums of layers ---------------------------------------------------------------------

    def _separated(
        self, everything: _Codes, mixed: list[At], calls: list[int]
    ) -> dict[At, list[Channel]]:
        """Return the producers of units that showed mixtures.

        Which calls are in a mixture is tagged bit by bit. Most sums are over equal channels; else
        each call is searched alone, and its channels bit by bit where several make the unit.
        """
        inside: dict[At, list[int]] = {at: [] for at in mixed}

        def replay(book: Codebook[int]) -> Iterator[tuple[Place, int, int]]:
            whole = {c: code for i, code in book.code_of.items() for c in self._channels(i)}
            return self._replay(book, whole)

        for index, place, channel in bit_by_bit(calls, self._cells, replay):
            if (place, channel) in inside:
                inside[(place, channel)].append(index)
        found = {at: self._same_channels(everything, at, inside[at]) for at in mixed}
        left = [at for at in mixed if _UNTOLD in found[at] and len(inside[at]) <= _MOST_PRODUCERS]
        found |= {at: [] for at in left}
        for index in dict.fromkeys(index for at in left for index in inside[at]):
            wanted = [at for at in left if index in inside[at]]
            for at, channels in self._within(index, wanted).items():
                found[at] += channels
        return found

    def _same_channels(self, everything: _Codes, at: At, calls: Iterable[int]) -> list[Channel]:
        """Return the channels of the unit's own number if they explain its mixture."""
        width = self._passes.num_units_at(at[0].of)
        same = [(index, at[1]) for index in sorted(calls, reverse=True)]
        same = [channel for channel in same if self._passes.width(channel[0]) == width]
        explained = reduce(or_, (everything.book.code_of[channel] for channel in same), 0)
        mixture = reduce(or_, everything.codes[at], 0)
        told = same and explained == mixture and len(same) <= _MOST_PRODUCERS
        return same if told else [_UNTOLD]

    def _within(self, index: int, wanted: list[At]) -> dict[At, list[Channel]]:
        """Return which channels of one call make some units."""
        shown = self._codes_shown([index])
        found = {at: shown.channels(at) for at in wanted}
        mixed = [at for at in wanted if _UNTOLD in found[at]]
        behind = {c for at in mixed for code in shown.codes[at] for c in shown.book.inside(code)}
        if not mixed or len(behind) > _MOST_MIXED:
            return found
        exact: dict[At, list[Channel]] = {at: [] for at in mixed}
        for item, place, channel in bit_by_bit(sorted(behind), self._cells, self._replay):
            if (place, channel) in exact:
                exact[(place, channel)].append(item)
        return found | exact


@dataclass
class _Codes:
    """Which codes each place showed."""

    book: Codebook[Channel]
    codes: dict[At, set[int]] = field(default_factory=dict)

    def channels(self, at: At) -> list[Channel]:
        """Return the channels that a place showed."""
        codes = self.codes.get(at, set())
        if not codes <= self.book.item_of.keys():
            return [_UNTOLD]
        return [self.book.item_of[code] for code in codes]


# --- side effects -------------------------------------------------------------------------------

_EXPECTED = ("unit", "product")
_TITLES = {"result": "the model's output", "python": "the model's control flow (Python)"}


@dataclass
class SideEffects:
    """What notices that units are made otherwise, though the units are clamped.

    Attributes:
        of: Producers that something else notices, with what it is.
        links: Channels of parameters added or multiplied on the way, and the producer they follow.
    """

    of: dict[Channel, str] = field(default_factory=dict)
    links: list[tuple[Channel, Channel]] = field(default_factory=list)


def find_side_effects(
    passes: Passes,
    producers: list[Channel],
    units: list[UnitKey],
    before: Mapping[Channel, Channel],
) -> SideEffects:
    """Tag some producers, clamp the units, and see who notices.

    A producer that something else reads, before the activation or beside it, cannot get fresh
    weights. The norm that is known to come behind it is nothing else.
    """
    calls = passes.calls
    # Every step of an unrolled cell has producers of its own, mixed in all steps that follow.
    shown, lost = tagged_on_tapes(
        passes, producers, units, wanted=lambda place: place.kind not in _EXPECTED
    )
    found = SideEffects(dict.fromkeys(lost, "the model's control flow"))
    for producer, place, channel in shown:
        if place.kind == "link":
            found.links.append(((place.of, channel), producer))
        elif place.kind not in _EXPECTED and not (
            place.kind == "norm" and before.get((place.of, channel)) == producer
        ):
            found.of.setdefault(producer, _TITLES.get(place.kind) or calls[place.of].title)
    return found
