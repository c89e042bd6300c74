"""Tells many units apart in few passes: each has a code, a set of samples and passes to be NaN in.

All codes have the same number of ones, so that two of them mixed are never taken for a third: a
place that shows a code is reached by that unit alone. A batch of 8 samples tells 70 units apart in
one pass, 12 870 in two.

Samples are cells: equal blocks of the first axis that can be cut so, wherever it stands. A model
that mixes them (a mean over the batch, a roll of it) garbles the codes, which is noticed for codes
are few among those there could be; ``cells=1`` then codes by passes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb

import torch
from torch import Tensor


class CellsLostError(Exception):
    """A tensor that was reached has no axis for the samples, or samples are mixed in it."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """Codes for some items, and how they are spread over passes.

    Args:
        codes: One code per item, int64 of shape ``(K,)``.
        bits: Length of a code.
        cells: Samples that are told apart within a pass.
        single: Whether every code is a single bit.
    """

    codes: Tensor
    bits: int
    cells: int
    single: bool = False

    @classmethod
    def of(cls, count: int, cells: int) -> Codebook:
        """Make codes for ``count`` items."""
        needed = next(n for n in range(2, 63) if comb(n, n // 2) >= count)
        bits = min(62, -(-needed // cells) * cells)  # what the passes have room for
        few = comb(bits, bits // 2) > 2 * count
        return cls(_some_codes(bits, count) if few else _codes(bits)[:count], bits, cells)

    @classmethod
    def of_single_bits(cls, count: int, cells: int) -> Codebook:
        """Make codes that show also when mixed, at the price of many more passes.

        One cell of every pass is left out: where it shows, the model mixes the samples, and no
        code explains it.
        """
        per_pass = max(1, cells - 1)
        places = [index // per_pass * cells + index % per_pass for index in range(count)]
        codes = torch.tensor([1 << place for place in places])
        return cls(codes, max(places) + 1, cells, single=True)

    def inside(self, code: int) -> list[int]:
        """Return the codes that are in a mixture.

        Raises:
            CellsLostError: If they do not explain it, so that the samples must have been mixed.
        """
        if code in self._known:
            return [code]
        own: list[int] = self.codes[(self.codes & code) == self.codes].tolist()
        if not own or (self.single and sum(own) != code):
            raise CellsLostError
        return own

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.codes.tolist())

    @property
    def passes(self) -> int:
        """How many passes show every bit of the codes."""
        return -(-self.bits // self.cells)

    def inject(
        self, tensor: Tensor, axes: Sequence[int], codes: Tensor, number: int, value: float
    ) -> Tensor:
        """Return a copy with the channels of some codes made NaN where pass ``number`` has a one.

        Args:
            tensor: What is to carry the codes.
            axes: Axes that together index the channels, ascending.
            codes: Code of every channel, 0 for none, int64 of shape ``(C,)``.
            number: Which pass it is.
            value: What is added to the chosen values; NaN is not lost in a max or a ReLU.
        """
        chosen = self._chosen(tensor, axes, codes, number)
        return torch.where(chosen.to(tensor.device), tensor + value, tensor)

    def _chosen(self, tensor: Tensor, axes: Sequence[int], codes: Tensor, number: int) -> Tensor:
        sizes = [tensor.shape[axis] for axis in axes]
        shifts = torch.arange(number * self.cells, (number + 1) * self.cells)
        ones = ((codes.unsqueeze(1) >> shifts.clamp(max=62)) & 1).bool()
        cell_axis = self._cell_axis(tensor, axes)
        if cell_axis is None:
            # A place without samples is always on if it can be: a code that none has.
            whole = ones[:, 0] if self.cells == 1 else codes != 0
            return _spread(whole.reshape(sizes), list(axes), tensor.ndim)
        ones = ones.repeat_interleave(tensor.shape[cell_axis] // self.cells, dim=1)
        placed = ones.reshape(*sizes, tensor.shape[cell_axis])
        return _spread(placed, [*axes, cell_axis], tensor.ndim)

    def fits(self, tensor: Tensor, axes: Sequence[int]) -> bool:
        """Tell whether the samples are on some axis of a tensor, so that it can carry any code."""
        return self.cells == 1 or self._cell_axis(tensor, axes) is not None

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
        cell_axis = self._cell_axis(changed, axes)
        if cell_axis is None and self.cells > 1:
            raise CellsLostError
        front = [] if cell_axis is None else [cell_axis]
        middle = [axis for axis in range(changed.ndim) if axis not in (*axes, *front)]
        channels = torch.Size([changed.shape[axis] for axis in axes]).numel()
        blocks = changed.permute([*front, *middle, *axes]).reshape(self.cells, -1, channels)
        weights = 1 << torch.arange(self.cells).add(number * self.cells).clamp(max=62)
        return (blocks.cpu().long() * weights.reshape(-1, 1, 1)).sum(0)

    def _cell_axis(self, tensor: Tensor, axes: Sequence[int]) -> int | None:
        if self.cells == 1:
            return None
        for axis, size in enumerate(tensor.shape):
            if axis not in axes and size and size % self.cells == 0:
                return axis
        return None


def codes_in(places: Tensor) -> list[int]:
    """Return the distinct codes at some places, without 0."""
    return sorted(set(places.flatten().tolist()) - {0})


def _spread(values: Tensor, axes: list[int], ndim: int) -> Tensor:
    """View a tensor whose axes are those of another one such that it broadcasts to that one."""
    order = sorted(range(len(axes)), key=lambda index: axes[index])
    shape = [1] * ndim
    for index in order:
        shape[axes[index]] = values.shape[index]
    return values.permute(order).reshape(shape)


def _some_codes(bits: int, count: int) -> Tensor:
    """Return distinct random numbers of ``bits`` bits of which half are ones."""
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < count:
        noise = torch.rand(count, bits, generator=generator)
        drawn = (1 << noise.topk(bits // 2, dim=1).indices).sum(1)
        found = torch.unique(torch.cat((found, drawn)))
    return found[torch.randperm(len(found), generator=generator)[:count]]


@lru_cache(maxsize=8)
def _codes(bits: int) -> Tensor:
    """Return every number of ``bits`` bits of which half are ones."""
    numbers = torch.arange(1 << bits)
    ones = torch.zeros_like(numbers)
    for bit in range(bits):
        ones += (numbers >> bit) & 1
    return numbers[ones == bits // 2]
