"""Trace units: who consumes them, who produces them, and whether producers have side effects."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_deadunits.reinit.dataflow.consumers import find_consumers
from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.producers import (
    Producers,
    confirm_candidates,
    find_producers,
)
from lightning_deadunits.reinit.dataflow.side_effects import SideEffects, find_side_effects
from lightning_deadunits.reinit.dataflow.trace import (
    Trace,
    UnitTrace,
    link_parts,
    making_parts,
    reading_parts,
)
from lightning_deadunits.reinit.ops import Channel


def trace(passes: Passes, units: Iterable[UnitKey], *, guess: bool = True) -> Trace:
    """Find the weights of some units, and refuse those that share theirs with what is alive.

    Args:
        passes: Passes that were replayed once.
        units: Layer and unit.
        guess: Whether a candidate that is confirmed is enough, though others may add to it. A
            thorough search takes some more replays.
    """
    units = list(units)
    if not units:
        return Trace({}, {})
    consumers = find_consumers(passes, units)
    found = Trace({}, dict(consumers.refused))
    left = [unit for unit in units if unit not in found.refused]
    if left:
        _add_producers(passes, left, found, guess)
    for channel, fed_by in consumers.channels.items():
        for unit in sorted(fed_by):
            if unit in found.units:
                found.units[unit].reads += reading_parts(passes, channel)
            own = found.units.get(unit) or found.lost.setdefault(unit, UnitTrace())
            own.shares.add(("read", channel))
    return found


def _add_producers(passes: Passes, units: list[UnitKey], found: Trace, guess: bool) -> None:
    confirmed, links = confirm_candidates(passes, units if guess else [])
    _judge_producers(passes, confirmed, links, found)
    left = [unit for unit in units if unit not in confirmed.of]
    if left:
        _search_producers(passes, left, units, found)
    # A norm that is written by hand may leave a unit nothing of its own but its scale.
    left = [unit for unit in units if unit in found.refused]
    if left and any(call.operation.makes_by_factor for call in passes.recorded.calls):
        other = Trace({}, {})
        _search_producers(passes, left, units, other, factors=True)
        found.units |= other.units
        found.refused = {u: why for u, why in found.refused.items() if u not in other.units}


def _search_producers(
    passes: Passes,
    units: list[UnitKey],
    clamped: list[UnitKey],
    found: Trace,
    *,
    factors: bool = False,
) -> None:
    producers = find_producers(passes, units, factors=factors)
    found.refused |= producers.refused
    makers = {channel for channels in producers.of.values() for channel in channels}
    producers.before = {norm: own for norm, own in producers.before.items() if norm in makers}
    if makers:
        marked = sorted(makers | set(producers.before.values()))
        effects = find_side_effects(passes, marked, clamped, producers.before)
        _judge_producers(passes, producers, effects, found)


def _judge_producers(
    passes: Passes, producers: Producers, effects: SideEffects, found: Trace
) -> None:
    for unit, channels in producers.of.items():
        own = UnitTrace()
        reasons = [_add_producer(passes, own, maker, producers, effects) for maker in channels]
        # One producer of its own is enough, as in a residual block: what else is added stays.
        if any(reason is None for reason in reasons):
            found.units[unit] = own
        else:
            found.refused[unit] = next(reason for reason in reasons if reason)


def _add_producer(
    passes: Passes, own: UnitTrace, maker: Channel, producers: Producers, effects: SideEffects
) -> str | None:
    """Add the weights of one producer to a trace; return why not, if so."""
    call = passes.recorded.calls[maker[0]]
    if maker in effects.of:
        return f"{call.title} makes it, and {effects.of[maker]} reads the same before it"
    followed = {maker}
    if call.operation.kind == "norm":
        before = producers.before.get(maker)
        if before is not None and before not in effects.of:
            own.makes += making_parts(passes, before)
            own.statistics[maker] = before
            followed.add(before)
        elif call.operation.weight is None:
            return f"{call.title} normalises what makes it, and has no weights of its own"
    own.shares |= {("make", channel) for channel in followed}
    own.makes += making_parts(passes, maker)
    for link, follows in effects.links:
        if follows in followed:
            own.makes += link_parts(passes, link)
    return None
