"""New values for parts of tensors, which can be taken back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_deadunits.reinit.weight_slice import WeightSlice


class Edit:
    """Values that are to be written; later ones win over earlier ones for the same element."""

    def __init__(self) -> None:
        self._values: dict[Tensor, list[tuple[Tensor, Tensor]]] = {}
        self._backup: list[tuple[WeightSlice, Tensor]] = []

    def set(self, part: WeightSlice, values: Tensor | float) -> None:
        """Plan to write values, one per element or one for all, cast to the tensor's dtype."""
        target = part.parameter
        values = torch.as_tensor(values, dtype=target.dtype, device=target.device)
        values = values.expand(part.positions.shape)
        self._values.setdefault(target, []).append((part.positions, values))

    def slices(self) -> Iterator[tuple[WeightSlice, Tensor]]:
        """Yield what is written where, each element once."""
        for target, planned in self._values.items():
            if len(planned) > 1:
                self._values[target] = [_merged(planned)]
            positions, values = self._values[target][0]
            yield WeightSlice(target, positions), values

    def apply_(self) -> None:
        """Write all or nothing; what was there before is kept for :meth:`undo_`."""
        try:
            for part, values in self.slices():
                before = part.read(part.parameter)
                part.write_(part.parameter, values)
                self._backup.append((part, before))
        except BaseException:
            self.undo_()
            raise

    def undo_(self) -> None:
        """Write back what was there, bit for bit."""
        while self._backup:
            part, values = self._backup.pop()
            part.write_(part.parameter, values)

    def before(self) -> list[Tensor]:
        """Return what was there before, in the order of :meth:`slices`."""
        return [values for _, values in self._backup]


def _merged(planned: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return planned values with each element once, as it was planned last."""
    positions, order = torch.cat([own for own, _ in planned]).sort(stable=True)
    values = torch.cat([own for _, own in planned])[order]
    last = torch.ones_like(positions, dtype=torch.bool)
    last[:-1] = positions[1:] != positions[:-1]
    return positions[last], values[last]
