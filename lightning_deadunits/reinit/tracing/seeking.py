"""How every search runs: as many passes as its codes have, and anew where samples are mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_deadunits.observation.site import Site
from lightning_deadunits.reinit.report import by_layer
from lightning_deadunits.reinit.running.probe import PathChangedError, Visitor
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.cells import CellsLostError
from lightning_deadunits.reinit.tracing.codes import Codebook
from lightning_deadunits.reinit.tracing.sightings import Kind, Place, Sightings
from lightning_deadunits.reinit.values import mask_of, replaced

Found = TypeVar("Found")


def with_fewer_cells(session: Session, search: Callable[[int], Found], otherwise: Found) -> Found:
    """Search with samples as cells, and by passes alone if the model mixes samples.

    Args:
        session: The session.
        search: Searches with a number of cells.
        otherwise: What is found if the model takes another path both times.
    """
    for cells in dict.fromkeys((session.example.cells, 1)):
        with suppress(CellsLostError, PathChangedError):
            return search(cells)
    return otherwise


class Seeker(Visitor):
    """Puts codes somewhere, holds units as they were recorded, and looks where the codes show.

    Args:
        session: The session.
        book: The codes.
        units: The units.

    Attributes:
        seen: What was seen.
        number: Which pass it is.
    """

    uses_nan = True

    def __init__(self, session: Session, book: Codebook, units: Iterable[UnitKey]) -> None:
        self.session, self.units = session, by_layer(units)
        self.held = session.recorded
        self.seen, self.number = Sightings(book), 0

    def run(self, *, outputs: bool = True) -> Sightings:
        """Run all passes.

        Args:
            outputs: Whether to look at what the model returns, too.
        """
        for number in range(self.seen.book.passes):
            self.number = number
            for order, output in enumerate(self._outputs()):
                if outputs:
                    self.look("output", -1, output, (), order)
        return self.seen

    def _outputs(self) -> list[Tensor]:
        try:
            return self.session.replay(self)
        except (CellsLostError, PathChangedError):
            raise
        except Exception as error:  # the model's own: it checks its values, and NaN is none
            raise PathChangedError from error

    def look(
        self, kind: Kind, of: int | str, tensor: Tensor, axes: tuple[int, ...], order: int = 0
    ) -> None:
        """Take down what a tensor shows."""
        only = self.units.get(str(of)) if kind == "unit" else None
        self.seen.look(Place(kind, of, order), tensor, axes, self.number, only)

    def marked(self, tensor: Tensor, axes: tuple[int, ...], codes: Tensor) -> Tensor:
        """Return a copy whose channels are NaN where their codes have a one in this pass."""
        return self.seen.book.cells.mark(tensor, axes, codes, self.number)

    def site(self, site: Site, output: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        units = self.units.get(site.name)
        if not units:
            return output
        dims, before = self.session.recorded.sites[site.name]
        if before.shape != output.shape:
            raise PathChangedError
        self.look("unit", site.name, output, dims)
        still = torch.where(mask_of(output, dims, units), before, output)
        return replaced(output, self.coded(site.name, still, dims))

    def coded(self, layer: str, still: Tensor, dims: tuple[int, ...]) -> Any:
        """Put codes on an activation whose units are held; by default none."""
        return still
