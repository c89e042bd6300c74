"""Codes that were seen, over the passes of one search: at which place, in which channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.reinit.running.probe import PathChangedError
from lightning_deadunits.reinit.tracing.codes import Codebook, codes_in

Kind = Literal["read", "unit", "norm", "link", "product", "opaque", "output"]


class Place(NamedTuple):
    """Something that may carry codes: what it is, of which call or layer, and which tensor."""

    kind: Kind
    of: int | str
    order: int = 0


class Sighting(NamedTuple):
    """A code that one channel of a place showed."""

    place: Place
    channel: int
    code: int


class Sightings:
    """Collects what passes show.

    Args:
        book: The codes, and how they are spread over passes.
    """

    def __init__(self, book: Codebook) -> None:
        self.book = book
        self._seen: dict[Place, Tensor] = {}

    def look(
        self,
        place: Place,
        tensor: Tensor,
        axes: Sequence[int],
        number: int,
        only: Sequence[int] | None = None,
    ) -> None:
        """Take down what a tensor shows in pass ``number``.

        Args:
            place: What it is.
            tensor: The tensor.
            axes: Axes that together index its channels, () if there are none.
            number: Which pass it is.
            only: The channels that matter, None for all.
        """
        shown = self.book.cells.read(tensor, axes, number)
        if shown is None:
            return
        if only is not None:
            elsewhere = torch.ones(shown.shape[1], dtype=torch.bool)
            elsewhere[list(only)] = False
            shown = shown.masked_fill(elsewhere, 0)
        seen = self._seen.get(place, torch.zeros_like(shown))
        if seen.shape != shown.shape:
            raise PathChangedError
        self._seen[place] = seen + shown

    def __iter__(self) -> Iterator[Sighting]:
        """Yield every code that was seen somewhere, once per place and channel."""
        for place, seen in self._seen.items():
            for channel in torch.nonzero((seen != 0).any(0)).flatten().tolist():
                for code in codes_in(seen[:, channel]):
                    yield Sighting(place, channel, code)
