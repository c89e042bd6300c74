"""Tag replays: tags are put on values, units are clamped, and whoever shows a tag is written down.

Every search is one of these. Items (units or channels) get tags; every contraction returns what it
returned before, so that a tag shows at the direct consumer and no further; units are clamped to
their recorded values, so that no tag passes through them. Items whose tags are seen mixed, as in a
sum of layers, are tagged once more with a bit of their own each, which can be told apart in any
mixture. So what is found of an item does not depend on which others are looked for with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_deadunits.reinit.dataflow.passes import (
    Passes,
    PathChangedError,
    Spot,
    UnitKey,
    Visitor,
)
from lightning_deadunits.reinit.dataflow.tags import LONGEST, CellsLostError, Codebook, codes_in
from lightning_deadunits.reinit.ops import Channel, Operation
from lightning_deadunits.reinit.report import by_layer
from lightning_deadunits.reinit.values import mask_of, replaced

Kind = Literal["consumer", "unit", "norm", "link", "product", "opaque", "result", "python"]
Found = TypeVar("Found")
Item = TypeVar("Item", bound=Hashable)


class Place(NamedTuple):
    """Something that may show tags: what it is, of which call or spot, and which tensor of it."""

    kind: Kind
    of: Any
    order: int = 0


# No class: one that is generic and a NamedTuple takes Python 3.11.
Shown = tuple[Item, Place, int]
"""A channel of a place showed the tag of an item: item, place, channel."""


def on_tape(passes: Passes, tape: int, search: Callable[[int], Found]) -> Found | None:
    """Search with samples as cells, and by replays alone if the model mixes samples.

    Args:
        passes: The passes.
        tape: Which one is searched.
        search: Searches with a number of cells.

    Returns:
        What was found, None if the tape cannot be replayed with tags in it.
    """
    for cells in dict.fromkeys((passes.cells(tape), 1)):
        with suppress(CellsLostError, PathChangedError):
            return search(cells)
    return None


def tagged(
    items: Sequence[Item],
    cells: int,
    replays: Callable[[Codebook, Mapping[Item, int]], Iterator[tuple[Place, int, int]]],
    *,
    exactly: Callable[[Item], bool] = lambda item: True,
) -> list[Shown[Item]]:
    """Tag items and return where each of them shows.

    Args:
        items: The items.
        cells: Blocks of samples that are told apart.
        replays: Runs the replays of a codebook, given the tag of each item; yields place, channel
            and what it showed.
        exactly: Which items are tagged once more if they are seen mixed with others; of the rest
            what is seen mixed is left out.
    """
    items = list(items)
    if not items:
        return []
    book = Codebook.of(len(items), cells)
    item_of = dict(zip(book.codes.tolist(), items, strict=True))
    found: list[Shown[Item]] = []
    mixed: dict[Item, None] = {}
    for place, channel, code in replays(book, _inverse(item_of)):
        if code in item_of:
            found.append((item_of[code], place, channel))
        else:
            mixed |= dict.fromkeys(item_of[own] for own in book.inside(code))
    again = [item for item in mixed if exactly(item)]
    return found + bit_by_bit(again, cells, replays)


def bit_by_bit(
    items: Sequence[Item],
    cells: int,
    replays: Callable[[Codebook, Mapping[Item, int]], Iterator[tuple[Place, int, int]]],
) -> list[Shown[Item]]:
    """Do as :func:`tagged` does, with a bit for each item, some 60 items at a time."""
    found = []
    most = max(1, cells - 1) * (LONGEST // cells)
    for first in range(0, len(items), most):
        some = items[first : first + most]
        book = Codebook.of_single_bits(len(some), cells)
        item_of = dict(zip(book.codes.tolist(), some, strict=True))
        for place, channel, code in replays(book, _inverse(item_of)):
            found += [(item_of[own], place, channel) for own in book.inside(code)]
    return found


def _inverse(item_of: Mapping[int, Item]) -> dict[Item, int]:
    return {item: code for code, item in item_of.items()}


class TagReplay(Visitor):
    """Clamps units, puts tags somewhere, and writes down where they show.

    Args:
        passes: The passes.
        tape: The tape that is replayed.
        book: The tags.
        units: The units, which are clamped to what they were.
    """

    clamps = True
    tags = True

    def __init__(self, passes: Passes, tape: int, book: Codebook, units: Iterable[UnitKey]) -> None:
        self.passes, self.tape, self.book = passes, tape, book
        self.recorded, self.units = passes.recorded, by_layer(units)
        self.number = 0
        self._shown: dict[Place, Tensor] = {}

    def run(self) -> Iterator[tuple[Place, int, int]]:
        """Run all replays; yield every tag that shows, once per place and channel.

        Raises:
            PathChangedError: If the pass cannot be replayed with tags in it.
            CellsLostError: If samples are mixed.
        """
        for number in range(self.book.passes):
            self.number = number
            try:
                self.passes.run(self, self.tape)
            except (CellsLostError, PathChangedError):
                raise
            except Exception as error:  # a call refuses NaN, or has another shape for it
                raise PathChangedError from error
        for place, shown in self._shown.items():
            for channel in torch.nonzero((shown != 0).any(0)).flatten().tolist():
                for code in codes_in(shown[:, channel]):
                    yield place, channel, code

    def look(
        self, place: Place, tensor: Tensor, axes: Sequence[int], only: Sequence[int] | None = None
    ) -> None:
        """Write down what a tensor shows.

        Args:
            place: What it is.
            tensor: The tensor.
            axes: Axes that together index its channels, () if there are none.
            only: The channels that matter, None for all.
        """
        if not tensor.is_floating_point():
            return
        shown = self.book.cells.read(tensor, axes, self.number)
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

    def put(self, tensor: Tensor, axes: tuple[int, ...], codes: Tensor) -> Tensor:
        """Return a copy whose channels are NaN where their tags have a one in this replay."""
        return self.book.cells.mark(tensor, axes, codes, self.number)

    def spot(self, number: int, spot: Spot, output: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        units = self.units.get(spot.layer)
        if not units:
            return output
        self.look(Place("unit", number), output, spot.dims, units)
        mask = mask_of(output, spot.dims, units)
        clamped = torch.where(mask, spot.activation, output)
        return replaced(output, self.at_unit(spot, clamped))

    def at_unit(self, spot: Spot, clamped: Tensor) -> Tensor:
        """Put tags on an activation whose units are clamped; by default none."""
        return clamped


class ChannelTags(TagReplay):
    """Tags channels of what calls return, and looks at units and at what norms read.

    Args:
        passes: The passes.
        tape: The tape that is replayed.
        book: The tags.
        code_of: The tag of each channel.
        units: The units, which are clamped.
        together: Whether a tag stands for all channels of its call.
        everywhere: Whether to look wherever a tag may show.
    """

    def __init__(
        self,
        passes: Passes,
        tape: int,
        book: Codebook,
        code_of: Mapping[Channel, int],
        units: Iterable[UnitKey],
        *,
        together: bool = False,
        everywhere: bool = False,
    ) -> None:
        super().__init__(passes, tape, book, units)
        self._everywhere = everywhere
        self._codes: dict[int, Tensor] = {}
        of_call: dict[int, list[tuple[int, int]]] = {}
        for (index, channel), code in code_of.items():
            of_call.setdefault(index, []).append((channel, code))
        for index, pairs in of_call.items():
            codes = torch.zeros(width_of(passes, index), dtype=torch.int64)
            channels, own = torch.tensor(pairs).unbind(1)
            codes[channels] = own
            self._codes[index] = codes.max().expand(len(codes)) if together else codes

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """See :class:`Visitor`."""
        call = self.recorded.calls[index]
        self._look_at(index, operation, reads, out)
        if call.out is None:
            return out
        passes_on = operation.kind in ("link", "product")
        if index not in self._codes:
            return out if passes_on else call.out.clone()
        value = self.put(out if passes_on else call.out, operation.made_axes, self._codes[index])
        return replaced(out, value) if passes_on else value

    def _look_at(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> None:
        kind = operation.kind
        if kind == "link" and operation.weight is not None and self._everywhere:
            self.look(Place("link", index), out, operation.made_axes)
        elif kind == "norm" and (self._everywhere or not operation.mixes):
            self.look(Place("norm", index), reads[0], operation.read_axes)
        elif kind in ("contraction", "opaque") and self._everywhere:
            for order, tensor in enumerate(reads):
                consumer = kind == "contraction"
                self.look(Place("consumer" if consumer else "opaque", index, order), tensor, ())

    def result(self, key: Any, value: Tensor) -> None:
        """See :class:`Visitor`."""
        if self._everywhere:
            self.look(Place("result", (self.tape, key)), value, ())

    def read(self, key: Any, value: Tensor, name: str) -> None:
        """See :class:`Visitor`."""
        if self._everywhere:
            self.look(Place("python", (self.tape, key)), value, ())


def width_of(passes: Passes, index: int) -> int:
    """Return how many channels a call makes."""
    return torch.Size(passes.recorded.calls[index].operation.made_sizes).numel()
