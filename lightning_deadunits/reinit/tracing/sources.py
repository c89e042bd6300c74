"""Which weights make a unit: every channel of every layer is marked, and units are asked who shows.

Each contraction and each norm returns what it returned before, its channels made NaN by codes. A
unit then shows who makes it directly.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.calls import Call
from lightning_deadunits.reinit.running.probe import PathChangedError
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.asking import Answers, ask, channels_of
from lightning_deadunits.reinit.tracing.cells import CellsLostError
from lightning_deadunits.reinit.tracing.mixtures import separated


@dataclass
class Sources:
    """What makes the units, and the layers before a norm that makes them.

    Attributes:
        makers: Channels of calls that make each unit.
        before: Channel of the call before a norm that makes a unit.
        refused: Units with no maker that could be found, with the reason.
    """

    makers: dict[UnitKey, list[Channel]] = field(default_factory=dict)
    before: dict[Channel, Channel] = field(default_factory=dict)
    refused: dict[UnitKey, str] = field(default_factory=dict)


def find_sources(session: Session, units: Iterable[UnitKey], *, factors: bool = False) -> Sources:
    """Find the channels whose weights make some units.

    Args:
        session: The session.
        units: The units.
        factors: Whether to look for factors per channel, instead of contractions and norms.
    """
    units = list(units)
    found = Sources(refused=dict.fromkeys(units, "its pre-activation steers the model"))
    for cells in dict.fromkeys((session.example.cells, 1)):
        # Where the model mixes samples, codes are garbled: by passes alone they are not.
        left = [unit for unit in units if unit not in found.makers]
        with suppress(CellsLostError, PathChangedError):
            _search(session, left, cells, found, factors)
    return found


def _search(
    session: Session, units: list[UnitKey], cells: int, found: Sources, factors: bool
) -> None:
    calls = enumerate(session.recorded.calls)
    marked = [index for index, call in calls if _makes_something(call, factors)]
    if not units or not marked:
        return
    answers = ask(session, channels_of(session, marked), units, cells)
    makers = {unit: answers.decoded(answers.units.get(unit, ())) for unit in units}
    mixed = [unit for unit in units if makers[unit] is None]
    if mixed:
        makers |= separated(session, answers, mixed, marked, cells)
    for unit, channels in makers.items():
        if channels:
            found.makers[unit] = channels
            found.refused.pop(unit)
        elif channels is None:
            found.refused[unit] = "several channels make it together, which cannot be told apart"
        else:
            found.refused[unit] = _unmade(session, unit)
    found.before |= _before_norms(answers, found)


def _unmade(session: Session, unit: UnitKey) -> str:
    """Say why no maker was found: perhaps one that cannot be traced was seen before the unit."""
    for call in reversed(session.recorded.calls[: session.recorded.reached[unit[0]]]):
        if call.operation.kind == "opaque":
            return f"no layer that makes it was found, unless {call.title}, which cannot be traced"
    return "no layer that makes it was found"


def _makes_something(call: Call, factors: bool) -> bool:
    if factors:
        return call.out is not None and call.operation.makes_by_factor
    return call.out is not None and call.operation.kind in ("contraction", "norm")


def _before_norms(answers: Answers, found: Sources) -> dict[Channel, Channel]:
    """Return what makes the channels of norms that make units, where it is one channel alone."""
    before = {}
    for maker in {channel for channels in found.makers.values() for channel in channels}:
        makers = answers.decoded(answers.norms.get(maker, ()))
        if makers and len(makers) == 1:
            before[maker] = makers[0]
    return before
