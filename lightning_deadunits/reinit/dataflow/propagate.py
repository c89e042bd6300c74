"""Tag replays: tags are put on values, units are clamped, and where a tag shows is written down.

Every search is one of these. Items (units or channels) get tags; every contraction returns what it
returned before, so that a tag shows at the direct consumer and no further; units are clamped to
their recorded values, so that no tag passes through them. Items whose tags are seen mixed, as in a
sum of layers, are tagged once more with a bit of their own each, which can be told apart in any
mixture. So what is found of an item does not depend on which others are looked for with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.reinit.dataflow.passes import (
    Passes,
    PathChangedError,
    Spot,
    Tagged,
    UnitKey,
    Visitor,
    mask_of,
    replaced,
)
from lightning_deadunits.reinit.dataflow.tags import LONGEST, CellsLostError, Codebook, Item
from lightning_deadunits.reinit.dataflow.taints import taint_of
from lightning_deadunits.reinit.ops.operation import Channel, Operation
from lightning_deadunits.reinit.ops.operation import Kind as OperationKind
from lightning_deadunits.reinit.report import by_layer

Kind = OperationKind | Literal["consumer", "unit", "result", "python"]


class Place(NamedTuple):
    """Something that may show tags: what it is, of which call or spot, and which tensor of it."""

    kind: Kind
    of: Any
    order: int = 0


# No class: one that is generic and a NamedTuple takes Python 3.11.
Shown = tuple[Item, Place, int]
"""A channel of a place showed the tag of an item: item, place, channel."""

Replay = Callable[[Codebook[Item]], Iterator[tuple[Place, int, int]]]
"""Replays with the tags of a codebook, see :meth:`TagReplay.run`."""


def tagged_on_tapes(
    passes: Passes,
    items: Sequence[Tagged],
    clamped: Sequence[UnitKey],
    *,
    makers: Mapping[Tagged, list[Channel]] | None = None,
    factors: bool = False,
    wanted: Callable[[Place], bool] = lambda place: True,
) -> tuple[list[Shown[Tagged]], set[Tagged]]:
    """Do as :func:`tagged` does on all tapes, see :func:`on_tapes`, and look everywhere.

    Returns:
        What shows, and the items of tapes that cannot be replayed with tags in them.
    """

    def search(tape: int, cells: int) -> list[Shown[Tagged]]:
        def replay(book: Codebook[Tagged]) -> Iterator[tuple[Place, int, int]]:
            tags: dict[Any, int] = {}
            for item, code in book.code_of.items():
                tags[item] = code
                tags |= dict.fromkeys((makers or {}).get(item, ()), code)
            return TagReplay(
                passes, tape, book, clamped, tags, everywhere=True, factors=factors
            ).run()

        return tagged(passes.on_tape(tape, items), cells, replay, wanted)

    shown, lost = on_tapes(passes, search)
    return shown, {item for tape in lost for item in passes.on_tape(tape, items)}


def on_tapes(
    passes: Passes, search: Callable[[int, int], list[Shown[Any]]]
) -> tuple[list[Shown[Any]], set[int]]:
    """Search one tape of each structure; what it shows holds for the others of that structure.

    A search is given the number of a tape and that of the cells: the samples, or one if the model
    mixes samples, so that replays alone must tell items apart.

    Returns:
        What shows on all tapes, and the tapes that cannot be replayed with tags in them.
    """
    found: list[Shown[Any]] = []
    lost: set[int] = set()
    for twins in passes.twins:
        tape = twins[0]
        for cells in dict.fromkeys((passes.cells(tape), 1)):
            with suppress(CellsLostError, PathChangedError):
                shown = search(tape, cells)
                for twin in twins:
                    found += [_on_twin(passes, tape, twin, *one) for one in shown]
                break
        else:
            lost |= set(twins)
    return found, lost


def _on_twin(
    passes: Passes, tape: int, twin: int, item: Any, place: Place, channel: int
) -> Shown[Any]:
    calls = passes.first_call[twin] - passes.first_call[tape]
    spots = passes.first_spot[twin] - passes.first_spot[tape]
    if isinstance(item[0], int) and item[0] >= 0:
        item = (item[0] + calls, item[1])
    if isinstance(place.of, int):
        place = place._replace(of=place.of + (spots if place.kind == "unit" else calls))
    return item, place, channel


def tagged(
    items: Sequence[Item],
    cells: int,
    replay: Replay[Item],
    wanted: Callable[[Place], bool],
) -> list[Shown[Item]]:
    """Tag items and return where each of them shows; ``cells`` blocks of samples are told apart.

    Those that are mixed at no place that is wanted are not told apart.
    """
    if not items:
        return []
    found: list[Shown[Item]] = []
    mixed: dict[Item, None] = {}
    book = Codebook.of(items, cells)
    for place, channel, code in replay(book):
        inside = book.inside(code)
        if len(inside) == 1:
            found.append((inside[0], place, channel))
        elif wanted(place):
            mixed |= dict.fromkeys(inside)
    return found + bit_by_bit(list(mixed), cells, replay)


def bit_by_bit(items: Sequence[Item], cells: int, replay: Replay[Item]) -> list[Shown[Item]]:
    """Do as :func:`tagged` does, with a bit for each item, some 60 items at a time."""
    found = []
    most = max(1, cells - 1) * (LONGEST // cells)
    for first in range(0, len(items), most):
        book = Codebook.of_single_bits(items[first : first + most], cells)
        for place, channel, code in replay(book):
            found += [(item, place, channel) for item in book.inside(code)]
    return found


@dataclass(eq=False)
class TagReplay(Visitor):
    """Tags channels of calls and units, clamps units, and writes down where tags show.

    A call whose channels are tagged returns what it returned before, with the tags. A unit shows
    what reaches it, is clamped, and then carries its own tag.

    Attributes:
        passes: The passes.
        tape: The tape that is replayed.
        book: The tags.
        clamped: The units that are clamped.
        tag_of: Tags of channels of calls, and of units.
        everywhere: Whether to look wherever a tag may show, rather than at units and norms alone.
        factors: Whether a product with a parameter is a consumer, for it can silence a channel.
    """

    clamps = True
    tags = True

    passes: Passes
    tape: int
    book: Codebook[Any]
    clamped: Iterable[UnitKey]
    tag_of: Mapping[Any, int]
    everywhere: bool = False
    factors: bool = False

    def __post_init__(self) -> None:
        """Sort the tags."""
        self.start(self.passes, self.tape)
        self.units = by_layer(self.clamped)
        self._shown: dict[Place, Tensor] = {}
        # The tags of all channels of a call, or units of a layer: 0 for those without.
        self._codes: dict[int | str, Tensor] = {}
        for (of, channel), code in self.tag_of.items():
            if of not in self._codes:
                self._codes[of] = torch.zeros(self.passes.width(of), dtype=torch.int64)
            self._codes[of][channel] = code
        self._tags_calls = any(isinstance(of, int) for of in self._codes)

    def run(self) -> Iterator[tuple[Place, int, int]]:
        """Run all replays; yield every tag that shows, once per place and channel.

        Raises:
            PathChangedError: If the pass cannot be replayed with tags in it, or mixes samples.
        """
        for number in range(self.book.passes):
            self.number = number
            try:
                self.passes.run(self, self.tape)
            except Exception as error:  # a call refuses NaN, or has another shape for it
                raise PathChangedError from error
        for place, shown in self._shown.items():
            for channel in torch.nonzero((shown != 0).any(0)).flatten().tolist():
                for code in sorted(set(shown[:, channel].tolist()) - {0}):
                    yield place, channel, code

    def _look(
        self, place: Place, tensor: Tensor, axes: Sequence[int], only: Sequence[int] | None = None
    ) -> None:
        """Write down what a tensor shows at its channels, or at those of them that matter."""
        if not tensor.is_floating_point():
            taint = taint_of(tensor)
            if taint is None:
                return
            tensor = torch.zeros(taint.shape).masked_fill(taint.cpu(), torch.nan)
        shown = self.book.read(tensor, axes, self.number)
        if shown is None:
            return
        if only is not None:
            elsewhere = torch.ones(shown.shape[1], dtype=torch.bool)
            elsewhere[list(only)] = False
            shown = shown.masked_fill(elsewhere, 0)
        before = self._shown.get(place, torch.zeros_like(shown))
        if before.shape != shown.shape:
            raise PathChangedError
        self._shown[place] = before + shown

    def spot(self, number: int, spot: Spot, output: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        units = self.units.get(spot.layer)
        if not units:
            return output
        self._look(Place("unit", number), output, spot.dims, units)
        clamped = torch.where(mask_of(output, spot.dims, units), spot.activation, output)
        codes = self._codes.get(spot.layer)
        if codes is not None:
            if not self.book.fits(clamped, spot.dims):
                raise CellsLostError
            clamped = self.book.mark(clamped, spot.dims, codes, self.number)
        return replaced(output, clamped)

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """See :class:`Visitor`."""
        before, kind = self.passes.calls[index].out, operation.kind
        codes = self._codes.get(index)
        by_factor = self.factors and operation.reads_by_factor
        consumes = kind == "contraction" or operation.reads_by_scale or by_factor
        if kind == "norm" and codes is not None:
            if self.everywhere or not operation.mixes:
                self._look(Place("norm", index), reads[0], operation.read_axes)
        elif self.everywhere and consumes:
            self._look(Place("consumer", index), reads[0], operation.read_axes)
        elif self.everywhere and (kind in ("opaque", "product") or operation.mixes):
            for order, tensor in enumerate(reads):
                self._look(Place(kind, index, order), tensor, ())
        elif self.everywhere and kind == "link" and operation.weight is not None:
            self._look(Place("link", index), out, operation.made_axes)
        if before is None:
            return out
        if codes is not None:
            passes_on = kind in ("link", "product")
            value = out if passes_on else before
            value = self.book.mark(value, operation.made_axes, codes, self.number)
            return replaced(out, value) if passes_on else value
        if by_factor:
            return replaced(out, before)
        # No tag of a producer gets past what cannot be traced, or mixes channels.
        opaque = self._tags_calls and (kind == "opaque" or operation.mixes)
        return before.clone() if consumes or opaque else out

    def result(self, key: Any, value: Tensor, read_by: str | None) -> None:
        """See :class:`Visitor`."""
        if self.everywhere:
            kind: Kind = "result" if read_by is None else "python"
            self._look(Place(kind, (self.tape, key)), value, ())
