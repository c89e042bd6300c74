"""Puts codes on a tensor and reads them: one bit per cell, a block of samples that may be NaN.

Cells are equal blocks of the first axis that can be cut so, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST = 62
"""Bits of a code: an int64 holds them, and one for what no pass shows."""


class CellsLostError(Exception):
    """A tensor that was reached has no axis for the samples, or samples are mixed in it."""


@dataclass(frozen=True)
class Cells:
    """Some cells.

    Args:
        count: How many.
    """

    count: int

    def fits(self, tensor: Tensor, axes: Sequence[int]) -> bool:
        """Tell whether the samples are on some axis of a tensor, so that it can carry any code."""
        return self.count == 1 or self._axis(tensor, axes) is not None

    def mark(self, tensor: Tensor, axes: Sequence[int], codes: Tensor, number: int) -> Tensor:
        """Return a copy with the channels of some codes made NaN where pass ``number`` has a one.

        NaN is not lost in a maximum or a ReLU.

        Args:
            tensor: What is to carry the codes.
            axes: Axes that together index the channels, ascending.
            codes: Code of every channel, 0 for none, int64 of shape ``(C,)``.
            number: Which pass it is.
        """
        chosen = self._chosen(tensor, axes, codes, number)
        return torch.where(chosen.to(tensor.device), tensor + torch.nan, tensor)

    def read(self, tensor: Tensor, axes: Sequence[int], number: int) -> Tensor | None:
        """Return what pass ``number`` shows of the code at every place.

        Args:
            tensor: What may carry codes.
            axes: Axes that together index the channels, ascending; () if there are none.
            number: Which pass it is.

        Returns:
            Int64 of shape ``(P, C)``: positions, channels; None if nothing is NaN.

        Raises:
            CellsLostError: If something is NaN and there is no axis for the samples.
        """
        # A sum takes a third of the time, and most tensors carry no code at all.
        if not bool(tensor.sum().isnan()):
            return None
        changed = tensor.isnan()
        own = self._axis(changed, axes)
        if own is None and self.count > 1:
            raise CellsLostError
        front = [] if own is None else [own]
        middle = [axis for axis in range(changed.ndim) if axis not in (*axes, *front)]
        channels = torch.Size([changed.shape[axis] for axis in axes]).numel()
        blocks = changed.permute([*front, *middle, *axes]).reshape(self.count, -1, channels)
        weights = 1 << self._bits(number)
        return (blocks.cpu().long() * weights.reshape(-1, 1, 1)).sum(0)

    def _bits(self, number: int) -> Tensor:
        """Return which bits of a code a pass shows."""
        return torch.arange(number * self.count, (number + 1) * self.count).clamp(max=LONGEST)

    def _chosen(self, tensor: Tensor, axes: Sequence[int], codes: Tensor, number: int) -> Tensor:
        sizes = [tensor.shape[axis] for axis in axes]
        ones = ((codes.unsqueeze(1) >> self._bits(number)) & 1).bool()
        own = self._axis(tensor, axes)
        if own is None:
            # A place without samples is always on if it can be: a code that none has.
            whole = ones[:, 0] if self.count == 1 else codes != 0
            return _spread(whole.reshape(sizes), list(axes), tensor.ndim)
        ones = ones.repeat_interleave(tensor.shape[own] // self.count, dim=1)
        return _spread(ones.reshape(*sizes, tensor.shape[own]), [*axes, own], tensor.ndim)

    def _axis(self, tensor: Tensor, axes: Sequence[int]) -> int | None:
        if self.count == 1:
            return None
        for axis, size in enumerate(tensor.shape):
            if axis not in axes and size and size % self.count == 0:
                return axis
        return None


def _spread(values: Tensor, axes: list[int], ndim: int) -> Tensor:
    """View a tensor whose axes are those of another one such that it broadcasts to that one."""
    order = sorted(range(len(axes)), key=lambda index: axes[index])
    shape = [1] * ndim
    for index in order:
        shape[axes[index]] = values.shape[index]
    return values.permute(order).reshape(shape)
