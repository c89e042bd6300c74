"""Counts of a tensor whose rows were made by different ones of several stacked weights.

As in a mixture of experts that gathers weights per token, or multiplies groups of rows at once: the
units of each expert are a layer of their own, seen on those rows only that were routed to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.observation.identity import Members
from lightning_deadunits.observation.lineage.axes import Axes
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.sums import LayerCounts

COMPILED_MEMBERS = (
    "which of several stacked weights made which row cannot be told within a compiled region; "
    "count it without torch.compile"
)


class Rows(NamedTuple):
    """The values of an activation, by row.

    Attributes:
        values: Shape ``(R, P, U)``: rows, positions and units.
        home: Which member made each row, int64 of shape ``(R,)``; ``number`` for none.
        number: How many members there are.
    """

    values: Tensor
    home: Tensor
    number: int

    def summed(self, of_rows: Tensor) -> Tensor:
        """Sum what is of each row by members, without waiting for the device."""
        into = torch.zeros(
            self.number + 1, *of_rows.shape[1:], dtype=of_rows.dtype, device=of_rows.device
        )
        return into.index_add_(0, self.home, of_rows)[: self.number]


def by_row(members: Members, values: Tensor, dims: Axes) -> Rows:
    """Lay out an activation by the rows of which each is made by one member.

    Args:
        members: Which member made each row.
        values: Its values, shape ``(N, *, U)``, the first axes those of ``members``.
        dims: Axes that index the units; none of the members' own.

    Raises:
        NotImplementedError: If the rows of the members are not the tensor's first axes.
    """
    rows = rows_of(members, values)
    own = rows.ndim
    if values.shape[:own] != rows.shape or any(axis < own for axis in dims):
        raise NotImplementedError("which of the stacked weights made which row cannot be told")
    rows = rows.flatten()
    others = [axis for axis in range(own, values.ndim) if axis not in dims]
    table = values.permute(*range(own), *others, *dims)
    units = torch.Size([values.shape[axis] for axis in dims]).numel()
    known = (rows >= 0) & (rows < members.number)  # a router may send a token nowhere
    home = torch.where(known, rows, members.number)
    return Rows(table.reshape(len(rows), -1, units), home, members.number)


def by_member(
    site: Site, values: Tensor, dims: Axes, atol: float
) -> Iterator[tuple[str, LayerCounts]]:
    """Count the zeros of the units of every member, see :func:`by_row`.

    Args:
        site: The activation.
        values: Its values.
        dims: Axes that index the units.
        atol: Values with ``|a| <= atol`` count as zero.
    """
    assert site.members is not None
    rows = by_row(site.members, values, dims)
    table = rows.values
    is_zero = table == 0 if atol == 0 else table.abs() <= atol
    zeros = rows.summed(is_zero.sum(1))
    nonfinite = rows.summed((~table.isfinite()).sum((1, 2)))
    seen = rows.summed(torch.full_like(rows.home, table.shape[1]))
    for member, name in enumerate(site.layers()):
        yield (
            name,
            LayerCounts(
                *(zeros[member], nonfinite[member], seen[member]),
                *(site.unit_dims[0], site.kind, site.assumed),
            ),
        )


def rows_of(members: Members, values: Tensor) -> Tensor:
    """Return which member made each row."""
    if not members.ends:
        return members.rows.long()
    places = torch.arange(values.shape[0], device=values.device)
    return torch.searchsorted(members.rows.to(places.dtype), places, right=True)
