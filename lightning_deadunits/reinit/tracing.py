"""Which weights make a unit and which read it, by intervention on the running model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lightning_deadunits.reinit.guesses import guess_sources
from lightning_deadunits.reinit.readers import Channel, find_readers
from lightning_deadunits.reinit.session import Session, UnitKey
from lightning_deadunits.reinit.sources import Leaks, Sources, find_leaks, find_sources
from lightning_deadunits.reinit.weight_slice import WeightSlice

Role = Literal["weight", "bias", "scale", "shift"]


@dataclass(frozen=True, eq=False)
class Part:
    """The weights of one call that belong to one unit.

    Attributes:
        index: The call.
        channel: Channel of what the call makes (or reads) that is the unit's.
        role: What they do there.
        weights: The weights.
        view: The tensor that the call was given, of which they are a part.
    """

    index: int
    channel: int
    role: Role
    weights: WeightSlice
    view: Tensor


@dataclass(eq=False)
class UnitTrace:
    """All weights that touch a unit.

    Attributes:
        makes: Those that make it.
        reads: Those that read it.
        statistics: Norms whose running statistics of a channel are those of the unit.
        ties: What it shares with other units, which must share its fate.
    """

    makes: list[Part] = field(default_factory=list)
    reads: list[Part] = field(default_factory=list)
    statistics: list[Channel] = field(default_factory=list)
    ties: set[tuple[str, Channel]] = field(default_factory=set)


@dataclass(eq=False)
class Trace:
    """What tracing found.

    Attributes:
        units: The units that can be re-initialised, with their weights.
        refused: The others, with the reason.
    """

    units: dict[UnitKey, UnitTrace]
    refused: dict[UnitKey, str]


def trace(session: Session, units: Iterable[UnitKey], *, guess: bool = True) -> Trace:
    """Find the weights of some units, and refuse those that share theirs with what is alive.

    Args:
        session: A session with a recorded pass.
        units: Layer and unit, of layers that the session visits.
        guess: Whether a maker that was guessed and confirmed is enough, though others may add to
            it. A thorough search takes some more passes.
    """
    units = list(units)
    readers = find_readers(session, units) if units else None
    if readers is None:
        return Trace({}, {})
    found = Trace({}, dict(readers.refused))
    left = [unit for unit in units if unit not in found.refused]
    if left:
        _add_makers(session, left, found, guess)
    for (index, channel), fed_by in readers.channels.items():
        for unit in fed_by & found.units.keys():
            found.units[unit].reads += _reading_parts(session, index, channel)
            found.units[unit].ties.add(("read", (index, channel)))
    return found


def _add_makers(session: Session, units: list[UnitKey], found: Trace, guess: bool) -> None:
    guessed, links = guess_sources(session, units if guess else [])
    _judge_makers(session, guessed, links, found)
    left = [unit for unit in units if unit not in guessed.makers]
    if not left:
        return
    sources = find_sources(session, left)
    found.refused |= sources.refused
    makers = {channel for channels in sources.makers.values() for channel in channels}
    sources.before = {norm: maker for norm, maker in sources.before.items() if norm in makers}
    if makers:
        marked = sorted(makers | set(sources.before.values()))
        leaks = find_leaks(session, marked, units, sources.before)
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
    index, channel = maker
    call = session.recorded.calls[index]
    if maker in leaks.leaking:
        return f"{call.title} makes it, and {leaks.leaking[maker]} reads the same before it"
    trace.ties.add(("make", maker))
    followed = {maker}
    if call.operation.kind == "norm":
        before = sources.before.get(maker)
        if before is not None and before not in leaks.leaking:
            trace.makes += _making_parts(session, *before)
            trace.ties.add(("make", before))
            trace.statistics.append(maker)
            followed.add(before)
        elif call.operation.weight is None:
            return f"{call.title} normalises what makes it, and has no weights of its own"
    trace.makes += _making_parts(session, index, channel)
    for link, place, follows in leaks.links:
        if follows in followed:
            trace.makes += _link_parts(session, link, place)
    return None


def _making_parts(session: Session, index: int, channel: int) -> list[Part]:
    operation = session.recorded.calls[index].operation
    norm = operation.kind == "norm"
    parts = []
    if operation.weight is not None:
        role: Role = "scale" if norm else "weight"
        parts += _parts(session, index, channel, role, operation.weight, operation.makes(channel))
    if operation.bias is not None:
        role = "shift" if norm else "bias"
        parts += _parts(session, index, channel, role, operation.bias, operation.biases(channel))
    return parts


def _link_parts(session: Session, index: int, channel: int) -> list[Part]:
    operation = session.recorded.calls[index].operation
    assert operation.weight is not None
    where = operation.makes(channel)
    if not where:
        return []  # one number for all channels
    scales = any(word in operation.name for word in ("mul", "div"))
    role: Role = "scale" if scales else "shift"
    return _parts(session, index, channel, role, operation.weight, where)


def _reading_parts(session: Session, index: int, channel: int) -> list[Part]:
    operation = session.recorded.calls[index].operation
    assert operation.weight is not None
    where = operation.reads(channel)
    if operation.kind == "contraction":
        return _parts(session, index, channel, "weight", operation.weight, where)
    assert operation.bias is not None
    return [
        *_parts(session, index, channel, "scale", operation.weight, where),
        *_parts(session, index, channel, "shift", operation.bias, where),
    ]


def _parts(
    session: Session,
    index: int,
    channel: int,
    role: Role,
    view: Tensor,
    where: dict[int, list[int]],
) -> list[Part]:
    """Return the part of a parameter; none of what is no parameter, as a frozen norm's buffers."""
    if session.parameters.owner(view) is None:
        return []
    return [Part(index, channel, role, session.parameters.part(view, where), view)]
