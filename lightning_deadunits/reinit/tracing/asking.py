"""Asks units which of some channels make them, and norms which of them they follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.codes import Codebook
from lightning_deadunits.reinit.tracing.marking import Marker, marks_of, width_of


class Answers:
    """Which codes units and norms showed.

    Args:
        book: The codes.
        channel_of: The channel behind each code.

    Attributes:
        code_of: The code of each channel.
        units: What each unit showed.
        norms: What each channel that a norm reads showed.
    """

    def __init__(self, book: Codebook, channel_of: Mapping[int, Channel]) -> None:
        self.book, self.channel_of = book, channel_of
        self.code_of = {channel: code for code, channel in channel_of.items()}
        self.units: dict[UnitKey, list[int]] = {}
        self.norms: dict[Channel, list[int]] = {}

    def decoded(self, codes: Iterable[int]) -> list[Channel] | None:
        """Return the channels behind some codes, None if some of them cannot be told apart."""
        found: list[Channel] = []
        for code in codes:
            if code not in self.channel_of and not self.book.single:
                return None
            found += self.behind(code)
        return list(dict.fromkeys(found))

    def behind(self, code: int) -> list[Channel]:
        """Return the channels that may be in a mixture."""
        return [self.channel_of[own] for own in self.book.inside(code)] if code else []


def ask(
    session: Session,
    channels: Iterable[Channel],
    units: Iterable[UnitKey],
    cells: int,
    *,
    single: bool = False,
    together: bool = False,
) -> Answers:
    """Mark channels and look at units and norms.

    Args:
        session: The session.
        channels: The channels, each with a code of its own.
        units: The units.
        cells: Samples that are told apart.
        single: Whether every code is a single bit, so that mixtures show what is in them.
        together: Whether a channel stands for all channels of its call.
    """
    channels = list(channels)
    book = (Codebook.of_single_bits if single else Codebook.of)(len(channels), cells)
    code_of = dict(zip(channels, book.codes.tolist(), strict=True))
    marks = marks_of(session, code_of)
    if together:
        marks = {index: codes.max().expand(len(codes)) for index, codes in marks.items()}
    answers = Answers(book, {code: channel for channel, code in code_of.items()})
    for place, channel, code in Marker(session, book, marks, units).run(outputs=False):
        if place.kind == "unit":
            answers.units.setdefault((str(place.of), channel), []).append(code)
        elif place.kind == "norm":
            answers.norms.setdefault((int(place.of), channel), []).append(code)
    return answers


def channels_of(session: Session, calls: Iterable[int]) -> list[Channel]:
    """Return all channels of some calls."""
    return [(index, channel) for index in calls for channel in range(width_of(session, index))]
