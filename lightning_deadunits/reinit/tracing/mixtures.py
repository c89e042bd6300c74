"""Which channels make a unit together: sums of layers, as in a residual block, or within one layer.

Most sums are over equal channels. Which layers are in it is asked with a second set of codes; a
layer that is suspected wrongly is exonerated when leaks are looked for. Else each layer is asked
alone, and its channels bit by bit where several of them make the unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.asking import Answers, ask, channels_of
from lightning_deadunits.reinit.tracing.marking import width_of

Makers = dict[UnitKey, list[Channel] | None]

_MOST_MAKERS = 8
_MOST_MIXED = 48
"""How many channels of one layer are asked bit by bit; codes have bits to spare."""


def separated(
    session: Session, answers: Answers, units: list[UnitKey], calls: list[int], cells: int
) -> Makers:
    """Return the makers of units that showed mixtures, None for what cannot be told apart."""
    of_calls = ask(session, [(index, 0) for index in calls], units, cells, together=True)
    suspects = {unit: _suspects(session, unit, of_calls) for unit in units}
    found: Makers = {unit: _same_channels(session, unit, answers, suspects[unit]) for unit in units}
    left = [unit for unit in units if not found[unit] and len(suspects[unit]) <= _MOST_MAKERS]
    return found | _each_alone(session, {unit: suspects[unit] for unit in left}, cells)


def _suspects(session: Session, unit: UnitKey, of_calls: Answers) -> list[int]:
    """Return the calls before a unit that may be in its mixture, the latest first."""
    behind = of_calls.behind(_mixture(of_calls.units.get(unit, ())))
    reached = session.recorded.reached[unit[0]]
    return sorted((index for index, _ in behind if index < reached), reverse=True)


def _same_channels(
    session: Session, unit: UnitKey, answers: Answers, suspects: Iterable[int]
) -> list[Channel] | None:
    """Return the channels of the unit's own number if they explain its mixture."""
    layer, number = unit
    width = session.recorded.num_units(layer)
    same = [(index, number) for index in suspects if width_of(session, index) == width]
    mixture = _mixture(answers.units[unit])
    code_of = answers.code_of
    makers = [channel for channel in same if code_of[channel] & mixture == code_of[channel]]
    explained = _mixture(code_of[channel] for channel in makers) == mixture
    return makers if makers and explained and len(makers) <= _MOST_MAKERS else None


def _each_alone(session: Session, suspects: Mapping[UnitKey, list[int]], cells: int) -> Makers:
    found: Makers = {unit: [] for unit in suspects}
    for index in dict.fromkeys(i for of_unit in suspects.values() for i in of_unit):
        asked = [unit for unit, of_unit in suspects.items() if index in of_unit]
        for unit, channels in _within(session, index, asked, cells).items():
            known = found[unit]
            found[unit] = None if known is None or channels is None else known + channels
    return found


def _within(session: Session, index: int, units: list[UnitKey], cells: int) -> Makers:
    """Return which channels of one call make some units."""
    answers = ask(session, channels_of(session, [index]), units, cells)
    found: Makers = {unit: answers.decoded(answers.units.get(unit, ())) for unit in units}
    mixed = [unit for unit in units if found[unit] is None]
    behind = {c for unit in mixed for code in answers.units[unit] for c in answers.behind(code)}
    if mixed and len(behind) <= _MOST_MIXED:
        single = ask(session, sorted(behind), mixed, cells, single=True)
        found |= {unit: single.decoded(single.units.get(unit, ())) for unit in mixed}
    return found


def _mixture(codes: Iterable[int]) -> int:
    return reduce(or_, codes, 0)
