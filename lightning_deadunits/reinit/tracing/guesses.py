"""Guesses what makes a unit, and has one pass confirm it: right for most networks, and cheap.

The guess is the last layer before the unit that is as wide, and for a norm the last one before it;
rather one that is trained: a frozen one may be a branch that is added.
What is not confirmed in full is searched for in :mod:`sources`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Size

from lightning_deadunits.reinit.operations import Channel, Operation
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.codes import Codebook
from lightning_deadunits.reinit.tracing.leaks import Leaks
from lightning_deadunits.reinit.tracing.marking import Marker, marks_of, width_of
from lightning_deadunits.reinit.tracing.seeking import with_fewer_cells
from lightning_deadunits.reinit.tracing.sightings import Sighting
from lightning_deadunits.reinit.tracing.sources import Sources

Guesses = dict[UnitKey, list[Channel]]


def guess_sources(session: Session, units: Iterable[UnitKey]) -> tuple[Sources, Leaks]:
    """Return makers that are confirmed, for those units where they are, and links on the way."""
    units = list(units)
    guesses = {unit: guess for unit in units if (guess := _guess(session, unit))}
    taken = Counter(channel for guess in guesses.values() for channel in guess)
    guesses = {u: guess for u, guess in guesses.items() if all(taken[c] == 1 for c in guess)}
    nothing = Sources(), Leaks()
    if not guesses:
        return nothing
    return with_fewer_cells(
        session, lambda cells: _confirmed(session, units, guesses, cells), otherwise=nothing
    )


def _guess(session: Session, unit: UnitKey) -> list[Channel] | None:
    layer, number = unit
    dims, activation = session.recorded.sites[layer]
    width = Size([activation.shape[axis] for axis in dims]).numel()
    end, makers = session.recorded.reached[layer], ("contraction", "norm")
    index = _last(session, end, width, makers, trained=True)
    if index is None:
        index = _last(session, end, width, makers)
    if index is None:
        return None
    operation = session.recorded.calls[index].operation
    if operation.kind == "contraction" or operation.mixes:
        return [(index, number)]
    before = _last(session, index, width, ("contraction",))
    return None if before is None else [(index, number), (before, number)]


def _last(
    session: Session, end: int, width: int, kinds: tuple[str, ...], trained: bool = False
) -> int | None:
    for index in range(end - 1, -1, -1):
        call = session.recorded.calls[index]
        if (
            call.out is not None
            and call.operation.kind in kinds
            and width_of(session, index) == width
            and not (trained and _is_frozen(session, call.operation))
        ):
            return index
    return None


def _is_frozen(session: Session, operation: Operation) -> bool:
    # A view tells nothing, for passes run without gradients.
    owners = (session.parameters.owner(view) for view in (operation.weight, operation.bias))
    trained = [owner.requires_grad for owner in owners if owner is not None]
    return bool(trained) and not any(trained)


def _confirmed(
    session: Session, units: list[UnitKey], guesses: Guesses, cells: int
) -> tuple[Sources, Leaks]:
    book = Codebook.of(len(guesses), cells)
    unit_of = dict(zip(book.codes.tolist(), guesses, strict=True))
    codes = {channel: code for code, unit in unit_of.items() for channel in guesses[unit]}
    seen = list(Marker(session, book, marks_of(session, codes), units, thorough=True).run())
    lost = {unit_of[own] for *_, code in seen if code not in unit_of for own in book.inside(code)}
    found, leaks = Sources(), Leaks()
    for code, unit in unit_of.items():
        own = [sighting for sighting in seen if sighting.code == code]
        if unit not in lost and _as_expected(own, unit, guesses[unit]):
            maker, *before = guesses[unit]
            found.makers[unit] = [maker]
            found.before.update((maker, channel) for channel in before)
            leaks.links += [
                ((int(place.of), channel), maker)
                for place, channel, _ in own
                if place.kind == "link"
            ]
    return found, leaks


def _as_expected(own: Iterable[Sighting], unit: UnitKey, guess: list[Channel]) -> bool:
    """Tell whether a unit and the norm before it showed a guess, and nobody else did."""
    expected = {("unit", unit)} | ({("norm", guess[0])} if len(guess) > 1 else set())
    return expected == {
        (place.kind, (place.of, channel)) for place, channel, _ in own if place.kind != "link"
    }
