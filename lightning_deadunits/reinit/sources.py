"""Which weights make a unit: every channel of every layer is marked, and units are asked who shows.

Each contraction and each norm returns what it returned before, its channels made NaN by codes. A
unit then shows who makes it directly. What makes it must make nothing else: the same channels are
marked once more with the unit held as it was, and nobody may notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.sites import Site
from lightning_deadunits.reinit.codes import CellsLostError, Codebook, codes_in
from lightning_deadunits.reinit.operations import Operation
from lightning_deadunits.reinit.probe import PathChangedError, Visitor
from lightning_deadunits.reinit.readers import Channel, held
from lightning_deadunits.reinit.report import Units, by_layer
from lightning_deadunits.reinit.session import Session, UnitKey

_MOST_MAKERS = 8


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


def find_sources(session: Session, units: Iterable[UnitKey]) -> Sources:
    """Find the channels whose weights make some units."""
    units = list(units)
    for cells in dict.fromkeys((session.example.cells, 1)):
        try:
            return _search(session, units, cells)
        except (CellsLostError, PathChangedError):
            continue
    return Sources(refused=dict.fromkeys(units, "its pre-activation steers the model"))


def _search(session: Session, units: list[UnitKey], cells: int) -> Sources:
    calls = session.recorded.calls
    marked = [i for i, call in enumerate(calls) if _is_marked(call.operation, call.out)]
    shown = _shown(session, _Marks.of_channels(session, marked, cells), units)
    found = Sources()
    mixed = []
    for unit in units:
        channels = shown.decoded(shown.units.get(unit))
        if channels is None and shown.units.get(unit):
            mixed.append(unit)
        elif channels:
            found.makers[unit] = channels
        else:
            found.refused[unit] = "no layer that makes it was found"
    if mixed:
        _separate(session, shown, mixed, cells, found)
    for index, channel in {c for channels in found.makers.values() for c in channels}:
        operation = calls[index].operation
        if operation.kind == "norm" and not operation.mixes and index in shown.norms:
            before = shown.decoded(codes_in(shown.norms[index][:, channel]))
            if before and len(before) == 1:
                found.before[(index, channel)] = before[0]
    return found


def _is_marked(operation: Operation, out: Tensor | None) -> bool:
    return out is not None and operation.kind in ("contraction", "norm")


def _separate(
    session: Session, shown: _Shown, units: list[UnitKey], cells: int, found: Sources
) -> None:
    """Find the makers of units that are sums of several layers.

    A sum is one over equal channels, as in a residual block. Which layers are in it is asked with
    a second set of codes; a layer that is suspected wrongly is exonerated by :func:`find_leaks`.
    """
    calls = _shown(session, _Marks.of_calls(session, list(shown.marks.codes), cells), units)
    for unit in units:
        mixture = _mixture(shown.units[unit])
        makers = _same_channels(session, unit, shown, mixture, calls)
        explained = _mixture(int(shown.marks.codes[index][channel]) for index, channel in makers)
        if makers and explained == mixture and len(makers) <= _MOST_MAKERS:
            found.makers[unit] = makers
        else:
            found.refused[unit] = "several channels make it together, which cannot be told apart"


def _same_channels(
    session: Session, unit: UnitKey, shown: _Shown, mixture: int, calls: _Shown
) -> list[Channel]:
    """Return the channels of the unit's own number that may be in a mixture, the latest first."""
    layer, number = unit
    dims, activation = session.recorded.sites[layer]
    width = torch.Size([activation.shape[axis] for axis in dims]).numel()
    layers = _mixture(calls.units.get(unit, ()))
    suspects = []
    for index, codes in shown.marks.codes.items():
        layer_code = int(calls.marks.codes[index][0])
        earlier = index < session.recorded.reached[layer] and len(codes) == width
        if earlier and layer_code & layers == layer_code:
            code = int(codes[number])
            if code & mixture == code:
                suspects.append((index, number))
    return suspects[::-1]


def _mixture(codes: Iterable[int]) -> int:
    mixed = 0
    for code in codes:
        mixed |= code
    return mixed


class _Marks:
    """Which code every marked channel carries."""

    def __init__(self, book: Codebook) -> None:
        self.book = book
        self.codes: dict[int, Tensor] = {}
        self.items: dict[int, list[Channel]] = {}

    @classmethod
    def of_channels(cls, session: Session, indices: list[int], cells: int) -> _Marks:
        """Give every channel of some calls a code of its own."""
        operations = [session.recorded.calls[index].operation for index in indices]
        sizes = [torch.Size(operation.made_sizes).numel() for operation in operations]
        marks = cls(Codebook.of(sum(sizes), cells))
        first = 0
        for index, size in zip(indices, sizes, strict=True):
            marks.codes[index] = marks.book.codes[first : first + size]
            for channel, code in enumerate(marks.codes[index].tolist()):
                marks.items[code] = [(index, channel)]
            first += size
        return marks

    @classmethod
    def of_calls(cls, session: Session, indices: list[int], cells: int) -> _Marks:
        """Give all channels of a call the same code."""
        marks = cls(Codebook.of(len(indices), cells))
        for index, code in zip(indices, marks.book.codes, strict=True):
            size = torch.Size(session.recorded.calls[index].operation.made_sizes).numel()
            marks.codes[index] = code.expand(size)
            marks.items[int(code)] = [(index, 0)]
        return marks


class _Shown:
    """What marks units and norms showed."""

    def __init__(self, marks: _Marks) -> None:
        self.marks = marks
        self.units: dict[UnitKey, list[int]] = {}
        self.sites: dict[str, Tensor] = {}
        self.norms: dict[int, Tensor] = {}

    def decoded(self, codes: Iterable[int] | None) -> list[Channel] | None:
        """Return the channels behind some codes, None if some of them are mixed."""
        found = []
        for code in codes or ():
            if code not in self.marks.items:
                return None
            found += self.marks.items[code]
        return found


def _shown(session: Session, marks: _Marks, units: list[UnitKey]) -> _Shown:
    shown = _Shown(marks)
    for number in range(marks.book.passes):
        session.replay(_Marking(session, shown, by_layer(units), number))
    for layer, unit in units:
        if layer in shown.sites:
            shown.units[(layer, unit)] = codes_in(shown.sites[layer][:, unit])
    return shown


class _Marking(Visitor):
    """Marks channels, and reads the marks at activations, which are held then, and before norms."""

    def __init__(self, session: Session, shown: _Shown, units: Units, number: int) -> None:
        self.session, self.shown, self.units, self.number = session, shown, units, number
        self.held = session.recorded

    def site(self, site: Site, output: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        units = self.units.get(site.name)
        if not units:
            return output
        places = self.shown.marks.book.read(output, site.unit_dims, self.number)
        _add(self.shown.sites, site.name, places)
        return held(self.session, site.name, output, units)

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """See :class:`Visitor`."""
        call = self.session.recorded.call(index, operation, out)
        marks = self.shown.marks
        if operation.kind == "norm" and not operation.mixes:
            places = marks.book.read(reads[0], operation.read_axes, self.number)
            _add(self.shown.norms, index, places)
        if call.out is None or operation.kind == "link":
            return out
        if index not in marks.codes:
            return call.out.clone()
        codes = marks.codes[index]
        return marks.book.inject(call.out, operation.made_axes, codes, self.number, torch.nan)


def _add(maps: dict[Any, Tensor], key: Any, places: Tensor | None) -> None:
    if places is not None:
        maps[key] = maps[key] + places if key in maps else places


# --- do the makers make anything else? ------------------------------------------------------


@dataclass
class Leaks:
    """What notices that units are made otherwise, though the units are held as they were.

    Attributes:
        leaking: Makers that something else notices, with what it is.
        links: Parameters added or multiplied on the way: call, channel, and the maker it follows.
    """

    leaking: dict[Channel, str] = field(default_factory=dict)
    links: list[tuple[int, int, Channel]] = field(default_factory=list)


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
    for cells in dict.fromkeys((session.example.cells, 1)):
        try:
            return _leaks(session, makers, units, before, cells)
        except (CellsLostError, PathChangedError):
            continue
    return Leaks(dict.fromkeys(makers, "the model's control flow"))


def _leaks(
    session: Session,
    makers: list[Channel],
    units: list[UnitKey],
    before: Mapping[Channel, Channel],
    cells: int,
) -> Leaks:
    book = Codebook.of(len(makers), cells)
    maker_of = {int(code): maker for code, maker in zip(book.codes, makers, strict=True)}
    marks = {maker: code for code, maker in maker_of.items()}
    places: dict[Any, Tensor] = {}
    for number in range(book.passes):
        read_outputs(session, Holding(session, book, marks, units, number, places))
    return _judged(session, places, maker_of, before)


def read_outputs(session: Session, visitor: Holding) -> None:
    """Run a pass and read the marks in the model's output, too."""
    for order, output in enumerate(session.replay(visitor)):
        shown = visitor.book.read(output, (), visitor.number)
        _add(visitor.places, ("output", -1, order), shown)


def _judged(
    session: Session,
    places: dict[Any, Tensor],
    maker_of: dict[int, Channel],
    before: Mapping[Channel, Channel],
) -> Leaks:
    leaks = Leaks()
    for (kind, index, _), seen in places.items():
        if kind == "site":
            continue
        title = "the model's output" if index < 0 else session.recorded.calls[index].title
        for channel in torch.nonzero((seen != 0).any(0)).flatten().tolist():
            for code in codes_in(seen[:, channel]):
                behind = [maker for own, maker in maker_of.items() if own & code == own]
                for maker in behind:
                    if kind == "link":
                        leaks.links.append((index, channel, maker))
                    elif kind != "norm" or before.get((index, channel)) != maker:
                        leaks.leaking.setdefault(maker, title)
    return leaks


class Holding(Visitor):
    """Marks makers, holds units as they were, and reads the marks wherever they show.

    Args:
        session: The session.
        book: The codes.
        marks: Which code each maker carries.
        units: The units.
        number: Which pass it is.
        places: What was read: kind of place, which it is, and which of several tensors there.
    """

    def __init__(
        self,
        session: Session,
        book: Codebook,
        marks: Mapping[Channel, int],
        units: Iterable[UnitKey],
        number: int,
        places: dict[Any, Tensor],
    ) -> None:
        self.session, self.book, self.units = session, book, by_layer(units)
        self.held = session.recorded
        self.number, self.places = number, places
        self.codes: dict[int, Tensor] = {}
        for (index, channel), code in marks.items():
            size = torch.Size(session.recorded.calls[index].operation.made_sizes).numel()
            self.codes.setdefault(index, torch.zeros(size, dtype=torch.int64))[channel] = code

    def site(self, site: Site, output: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        units = self.units.get(site.name)
        if not units:
            return output
        shown = self.book.read(output, site.unit_dims, self.number)
        if shown is not None:
            elsewhere = torch.ones(shown.shape[1], dtype=torch.bool)
            elsewhere[units] = False
            shown = shown.masked_fill(elsewhere, 0)
        _add(self.places, ("site", site.name, 0), shown)
        return held(self.session, site.name, output, units)

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """See :class:`Visitor`."""
        call = self.session.recorded.call(index, operation, out)
        kind = operation.kind
        if kind == "link":
            axes = operation.made_axes
            if operation.weight is not None:
                self._note("link", index, out, axes)
            return out
        for order, tensor in enumerate(reads):
            axes = operation.read_axes if kind == "norm" else ()
            self._note(kind, index, tensor, axes, order)
        if call.out is None:
            return out
        if index not in self.codes:
            return call.out.clone()
        codes = self.codes[index]
        return self.book.inject(call.out, operation.made_axes, codes, self.number, torch.nan)

    def _note(
        self, kind: str, index: int, tensor: Tensor, axes: tuple[int, ...], order: int = 0
    ) -> None:
        seen = self.book.read(tensor, axes, self.number)
        _add(self.places, (kind, index, order), seen)
