"""Trace units: the weights that make them and those that read them, or why they are refused.

One replay is enough where nothing is unusual: each unit's tag is put on the channels that are
guessed to make it, and on the unit itself behind its activation. If it shows at the unit, and else
only at channels that the noise then finds silent with the unit, then these channels make it, and
nothing but the unit and these consumers is concerned. All others are searched for: their consumers
with the units tagged alone, their producers among all channels, and what else reads these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lightning_deadunits.reinit.dataflow.consumers import find_consumers, judged
from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.producers import (
    Producers,
    SideEffects,
    candidates,
    find_producers,
    find_side_effects,
)
from lightning_deadunits.reinit.dataflow.propagate import Place, tagged_on_tapes
from lightning_deadunits.reinit.ops.operation import Channel, Where
from lightning_deadunits.reinit.weights import WeightSlice

Role = Literal["weight", "bias", "scale", "shift"]


@dataclass(frozen=True, eq=False)
class Part:
    """The weights of one call that belong to one unit.

    Attributes:
        index: The call.
        channel: Channel of what the call makes (or reads) that is the unit's.
        role: What they do there.
        weights: The weights.
    """

    index: int
    channel: int
    role: Role
    weights: WeightSlice


@dataclass(eq=False)
class UnitTrace:
    """All weights that touch a unit.

    Attributes:
        makes: Those that make it.
        reads: Those that read it.
        statistics: Norms whose running statistics of a channel are those of the unit, and the
            channel that each of them normalises.
        shares: Channels that it has together with other units: they are a coupled group, and all of
            them are revived, or none.
        fixed: The same of norms that are frozen, and go by their statistics in training, too.
        left: Why some of what makes it is left as it is, None if nothing is. Whether the rest is
            enough shows on the example: the unit must fire, or it is refused with this reason.
    """

    makes: list[Part] = field(default_factory=list)
    reads: list[Part] = field(default_factory=list)
    statistics: dict[Channel, Channel] = field(default_factory=dict)
    shares: set[tuple[str, Channel]] = field(default_factory=set)
    fixed: dict[Channel, Channel] = field(default_factory=dict)
    left: str | None = None


Traces = dict[UnitKey, UnitTrace]


@dataclass(eq=False)
class Trace:
    """What tracing found.

    Attributes:
        units: The units that can be re-initialised, with their weights.
        refused: The others, with the reason.
        lost: What refused units share with others, which must be refused with them.
    """

    units: Traces = field(default_factory=dict)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    lost: Traces = field(default_factory=dict)


def trace(passes: Passes, units: list[UnitKey], *, guess: bool = True) -> Trace:
    """Find the weights of some units, and refuse those that share theirs with what is alive.

    A guess that is confirmed is enough, though others may add to it; a thorough search, without
    one, takes some more replays.
    """
    found = Trace()
    if guess:
        _confirm(passes, units, found)
    if any(unit not in found.units for unit in units):
        _search(passes, units, found)
    return found


# --- a guess, confirmed -------------------------------------------------------------------------


def _confirm(passes: Passes, units: list[UnitKey], found: Trace) -> None:
    """Trace the units of which what was guessed shows to be right."""
    chains_of = candidates(passes, units)
    if not chains_of:
        return
    makers = {unit: [c for chain in chains for c in chain] for unit, chains in chains_of.items()}
    shown, lost = tagged_on_tapes(passes, units, units, makers=makers)
    seen: dict[UnitKey, set[tuple[Place, int]]] = {unit: set() for unit in chains_of}
    for unit, place, channel in shown:
        seen.setdefault(unit, set()).add((place, channel))
    confirmed = [
        unit
        for unit, chains in chains_of.items()
        if unit not in lost and _is_confirmed(passes, unit, chains, seen)
    ]
    if not confirmed:
        return
    consumers = judged(passes, units, shown, lost)
    for unit in confirmed:
        if unit not in consumers.refused:
            own = found.units[unit] = UnitTrace()
            for chain in chains_of[unit]:
                _add_maker(passes, own, *chain)
            # Whatever is on its way belongs to the unit.
            for place, channel in sorted(seen[unit]):
                if place.kind == "link" and _is_before(passes, place.of, unit):
                    own.makes += making_parts(passes, (place.of, channel))
    _add_consumers(passes, found, consumers.channels)
    found.lost.clear()


def _is_confirmed(
    passes: Passes,
    unit: UnitKey,
    chains: list[list[Channel]],
    seen: Mapping[UnitKey, set[tuple[Place, int]]],
) -> bool:
    """Tell whether a unit showed what makes it, and neither of them anything but consumers."""
    expected = {(Place("unit", spot), unit[1]) for spot in passes.of_layer(unit[0])}
    expected |= {(Place("norm", chain[0][0]), chain[0][1]) for chain in chains if len(chain) > 1}
    rest = seen[unit] - expected
    return expected <= seen[unit] and all(p.kind in ("consumer", "link") for p, _ in rest)


def _is_before(passes: Passes, index: int, unit: UnitKey) -> bool:
    """Tell whether a call came before a spot of a unit, on the same tape."""
    spots = (passes.spots[spot] for spot in passes.of_layer(unit[0]))
    tape = passes.calls[index].tape
    return any(spot.tape == tape and index < spot.reached for spot in spots)


# --- a search -----------------------------------------------------------------------------------


def _search(passes: Passes, units: list[UnitKey], found: Trace) -> None:
    """Trace the units that are not traced yet."""
    consumers = find_consumers(passes, units)
    found.refused |= {u: why for u, why in consumers.refused.items() if u not in found.units}
    left = [unit for unit in units if unit not in found.units and unit not in found.refused]
    # What is refused is not clamped, as if it were not due: it must hide no side effect.
    clamped = [unit for unit in units if unit not in found.refused]
    if left:
        _search_producers(passes, left, clamped, found)
    # A norm that is written by hand may leave a unit nothing of its own but its scale.
    left = [unit for unit in left if unit in found.refused]
    if left and any(call.makes_by_factor for call in passes.calls):
        _search_producers(passes, left, clamped, found, factors=True)
    for unit in left:
        sources = [own for s in consumers.sources.get(unit, ()) if (own := found.units.get(s))]
        if sources and unit not in found.units:
            _follow(unit, sources, found)
    _add_consumers(passes, found, consumers.channels)


def _follow(unit: UnitKey, sources: list[UnitTrace], found: Trace) -> None:
    """Have a unit made by what makes those that feed it, the tags of which end at these."""
    own = found.units[unit] = UnitTrace()
    for source in sources:
        own.makes += [part for part in source.makes if part not in own.makes]
        own.statistics |= source.statistics
        own.shares |= {share for share in source.shares if share[0] == "make"}
    del found.refused[unit]


def _search_producers(
    passes: Passes,
    units: list[UnitKey],
    clamped: list[UnitKey],
    found: Trace,
    *,
    factors: bool = False,
) -> None:
    """Trace units by what makes them; one that was refused before keeps that reason."""
    producers = find_producers(passes, units, factors=factors)
    found.refused = producers.refused | found.refused
    makers = {channel for channels in producers.of.values() for channel in channels}
    if not makers:
        return
    producers.before = {norm: own for norm, own in producers.before.items() if norm in makers}
    marked = sorted(makers | set(producers.before.values()))
    effects = find_side_effects(passes, marked, clamped, producers.before)
    for unit, channels in producers.of.items():
        own = UnitTrace()
        reasons = [_add_producer(passes, own, maker, producers, effects) for maker in channels]
        # One producer of its own is enough, as in a residual block: what else is added stays.
        if None in reasons:
            found.units[unit] = own
            found.refused.pop(unit, None)
        else:
            found.refused.setdefault(unit, str(reasons[0]))


def _add_producer(
    passes: Passes, own: UnitTrace, maker: Channel, producers: Producers, effects: SideEffects
) -> str | None:
    """Add the weights of one producer to a trace; return why not, if so."""
    call = passes.calls[maker[0]]
    if maker in effects.of:
        return f"{call.title} makes it, and {effects.of[maker]} reads the same before it"
    before = producers.before.get(maker) if call.kind == "norm" else None
    before = None if before in effects.of else before
    if call.kind == "norm" and before is None and call.weight is None:
        return f"{call.title} normalises what makes it, and has no weights of its own"
    _add_maker(passes, own, maker, before)
    for link, follows in effects.links:
        if follows in (maker, before):
            own.makes += making_parts(passes, link)
    return None


# --- weights ------------------------------------------------------------------------------------


def _add_maker(
    passes: Passes, own: UnitTrace, maker: Channel, before: Channel | None = None
) -> None:
    """Add what makes a unit to its trace: a channel, and the one before it if that is a norm's."""
    if before is not None:
        own.makes += making_parts(passes, before)
        own.statistics[maker] = before
        own.shares.add(("make", before))
    own.makes += making_parts(passes, maker)
    own.shares.add(("make", maker))


def _add_consumers(passes: Passes, found: Trace, channels: Mapping[Channel, set[UnitKey]]) -> None:
    """Add what reads units to their traces, once; refused ones share it with the others."""
    for channel, fed_by in channels.items():
        for unit in sorted(fed_by):
            own = found.units.get(unit) or found.lost.setdefault(unit, UnitTrace())
            if unit in found.units and ("read", channel) not in own.shares:
                own.reads += reading_parts(passes, channel)
            own.shares.add(("read", channel))


def making_parts(passes: Passes, maker: Channel) -> list[Part]:
    """Return the weights that make a channel of what a call returns, or add to it on its way."""
    index, channel = maker
    operation = passes.calls[index]
    weight, where = operation.weight, operation.makes(channel)
    if operation.kind == "link":
        # One number for all channels belongs to none of them.
        role: Role = "scale" if operation.scales else "shift"
        return _parts(passes, maker, role, weight, where) if where else []
    norm = operation.kind == "norm"
    return [
        *_parts(passes, maker, "scale" if norm else "weight", weight, where),
        *_parts(
            passes, maker, "shift" if norm else "bias", operation.bias, operation.biases(channel)
        ),
    ]


def reading_parts(passes: Passes, reader: Channel) -> list[Part]:
    """Return the weights that a channel is read with."""
    operation = passes.calls[reader[0]]
    where = operation.reads(reader[1])
    if operation.kind != "norm":
        return _parts(passes, reader, "weight", operation.weight, where)
    return [
        *_parts(passes, reader, "scale", operation.weight, where),
        *_parts(passes, reader, "shift", operation.bias, where),
    ]


def _parts(
    passes: Passes, of: Channel, role: Role, view: Tensor | None, where: Where
) -> list[Part]:
    """Return the part of a parameter; none of what is no parameter, as a frozen norm's buffers."""
    if view is None or passes.parameters.owner(view) is None:
        return []
    return [Part(*of, role, passes.parameters.part(view, where))]


def own_weights(own: UnitTrace) -> list[list[Part]]:
    """Return the parts of a unit, those of the same weights together.

    Weights may be used several times: in a siamese encoder, an unrolled cell, or simply on several
    tapes. That is no reason to refuse, as long as each use is the unit's own.
    """
    found: list[list[Part]] = []
    for part in (*own.makes, *own.reads):
        same = (parts for parts in found if parts[0].weights.is_same(part.weights))
        if (parts := next(same, None)) is None:
            found.append(parts := [])
        parts.append(part)
    return found


def other_uses(passes: Passes, weights: WeightSlice, calls: set[int]) -> list[str]:
    """Return the titles of calls that use some weights, if any is no use of the unit's own."""
    foreign = passes.users_of(weights, known=calls)
    every = (*sorted(calls), *foreign) if foreign else ()
    return list(dict.fromkeys(passes.calls[index].title for index in every))


# --- coupled groups -----------------------------------------------------------------------------


def coupled_groups(traces: Traces) -> list[list[UnitKey]]:
    """Return the units in groups that share weights, so that one cannot go without the others."""
    group_of: dict[tuple[str, Channel], list[UnitKey]] = {}
    for unit, own in traces.items():
        merged = [unit]
        for other in {id(g): g for share in own.shares if (g := group_of.get(share))}.values():
            merged += other
        for member in merged:
            for share in traces[member].shares:
                group_of[share] = merged
    groups = {id(group): group for group in group_of.values()}
    loose = [[unit] for unit, own in traces.items() if not own.shares]
    return list(groups.values()) + loose


def refuse_with_group(traces: Traces, refused: dict[UnitKey, str], groups: Traces) -> None:
    """Refuse units that share weights with refused ones; both arguments are changed."""
    for group in coupled_groups(groups):
        lost = [unit for unit in group if unit in refused]
        for unit in group:
            if lost and unit not in refused:
                layer, number = lost[0]
                refused[unit] = f"it shares weights with unit {number} of {layer}, which is refused"
                traces.pop(unit, None)
