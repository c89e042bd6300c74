"""Counts of a tensor whose rows were made by different ones of several stacked weights.

As in a mixture of experts that gathers weights per token, or multiplies groups of rows at once: the
units of each expert are a layer of their own, seen on those rows only that were routed to it.
"""

from __future__ import annotations

from collections.abc import Iterator

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


def by_member(
    site: Site, values: Tensor, dims: Axes, atol: float
) -> Iterator[tuple[str, LayerCounts]]:
    """Count the zeros of the units of every member, without waiting for the device.

    Args:
        site: The activation.
        values: Its values, shape ``(N, *, U)``, the first axes those of ``site.members``.
        dims: Axes that index the units; none of the members' own.
        atol: Values with ``|a| <= atol`` count as zero.

    Raises:
        NotImplementedError: If the rows of the members are not the tensor's first axes.
    """
    assert site.members is not None
    number, rows = site.members.number, rows_of(site.members, values)
    own = rows.ndim
    if values.shape[:own] != rows.shape or any(axis < own for axis in dims):
        raise NotImplementedError("which of the stacked weights made which row cannot be told")
    rows = rows.flatten()
    others = [axis for axis in range(own, values.ndim) if axis not in dims]
    table = values.permute(*range(own), *others, *dims)
    units = torch.Size([values.shape[axis] for axis in dims]).numel()
    table = table.reshape(len(rows), -1, units)
    known = (rows >= 0) & (rows < number)  # a router may send a token nowhere
    home = torch.where(known, rows, number)

    def summed(flags: Tensor) -> Tensor:
        into = torch.zeros(number + 1, *flags.shape[1:], dtype=torch.int64, device=flags.device)
        return into.index_add_(0, home, flags)[:number]

    is_zero = table == 0 if atol == 0 else table.abs() <= atol
    zeros = summed(is_zero.sum(1))
    nonfinite = summed((~table.isfinite()).sum((1, 2)))
    seen = summed(torch.full_like(rows, table.shape[1], dtype=torch.int64))
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
