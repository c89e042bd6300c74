"""Marks channels of what calls return: every call returns what it did before, with codes on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.operations import Channel, Operation
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.codes import Codebook
from lightning_deadunits.reinit.tracing.seeking import Seeker
from lightning_deadunits.reinit.values import replaced


class Marker(Seeker):
    """Marks channels, and looks at units and at what norms read.

    Args:
        session: The session.
        book: The codes.
        marks: Which code each marked channel carries, per call int64 of shape ``(C,)``.
        units: The units, which are held.
        thorough: Whether to look wherever a mark may show.
    """

    def __init__(
        self,
        session: Session,
        book: Codebook,
        marks: Mapping[int, Tensor],
        units: Iterable[UnitKey],
        *,
        thorough: bool = False,
    ) -> None:
        super().__init__(session, book, units)
        self.marks, self.thorough = marks, thorough

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """See :class:`Visitor`."""
        call = self.session.recorded.call(index, operation, out)
        self._look_at(index, operation, reads, out)
        if call.out is None:
            return out
        passed = operation.kind in ("link", "product")
        if index not in self.marks:
            return out if passed else call.out.clone()
        marked = self.marked(out if passed else call.out, operation.made_axes, self.marks[index])
        return replaced(out, marked) if passed else marked

    def _look_at(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> None:
        kind = operation.kind
        if kind == "link" and operation.weight is not None and self.thorough:
            self.look("link", index, out, operation.made_axes)
        elif kind == "norm" and (self.thorough or not operation.mixes):
            self.look("norm", index, reads[0], operation.read_axes)
        elif kind in ("contraction", "opaque") and self.thorough:
            for order, tensor in enumerate(reads):
                self.look("read" if kind == "contraction" else kind, index, tensor, (), order)


def width_of(session: Session, index: int) -> int:
    """Return how many channels a call makes."""
    return torch.Size(session.recorded.calls[index].operation.made_sizes).numel()


def marks_of(session: Session, codes: Mapping[Channel, int]) -> dict[int, Tensor]:
    """Return the code of every channel of the calls of which some are marked, else 0."""
    of_call: dict[int, list[tuple[int, int]]] = {}
    for (index, channel), code in codes.items():
        of_call.setdefault(index, []).append((channel, code))
    marks = {}
    for index, pairs in of_call.items():
        marks[index] = torch.zeros(width_of(session, index), dtype=torch.int64)
        channels, of_channels = torch.tensor(pairs).unbind(1)
        marks[index][channels] = of_channels
    return marks
