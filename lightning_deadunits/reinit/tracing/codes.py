"""Tells many units apart in few passes: each has a code, a set of samples and passes to be NaN in.

All codes have the same number of ones, so that two of them mixed are never taken for a third: a
place that shows a code is reached by that unit alone. A batch of 8 samples tells 70 units apart in
one pass, 12 870 in two.

A model that mixes samples (a mean over the batch, a roll of it) garbles the codes. That is noticed,
for codes are few among those there could be; with one cell, passes alone tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb

import torch
from torch import Tensor

from lightning_deadunits.reinit.tracing.cells import LONGEST, Cells, CellsLostError


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
    cells: Cells
    single: bool = False

    @classmethod
    def of(cls, count: int, cells: int) -> Codebook:
        """Make codes for ``count`` items."""
        needed = next(n for n in range(2, LONGEST + 1) if comb(n, n // 2) >= count)
        bits = min(LONGEST, -(-needed // cells) * cells)  # what the passes have room for
        few = comb(bits, bits // 2) > 2 * count
        codes = _some_codes(bits, count) if few else _all_codes(bits)[:count]
        return cls(codes, bits, Cells(cells))

    @classmethod
    def of_single_bits(cls, count: int, cells: int) -> Codebook:
        """Make codes that show also when mixed, at the price of many more passes.

        One cell of every pass is left out: where it shows, the model mixes the samples, and no
        code explains it.
        """
        per_pass = max(1, cells - 1)
        places = [index // per_pass * cells + index % per_pass for index in range(count)]
        codes = torch.tensor([1 << place for place in places])
        return cls(codes, max(places) + 1, Cells(cells), single=True)

    @property
    def passes(self) -> int:
        """How many passes show every bit of the codes."""
        return -(-self.bits // self.cells.count)

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


def codes_in(places: Tensor) -> list[int]:
    """Return the distinct codes at some places, without 0."""
    return sorted(set(places.flatten().tolist()) - {0})


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
def _all_codes(bits: int) -> Tensor:
    """Return every number of ``bits`` bits of which half are ones."""
    numbers = torch.arange(1 << bits)
    ones = torch.zeros_like(numbers)
    for bit in range(bits):
        ones += (numbers >> bit) & 1
    return numbers[ones == bits // 2]
