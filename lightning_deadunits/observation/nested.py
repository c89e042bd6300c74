"""The values of a nested tensor as a dense one: sequences of their own lengths, nothing padded."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_deadunits.observation.lineage.axes import Axes


def dense(activation: Tensor, unit_dims: Axes) -> tuple[Tensor, Axes]:
    """Return an activation without its raggedness, and where its unit axes are then.

    Args:
        activation: A nested tensor of shape ``(N, *, U, *)``, its second axis ragged.
        unit_dims: Axes that index the units.

    Raises:
        NotImplementedError: If the units are on the ragged axis or the batch axis.
    """
    if min(unit_dims) < 2:
        raise NotImplementedError("the units of a nested tensor are on its ragged axis")
    merged = tuple(axis - 1 for axis in unit_dims)
    if activation.layout == torch.jagged:
        return activation.values(), merged
    return torch.cat(list(activation.unbind())), merged
