"""Tags: sets of NaN by which many channels are told apart in few replays.

Each item has a tag, a set of cells (blocks of samples) and replays to be NaN in. All tags have the
same number of ones, so that two of them mixed are never taken for a third: a place that shows a tag
is reached by that item alone. A batch of 8 samples tells 70 items apart in one replay, 12 870 in
two.

A model that mixes samples (a mean over the batch, a roll of it) garbles the tags. That is noticed,
for tags are few among those there could be; with one cell, replays alone tell them apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item", bound=Hashable)

LONGEST = 62
"""Bits of a code: an int64 holds them, and one for what no pass shows."""


class CellsLostError(Exception):
    """A tensor that was reached has no axis for the samples, or samples are mixed in it."""


@dataclass(frozen=True, eq=False)
class Codebook(Generic[Item]):
    """Codes for some items, and how they are spread over cells and passes.

    Attributes:
        items: The items.
        codes: Their codes, int64, one for each item.
        cells: How many blocks of samples are told apart.
        bits: Bits of a code.
    """

    items: Sequence[Item]
    codes: Tensor
    cells: int
    bits: int

    @classmethod
    def of(cls, items: Sequence[Item], cells: int) -> Codebook[Item]:
        """Make codes that tell items apart which are seen alone."""
        needed = next(n for n in range(2, LONGEST + 1) if comb(n, n // 2) >= len(items))
        bits = min(LONGEST, -(-needed // cells) * cells)  # what the passes have room for
        return cls(items, _some_codes(bits, len(items)), cells, bits)

    @classmethod
    def of_single_bits(cls, items: Sequence[Item], cells: int) -> Codebook[Item]:
        """Make codes that show also when mixed, at the price of many more passes.

        One cell of every pass is left out: where it shows, the model mixes the samples, and no
        code explains it.
        """
        per_pass = max(1, cells - 1)
        places = [i // per_pass * cells + i % per_pass for i in range(len(items))]
        return cls(items, torch.tensor([1 << place for place in places]), cells, max(places) + 1)

    @property
    def passes(self) -> int:
        """How many passes show every bit of the codes."""
        return -(-self.bits // self.cells)

    @cached_property
    def code_of(self) -> dict[Item, int]:
        """The code of each item."""
        return dict(zip(self.items, self.codes.tolist(), strict=True))

    @cached_property
    def item_of(self) -> dict[int, Item]:
        """The item of each code."""
        return {code: item for item, code in self.code_of.items()}

    def inside(self, code: int) -> list[Item]:
        """Return the items that are in a mixture.

        Raises:
            CellsLostError: If they do not explain it, so that the samples must have been mixed.
        """
        if code in self.item_of:
            return [self.item_of[code]]
        own: list[int] = self.codes[(self.codes & code) == self.codes].tolist()
        mixture = 0
        for each in own:
            mixture |= each
        if mixture != code:
            raise CellsLostError
        return [self.item_of[each] for each in own]

    def fits(self, tensor: Tensor, axes: Sequence[int]) -> bool:
        """Tell whether the samples are on some axis of a tensor, so that it can carry any code."""
        return self.cells == 1 or self._axis(tensor, axes) is not None

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
        if own is None and self.cells > 1:
            raise CellsLostError
        front = [] if own is None else [own]
        middle = [axis for axis in range(changed.ndim) if axis not in (*axes, *front)]
        channels = torch.Size([changed.shape[axis] for axis in axes]).numel()
        blocks = changed.permute([*front, *middle, *axes]).reshape(self.cells, -1, channels)
        weights = 1 << self._bits(number)
        return (blocks.cpu().long() * weights.reshape(-1, 1, 1)).sum(0)

    def _bits(self, number: int) -> Tensor:
        """Return which bits of a code a pass shows."""
        return torch.arange(number * self.cells, (number + 1) * self.cells).clamp(max=LONGEST)

    def _chosen(self, tensor: Tensor, axes: Sequence[int], codes: Tensor, number: int) -> Tensor:
        sizes = [tensor.shape[axis] for axis in axes]
        ones = ((codes.unsqueeze(1) >> self._bits(number)) & 1).bool()
        own = self._axis(tensor, axes)
        if own is None:
            # A place without samples is always on if it can be: a code that none has.
            whole = ones[:, 0] if self.cells == 1 else codes != 0
            return _spread(whole.reshape(sizes), list(axes), tensor.ndim)
        ones = ones.repeat_interleave(tensor.shape[own] // self.cells, dim=1)
        return _spread(ones.reshape(*sizes, tensor.shape[own]), [*axes, own], tensor.ndim)

    def _axis(self, tensor: Tensor, axes: Sequence[int]) -> int | None:
        if self.cells == 1:
            return None
        for axis, size in enumerate(tensor.shape):
            if axis not in axes and size and size % self.cells == 0:
                return axis
        return None


def _spread(values: Tensor, axes: list[int], ndim: int) -> Tensor:
    """View a tensor whose axes are those of another one such that it broadcasts to that one."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
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
