"""Guesses what makes a unit, and has one pass confirm it: right for most networks, and cheap.

The guess is the last layer before the unit that is as wide, and for a norm the last one before it.
What is not confirmed in full is searched for in :mod:`sources`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Size, Tensor

from lightning_deadunits.reinit.codes import CellsLostError, Codebook, codes_in
from lightning_deadunits.reinit.probe import PathChangedError
from lightning_deadunits.reinit.readers import Channel
from lightning_deadunits.reinit.session import Session, UnitKey
from lightning_deadunits.reinit.sources import Holding, Leaks, Sources, read_outputs


def guess_sources(session: Session, units: Iterable[UnitKey]) -> tuple[Sources, Leaks]:
    """Return makers that are confirmed, for those units where they are, and links on the way."""
    units = list(units)
    guesses = {unit: guess for unit in units if (guess := _guess(session, unit))}
    taken = [channel for guess in guesses.values() for channel in guess]
    guesses = {
        unit: guess
        for unit, guess in guesses.items()
        if all(taken.count(channel) == 1 for channel in guess)
    }
    for cells in dict.fromkeys((session.example.cells, 1)) if guesses else ():
        try:
            return _confirmed(session, units, guesses, cells)
        except (CellsLostError, PathChangedError):
            continue
    return Sources(), Leaks()


def _guess(session: Session, unit: UnitKey) -> list[Channel] | None:
    layer, number = unit
    dims, activation = session.recorded.sites[layer]
    width = Size([activation.shape[axis] for axis in dims]).numel()
    index = _last(session, session.recorded.reached[layer], width, ("contraction", "norm"))
    if index is None:
        return None
    operation = session.recorded.calls[index].operation
    if operation.kind == "contraction" or operation.mixes:
        return [(index, number)]
    before = _last(session, index, width, ("contraction",))
    return None if before is None else [(index, number), (before, number)]


def _last(session: Session, end: int, width: int, kinds: tuple[str, ...]) -> int | None:
    for index in range(end - 1, -1, -1):
        call = session.recorded.calls[index]
        made = Size(call.operation.made_sizes).numel()
        if call.out is not None and call.operation.kind in kinds and made == width:
            return index
    return None


def _confirmed(
    session: Session, units: list[UnitKey], guesses: dict[UnitKey, list[Channel]], cells: int
) -> tuple[Sources, Leaks]:
    book = Codebook.of(len(guesses), cells)
    unit_of = {int(code): unit for code, unit in zip(book.codes, guesses, strict=True)}
    marks = {channel: code for code, unit in unit_of.items() for channel in guesses[unit]}
    places: dict[Any, Tensor] = {}
    for number in range(book.passes):
        visitor = Holding(session, book, marks, units, number, places)
        read_outputs(session, visitor)
    shown: dict[UnitKey, set[tuple[str, Any]]] = {unit: set() for unit in guesses}
    lost: set[UnitKey] = set()
    for (kind, place, _), seen in places.items():
        for channel in (seen != 0).any(0).nonzero().flatten().tolist():
            for code in codes_in(seen[:, channel]):
                if code in unit_of:
                    shown[unit_of[code]].add((kind, (place, channel)))
                else:
                    lost |= {unit for own, unit in unit_of.items() if own & code == own}
    found, links = Sources(), Leaks()
    for unit, guess in guesses.items():
        expected = {("site", unit)} | ({("norm", guess[0])} if len(guess) > 1 else set())
        others = {place for place in shown[unit] if place[0] != "link"}
        if others == expected and unit not in lost:
            found.makers[unit] = guess[:1]
            found.before.update({guess[0]: guess[1]} if len(guess) > 1 else {})
            links.links += [(*place, guess[0]) for kind, place in shown[unit] if kind == "link"]
    return found, links
