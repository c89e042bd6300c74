"""The values of some channels of a tensor: read, silenced, replaced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mask_of(tensor: Tensor, axes: tuple[int, ...], units: list[int]) -> Tensor:
    """Return a mask that is True at some units and broadcasts to the tensor."""
    mask = torch.zeros([tensor.shape[axis] for axis in axes], dtype=torch.bool)
    mask.view(-1)[units] = True
    shape = [tensor.shape[axis] if axis in axes else 1 for axis in range(tensor.ndim)]
    return mask.reshape(shape).to(tensor.device)


def replaced(output: Tensor, value: Tensor) -> Tensor:
    """Write into an activation, for ``x.relu_()`` is often called without use of its result."""
    if torch.is_grad_enabled() and output.requires_grad:
        return value  # autograd may have kept what would be overwritten
    try:
        return output.copy_(value)
    except RuntimeError:  # expanded, or an inference tensor
        return value


def silenced(output: Tensor, unit_dims: tuple[int, ...], units: list[int]) -> Tensor:
    """Make some units of an activation zero."""
    return replaced(output, output.masked_fill(mask_of(output, unit_dims, units), 0.0))


def channel_of(tensor: Tensor, axes: tuple[int, ...], channel: int) -> Tensor:
    """Return the values of one channel; cheap where one axis indexes the channels."""
    if len(axes) == 1:
        return tensor.select(axes[0], channel)
    index: list[Any] = [slice(None)] * tensor.ndim
    for axis in reversed(axes):
        channel, index[axis] = divmod(channel, tensor.shape[axis])
    return tensor[tuple(index)]
