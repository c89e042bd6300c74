"""Whether makers make anything else: they are marked, the units are held, and nobody may notice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.codes import Codebook
from lightning_deadunits.reinit.tracing.marking import Marker, marks_of
from lightning_deadunits.reinit.tracing.seeking import with_fewer_cells


@dataclass
class Leaks:
    """What notices that units are made otherwise, though the units are held as they were.

    Attributes:
        leaking: Makers that something else notices, with what it is.
        links: Channels of parameters added or multiplied on the way, and the maker they follow.
    """

    leaking: dict[Channel, str] = field(default_factory=dict)
    links: list[tuple[Channel, Channel]] = field(default_factory=list)


def find_leaks(
    session: Session,
    makers: Iterable[Channel],
    units: Iterable[UnitKey],
    before: Mapping[Channel, Channel],
) -> Leaks:
    """Mark some makers, hold the units, and see who notices.

    Args:
        session: The session.
        makers: Channels of calls that make the units, directly or through a norm.
        units: The units.
        before: For channels of norms, the maker that they are known to follow.
    """
    makers, units = list(makers), list(units)
    return with_fewer_cells(
        session,
        lambda cells: _leaks(session, makers, units, before, cells),
        otherwise=Leaks(dict.fromkeys(makers, "the model's control flow")),
    )


def _leaks(
    session: Session,
    makers: list[Channel],
    units: list[UnitKey],
    before: Mapping[Channel, Channel],
    cells: int,
) -> Leaks:
    book = Codebook.of(len(makers), cells)
    maker_of = dict(zip(book.codes.tolist(), makers, strict=True))
    codes = {maker: code for code, maker in maker_of.items()}
    marker = Marker(session, book, marks_of(session, codes), units, thorough=True)
    leaks = Leaks()
    for place, channel, code in marker.run():
        if place.kind == "unit":
            continue
        index = int(place.of)
        title = "the model's output" if index < 0 else session.recorded.calls[index].title
        for maker in (maker_of[own] for own in book.inside(code)):
            if place.kind == "link":
                leaks.links.append(((index, channel), maker))
            elif place.kind != "norm" or before.get((index, channel)) != maker:
                leaks.leaking.setdefault(maker, title)
    return leaks
