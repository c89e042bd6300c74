"""Find side effects: tag the producers, clamp the units, and nobody may notice.

A producer that something else reads, before the activation or beside it, cannot get fresh weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.propagate import (
    ChannelTags,
    Place,
    Shown,
    on_tape,
    tagged,
)
from lightning_deadunits.reinit.dataflow.tags import Codebook
from lightning_deadunits.reinit.ops import Channel

_TITLES = {"result": "the model's output", "python": "the model's control flow (Python)"}


@dataclass
class SideEffects:
    """What notices that units are made otherwise, though the units are clamped.

    Attributes:
        of: Producers that something else notices, with what it is.
        links: Channels of parameters added or multiplied on the way, and the producer they follow.
    """

    of: dict[Channel, str] = field(default_factory=dict)
    links: list[tuple[Channel, Channel]] = field(default_factory=list)


def find_side_effects(
    passes: Passes,
    producers: Iterable[Channel],
    units: Iterable[UnitKey],
    before: Mapping[Channel, Channel],
) -> SideEffects:
    """Tag some producers, clamp the units, and see who notices.

    Args:
        passes: The passes.
        producers: Channels of calls that make the units, directly or through a norm.
        units: The units.
        before: For channels of norms, the producer that they are known to follow.
    """
    producers, units = list(producers), list(units)
    found = SideEffects()
    for tape in passes.distinct():
        own = [p for p in producers if passes.recorded.calls[p[0]].tape == tape]
        seen = on_tape(passes, tape, partial(_search, passes, tape, own, units)) if own else []
        if seen is None:
            twins = [(twin, c) for index, c in own for twin in passes.with_twins(index)]
            found.of |= dict.fromkeys(twins, "the model's control flow")
        for producer, place, channel in seen or ():
            twins = [(twin, producer[1]) for twin in passes.with_twins(producer[0])]
            if place.kind == "link":
                links = [(twin, channel) for twin in passes.with_twins(place.of)]
                found.links += zip(links, twins, strict=True)
            elif place.kind == "norm" and before.get((place.of, channel)) == producer:
                continue
            elif place.kind != "unit":
                found.of |= {t: _title(passes, place) for t in twins if t not in found.of}
    return found


def _title(passes: Passes, place: Place) -> str:
    return _TITLES.get(place.kind) or passes.recorded.calls[place.of].title


def _search(
    passes: Passes, tape: int, producers: list[Channel], units: list[UnitKey], cells: int
) -> list[Shown[Channel]]:
    def replays(book: Codebook, code_of: Mapping[Channel, int]) -> Iterator[Any]:
        return ChannelTags(passes, tape, book, code_of, units, everywhere=True).run()

    return tagged(producers, cells, replays)
