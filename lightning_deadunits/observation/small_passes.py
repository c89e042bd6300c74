"""Small activations of many passes: copied one behind the other, and counted together.

A pass of a narrow network takes no longer than the Python that counts it. As long as such passes
are alike, one copy of each activation is all that is done in the middle of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.counting import count_values
from lightning_deadunits.observation.activations import Kind
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.sums import LayerCounts, Pending, counts_of
from lightning_deadunits.observation.transforms import is_wrapped

_SMALL = 1 << 16
"""Most bytes of a pass: of more, reading them takes the time, not the calls that do."""
_MEMORY, _MOST = 1 << 19, 64
"""Bytes that all copies take at most, and most passes that wait to be counted."""


class _Activation(NamedTuple):
    """What must be alike at each activation for passes to be alike."""

    site: Site
    shape: torch.Size
    dtype: torch.dtype


class _Copies(NamedTuple):
    """Memory for one activation of a pass, and of as many passes as wait."""

    of: _Activation
    every: Tensor
    each: list[Tensor]


class SmallPasses:
    """Copies the activations of passes that are like those before.

    Args:
        atols: Magnitude that counts as zero, by kind of activation.
    """

    def __init__(self, atols: Mapping[Kind, float]) -> None:
        self._atols = atols
        self._copies: list[_Copies] = []
        self._waiting = 0
        self._taken = 0
        self._alike = True
        self._seen: list[_Activation] = []
        self._before: list[_Activation] = []

    def start_pass(self) -> None:
        """Forget what a pass that is not counted has shown."""
        self._taken = 0
        self._alike = True
        self._seen = []

    def take(self, site: Site, activation: Tensor) -> bool:
        """Copy an activation, if it is the one that came at this point of the passes before."""
        if (
            type(activation) is not Tensor
            or not activation.is_cpu
            or activation.is_nested
            or is_wrapped(activation)
        ):
            return False
        at = self._taken
        if self._alike and at < len(self._copies):
            of, _, each = self._copies[at]
            if (
                (site is of.site or site == of.site)
                and activation.dtype is of.dtype
                and activation.shape == of.shape
            ):
                values = activation.detach() if activation.requires_grad else activation
                each[self._waiting].copy_(values)
                self._taken = at + 1
                return True
        self._seen.append(_Activation(site, activation.shape, activation.dtype))
        return False

    def give_back(self) -> list[tuple[Site, Tensor]]:
        """Return what was copied of this pass, for it is not like those before."""
        if not self._alike:
            return []
        taken = self._copies[: self._taken]
        self._alike = False
        self._seen = [copies.of for copies in taken] + self._seen
        return [(copies.of.site, copies.each[self._waiting]) for copies in taken]

    @property
    def is_whole(self) -> bool:
        """Whether all of a pass was copied."""
        return self._alike and 0 < len(self._copies) == self._taken and not self._seen

    def keep(self) -> list[tuple[str, LayerCounts]]:
        """Keep a pass that was copied as a whole; return counts when there is room for no more."""
        self._waiting += 1
        self._taken = 0
        self._before = []
        return self.flush() if self._waiting == len(self._copies[0].each) else []

    def learn(self, counted: Mapping[str, LayerCounts | Pending]) -> list[tuple[str, LayerCounts]]:
        """Expect passes like the last one, if that was like the one before; return counts.

        Args:
            counted: What the last one has shown. What the graph of a compiled region calls when
                it runs is seen, too, and not among it: the region has counted that itself.
        """
        seen, before, self._before = self._seen, self._before, self._seen
        size = sum(each.shape.numel() * each.dtype.itemsize for each in seen)
        if seen != before or not 0 < size <= _SMALL:
            return []
        if not all(isinstance(counted.get(each.site.name), Pending) for each in seen):
            return []
        counts = self.flush()
        passes = min(_MEMORY // size, _MOST)
        with torch.inference_mode(False):  # or none but inference could write to it
            self._copies = [_copies(each, passes) for each in seen]
        return counts

    def flush(self) -> list[tuple[str, LayerCounts]]:
        """Return the counts of all passes that wait."""
        passes, self._waiting = self._waiting, 0
        if not passes:
            return []
        counts = [self._count(*copies[:2], passes) for copies in self._copies]
        for copies in self._copies[: self._taken]:  # of a pass that goes on: a checkpoint is saved
            copies.each[0].copy_(copies.each[passes])
        return counts

    def _count(self, of: _Activation, every: Tensor, passes: int) -> tuple[str, LayerCounts]:
        site = of.site
        dims = tuple(dim + 1 for dim in site.unit_dims)
        zeros, nonfinite = count_values(every[:passes], dims, self._atols[site.kind])
        seen = passes * of.shape.numel() // max(1, zeros.numel())
        return site.name, counts_of(site, zeros, nonfinite, seen)


def _copies(of: _Activation, passes: int) -> _Copies:
    every = torch.empty((passes, *of.shape), dtype=of.dtype, device="cpu")
    return _Copies(of, every, [every[number] for number in range(passes)])
