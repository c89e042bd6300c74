"""New values for parts of tensors, which can be taken back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_deadunits.reinit.weight_slice import WeightSlice


class Edit:
    """Values that are to be written; later ones win over earlier ones for the same element."""

    def __init__(self) -> None:
        self._values: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._backup: list[tuple[WeightSlice, Tensor]] = []

    def set(self, part: WeightSlice, values: Tensor | float) -> None:
        """Plan to write values, one per element or one for all, cast to the tensor's dtype."""
        target = part.parameter
        values = torch.as_tensor(values, dtype=target.dtype, device=target.device)
        values = values.expand(part.positions.shape)
        if target in self._values:
            old, before = self._values[target]
            keep = ~torch.isin(old, part.positions)
            merged = torch.cat((old[keep], part.positions)), torch.cat((before[keep], values))
            self._values[target] = merged
        else:
            self._values[target] = (part.positions, values)

    def slices(self) -> Iterator[tuple[WeightSlice, Tensor]]:
        """Yield what is written where."""
        for target, (positions, values) in self._values.items():
            yield WeightSlice(target, positions), values

    def positions(self, target: Tensor) -> Tensor | None:
        """Return which elements of a tensor are written, None if none is."""
        return self._values[target][0] if target in self._values else None

    def apply_(self) -> None:
        """Write; what was there before is kept for :meth:`undo_`."""
        for part, values in self.slices():
            self._backup.append((part, part.read(part.parameter)))
            part.write_(part.parameter, values)

    def undo_(self) -> None:
        """Write back what was there, bit for bit."""
        while self._backup:
            part, values = self._backup.pop()
            part.write_(part.parameter, values)

    def before(self) -> list[Tensor]:
        """Return what was there before, in the order of :meth:`slices`."""
        return [values for _, values in self._backup]
