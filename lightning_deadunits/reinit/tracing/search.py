"""Traces units: who reads them, who makes them, and whether these have anything else to do."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.guesses import guess_sources
from lightning_deadunits.reinit.tracing.leaks import Leaks, find_leaks
from lightning_deadunits.reinit.tracing.parts import link_parts, making_parts, reading_parts
from lightning_deadunits.reinit.tracing.readers import find_readers
from lightning_deadunits.reinit.tracing.sources import Sources, find_sources
from lightning_deadunits.reinit.tracing.trace import Trace, UnitTrace


def trace(session: Session, units: Iterable[UnitKey], *, guess: bool = True) -> Trace:
    """Find the weights of some units, and refuse those that share theirs with what is alive.

    Args:
        session: A session with a recorded pass.
        units: Layer and unit, of layers that the session visits.
        guess: Whether a maker that was guessed and confirmed is enough, though others may add to
            it. A thorough search takes some more passes.
    """
    units = list(units)
    if not units:
        return Trace({}, {})
    readers = find_readers(session, units)
    found = Trace({}, dict(readers.refused))
    left = [unit for unit in units if unit not in found.refused]
    if left:
        _add_makers(session, left, found, guess)
    for channel, fed_by in readers.channels.items():
        for unit in fed_by & found.units.keys():
            found.units[unit].reads += reading_parts(session, channel)
            found.units[unit].ties.add(("read", channel))
    return found


def _add_makers(session: Session, units: list[UnitKey], found: Trace, guess: bool) -> None:
    guessed, links = guess_sources(session, units if guess else [])
    _judge_makers(session, guessed, links, found)
    left = [unit for unit in units if unit not in guessed.makers]
    if left:
        _search_makers(session, left, units, found)
    # A norm that is written by hand may leave a unit nothing of its own but its scale.
    left = [unit for unit in units if unit in found.refused]
    if left and any(call.operation.makes_by_factor for call in session.recorded.calls):
        other = Trace({}, {})
        _search_makers(session, left, units, other, factors=True)
        found.units |= other.units
        found.refused = {u: why for u, why in found.refused.items() if u not in other.units}


def _search_makers(
    session: Session,
    units: list[UnitKey],
    held: list[UnitKey],
    found: Trace,
    *,
    factors: bool = False,
) -> None:
    sources = find_sources(session, units, factors=factors)
    found.refused |= sources.refused
    makers = {channel for channels in sources.makers.values() for channel in channels}
    sources.before = {norm: maker for norm, maker in sources.before.items() if norm in makers}
    if makers:
        marked = sorted(makers | set(sources.before.values()))
        leaks = find_leaks(session, marked, held, sources.before)
        _judge_makers(session, sources, leaks, found)


def _judge_makers(session: Session, sources: Sources, leaks: Leaks, found: Trace) -> None:
    for unit, channels in sources.makers.items():
        trace = UnitTrace()
        reasons = [_add_maker(session, trace, maker, sources, leaks) for maker in channels]
        # One maker of its own is enough, as in a residual block: what else is added stays.
        if any(reason is None for reason in reasons):
            found.units[unit] = trace
        else:
            found.refused[unit] = next(reason for reason in reasons if reason)


def _add_maker(
    session: Session, trace: UnitTrace, maker: Channel, sources: Sources, leaks: Leaks
) -> str | None:
    """Add the weights of one maker to a trace; return why not, if so."""
    call = session.recorded.calls[maker[0]]
    if maker in leaks.leaking:
        return f"{call.title} makes it, and {leaks.leaking[maker]} reads the same before it"
    followed = {maker}
    if call.operation.kind == "norm":
        before = sources.before.get(maker)
        if before is not None and before not in leaks.leaking:
            trace.makes += making_parts(session, before)
            trace.statistics[maker] = before
            followed.add(before)
        elif call.operation.weight is None:
            return f"{call.title} normalises what makes it, and has no weights of its own"
    trace.ties |= {("make", channel) for channel in followed}
    trace.makes += making_parts(session, maker)
    for link, follows in leaks.links:
        if follows in followed:
            trace.makes += link_parts(session, link)
    return None
