"""Which elements of one parameter an operation is about, and new values that can be taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class WeightSlice:
    """Some elements of one parameter, and of every tensor of its shape.

    Elements are named by their place in row-major order, whatever the memory format: so slices of
    any form, rows that cross columns included, can be joined, subtracted and stored alike.

    Args:
        parameter: The parameter that the elements belong to; held, never copied.
        positions: Places in row-major order, each once, int64 of shape ``(K,)``, on the
            parameter's device. :meth:`along` makes them.

    Example:
        >>> weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        >>> column = WeightSlice.along(weight, {1: [2]})
        >>> column.read(weight.detach())
        tensor([2., 5.])
    """

    parameter: Tensor
    positions: Tensor

    @classmethod
    def along(cls, parameter: Tensor, where: Mapping[int, Sequence[int] | Tensor]) -> WeightSlice:
        """Take the product of a few indices along some axes; other axes are taken whole.

        Args:
            parameter: The parameter that the elements belong to.
            where: Indices per axis: ``{0: rows}`` for a producer's units, ``{1: columns}`` for
                what reads them, both for the block of one group of a grouped convolution.

        Returns:
            The slice.

        Raises:
            ValueError: If an axis or an index does not exist.

        Example:
            >>> WeightSlice.along(torch.nn.Parameter(torch.zeros(2, 3)), {0: [1]}).positions
            tensor([3, 4, 5])
        """
        if extra := sorted(axis for axis in where if not 0 <= axis < parameter.dim()):
            raise ValueError(
                f"Expected `where` to name axes below {parameter.dim()}, but got {extra}."
            )
        # Horner's scheme over the axes: a mesh of the product, never a mask of the whole weight.
        positions = torch.zeros((), dtype=torch.int64, device=parameter.device)
        for axis, size in enumerate(parameter.shape):
            taken = _indices(where.get(axis), size, axis, parameter.device)
            positions = positions.unsqueeze(-1) * size + taken
        return cls(parameter, positions.flatten())

    def is_same(self, other: WeightSlice) -> bool:
        """Tell whether the same elements of the same parameter are meant."""
        alike = self.parameter is other.parameter
        return alike and torch.equal(self.positions, other.positions)

    def read(self, tensor: Tensor) -> Tensor:
        """Copy these elements out of a tensor of the parameter's shape, to shape ``(K,)``."""
        tensor = tensor.detach()
        if tensor.is_contiguous():  # 10 times faster than an index per axis
            return tensor.view(-1).index_select(0, self.positions)
        return tensor[self._index]

    def write_(self, tensor: Tensor, values: Tensor | float) -> None:
        """Set these elements of a tensor of the parameter's shape, in place."""
        tensor = tensor.detach()
        if not tensor.is_contiguous():
            tensor[self._index] = values
        elif isinstance(values, Tensor):
            tensor.view(-1).index_copy_(0, self.positions, values)
        else:
            tensor.view(-1).index_fill_(0, self.positions, values)

    @cached_property
    def _index(self) -> tuple[Tensor, ...]:
        # `Tensor.put_` would take the positions as they are, but raises under
        # `torch.use_deterministic_algorithms`.
        return tuple(torch.unravel_index(self.positions, self.parameter.shape))


def _indices(
    wanted: Sequence[int] | Tensor | None, size: int, axis: int, device: torch.device
) -> Tensor:
    """Sorted distinct indices along one axis; all of them where none are named."""
    if wanted is None:
        return torch.arange(size, device=device)
    indices = sorted({int(i) for i in (wanted.tolist() if isinstance(wanted, Tensor) else wanted)})
    if indices and not 0 <= indices[0] <= indices[-1] < size:
        raise ValueError(
            f"Expected indices along axis {axis} to be in [0, {size}), but got {indices}."
        )
    return torch.tensor(indices, dtype=torch.int64, device=device)


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


def written(edits: Iterable[Edit]) -> list[WeightSlice]:
    """Return the elements that edits are about, each once."""
    merged = Edit()
    for edit in edits:
        for weights, _ in edit.slices():
            merged.set(weights, 0.0)
    return [weights for weights, _ in merged.slices()]


def _merged(planned: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return planned values with each element once, as it was planned last."""
    positions, order = torch.cat([own for own, _ in planned]).sort(stable=True)
    values = torch.cat([own for _, own in planned])[order]
    last = torch.ones_like(positions, dtype=torch.bool)
    last[:-1] = positions[1:] != positions[:-1]
    return positions[last], values[last]
