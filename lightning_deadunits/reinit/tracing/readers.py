"""Which weights read a unit: it is changed at its activation, and layers that notice are asked.

Every contraction returns what it returned before, so that only direct readers show. The units are
told apart by :mod:`codes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.operations import Operation
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.cells import LONGEST, CellsLostError
from lightning_deadunits.reinit.tracing.codes import Codebook
from lightning_deadunits.reinit.tracing.edges import Edges, Readers
from lightning_deadunits.reinit.tracing.hearing import refuse_shared
from lightning_deadunits.reinit.tracing.seeking import Seeker, with_fewer_cells
from lightning_deadunits.reinit.values import replaced


def find_readers(session: Session, units: Iterable[UnitKey]) -> Readers:
    """Find all that reads some units, and whether it reads anything else with the same weights."""
    units = list(units)
    found = _find(session, units, factors=False)
    left = [unit for unit in units if unit in found.refused]
    if left and any(call.operation.reads_by_factor for call in session.recorded.calls):
        _take_over(found, _find(session, left, factors=True), left)
    return found


def _find(session: Session, units: list[UnitKey], factors: bool) -> Readers:
    reason = "its values steer the model (control flow, or a check of them): it cannot be traced"
    lost = Readers(refused=dict.fromkeys(units, reason))
    found = with_fewer_cells(
        session, lambda cells: _found(session, units, cells, factors), otherwise=lost
    )
    refuse_shared(session, found)
    read = set().union(*found.channels.values())
    for unit in units:
        if unit not in read:
            found.refused.setdefault(unit, found.hints.get(unit, "no layer reads it"))
    return found


def _take_over(found: Readers, other: Readers, units: list[UnitKey]) -> None:
    """Have units that a factor of their own can silence read by that factor alone."""
    saved = {unit for unit in units if unit not in other.refused}
    channels = {channel: fed_by - saved for channel, fed_by in found.channels.items()}
    for channel, fed_by in other.channels.items():
        channels[channel] = channels.get(channel, set()) | (fed_by & saved)
    found.channels = {channel: fed_by for channel, fed_by in channels.items() if fed_by}
    found.refused = {unit: why for unit, why in found.refused.items() if unit not in saved}


def _found(session: Session, units: list[UnitKey], cells: int, factors: bool) -> Readers:
    """Ask all units at once; those that are mixed somewhere, with codes that can be mixed."""
    edges = Edges()
    book = Codebook.of(len(units), cells)
    mixed = _search(_Asking(session, book, units, units, factors), edges)
    most = max(1, cells - 1) * (LONGEST // cells)
    for first in range(0, len(mixed), most):
        some = mixed[first : first + most]
        single = Codebook.of_single_bits(len(some), cells)
        _search(_Asking(session, single, some, units, factors), edges)
    return edges.resolved(session)


def _search(asking: _Asking, edges: Edges) -> list[UnitKey]:
    """Find which units are seen where; return those seen mixed that cannot be told apart."""
    book, unit_of = asking.seen.book, asking.unit_of
    mixed: dict[UnitKey, None] = {}
    for place, channel, code in asking.run():
        units = [unit_of[own] for own in book.inside(code)]
        if code in unit_of or book.single:
            edges.add(place, channel, units)
        else:
            mixed |= dict.fromkeys(units)
    return list(mixed)


class _Asking(Seeker):
    """Makes units NaN by their codes, holds the others and every contraction: who notices?"""

    def __init__(
        self,
        session: Session,
        book: Codebook,
        coded: list[UnitKey],
        held: list[UnitKey],
        factors: bool,
    ) -> None:
        super().__init__(session, book, held)
        self.factors = factors
        self.unit_of = dict(zip(book.codes.tolist(), coded, strict=True))
        self._codes: dict[str, Tensor] = {}
        for layer in self.units:
            self._codes[layer] = torch.zeros(session.recorded.num_units(layer), dtype=torch.int64)
        for code, (layer, unit) in self.unit_of.items():
            self._codes[layer][unit] = code

    def coded(self, layer: str, still: Tensor, dims: tuple[int, ...]) -> Tensor:
        if not self.seen.book.cells.fits(still, dims):
            raise CellsLostError
        return self.marked(still, dims, self._codes[layer])

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        call = self.session.recorded.call(index, operation, out)
        by_factor = self.factors and operation.reads_by_factor
        if operation.kind == "contraction" or operation.reads_by_scale or by_factor:
            self.look("read", index, reads[0], operation.read_axes)
            if call.out is None:
                return out
            return replaced(out, call.out) if by_factor else call.out.clone()
        if operation.kind in ("opaque", "product") or operation.mixes:
            kind = "norm" if operation.mixes else operation.kind
            for order, tensor in enumerate(reads):
                self.look(kind, index, tensor, (), order)
        return out
