"""Sums of counts: of one layer over passes, and of all layers of equal passes at once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.counting import Columns, DeviceColumns
from lightning_deadunits.counting.geometry import Geometry
from lightning_deadunits.observation.activations import Kind
from lightning_deadunits.observation.site import Site


class LayerCounts(NamedTuple):
    """What one layer has shown. A tuple, for Dynamo returns it from compiled regions.

    Attributes:
        zeros: Zeros per unit, int64 of shape ``(U,)``, on the layer's device.
        nonfinite: NaN and infinite values of all units together.
        observations: Values seen per unit.
        unit_dim: Axis of the activation that indexes the units.
        kind: Whether the units can be zero at rest.
        assumed: True if nothing told which axis the units are on.
    """

    zeros: Tensor
    nonfinite: int | Tensor
    observations: int | Tensor
    unit_dim: int
    kind: Kind
    assumed: bool

    def plus(self, count: LayerCounts) -> LayerCounts:
        """Return the sum of both."""
        return self._replace(
            zeros=self.zeros + count.zeros,
            nonfinite=self.nonfinite + count.nonfinite,
            observations=self.observations + count.observations,
        )


class Seen(NamedTuple):
    """What one process has seen, by the layers' keys.

    Attributes:
        counts: Counts of the layers that are tracked.
        unjudged: Layers that could not be judged, tracked or not, with reasons.
        unseen: Layers that were not seen, with reasons; another process may have.
        beside: Layers that ran and are not tracked: a name does not depend on what is.
    """

    counts: Mapping[str, LayerCounts] = MappingProxyType({})
    unjudged: Mapping[str, str] = MappingProxyType({})
    unseen: Mapping[str, str] = MappingProxyType({})
    beside: frozenset[str] = frozenset()


class Pending(NamedTuple):
    """What one layer has shown in this pass, not summed per unit yet."""

    site: Site
    columns: Columns | DeviceColumns

    def counts(self) -> LayerCounts:
        """Sum it per unit."""
        columns = self.columns
        seen = columns.observations
        return counts_of(self.site, seen - columns.nonzeros(), columns.nonfinite, seen)


class _Layer(NamedTuple):
    """What must be alike for passes to be added.

    Of ``size`` whole numbers there are ``fold`` for each unit, and ``odd`` more, on a device: how
    many values are not finite, which the host does not know.
    """

    name: str
    site: Site
    observations: int
    fold: int
    size: int
    odd: int


class PassSums:
    """Adds passes up as long as they are alike, which most are: one sum for all layers."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._layers: list[_Layer] = []
        self._plan: list[tuple[str, Site, Geometry]] = []
        self._total: Tensor | None = None
        self._nonfinite: list[int] = []
        self._passes = 0

    def add_alike(self, pending: Mapping[str, LayerCounts | Pending]) -> bool:
        """Add one pass if it is like the last one: the same sites and shapes, all finite."""
        if len(pending) != len(self._plan) or not pending:
            return False
        parts = []
        for (name, site, geometry), (key, count) in zip(self._plan, pending.items(), strict=True):
            if type(count) is not Pending or key != name:
                return False
            own, columns = count
            if own is not site and own != site:
                return False
            if type(columns) is not Columns or columns.geometry is not geometry:
                return False
            if columns.nonfinite:
                return False
            parts.append(columns.unsummed()[0])
        assert self._total is not None
        self._total = self._total + torch.cat(parts)
        self._passes += 1
        return True

    def add(self, pending: Mapping[str, Pending]) -> dict[str, LayerCounts]:
        """Add one pass; return the sums so far, and start anew, if it is unlike those before."""
        if not pending:
            return {}
        layers, parts = [], []
        for name, (site, columns) in pending.items():
            part, fold = columns.unsummed()
            odd = int(isinstance(columns, DeviceColumns))
            layers.append(_Layer(name, site, columns.observations, fold, len(part), odd))
            parts.append(part)
        before = self.flush() if layers != self._layers else {}
        values = torch.cat(parts)
        self._total = values.long() if self._total is None else self._total + values
        nonfinite = [c.nonfinite if isinstance(c, Columns) else 0 for _, c in pending.values()]
        known = self._nonfinite or [0] * len(layers)
        self._nonfinite = [a + b for a, b in zip(known, nonfinite, strict=True)]
        self._layers, self._passes = layers, self._passes + 1
        self._plan = [
            (name, site, columns.geometry)
            for name, (site, columns) in pending.items()
            if isinstance(columns, Columns)
        ]
        return before

    def flush(self) -> dict[str, LayerCounts]:
        """Return the sums so far, and start anew."""
        counts: dict[str, LayerCounts] = {}
        if self._total is not None:
            totals = torch.split(self._total, [layer.size for layer in self._layers])
            for layer, total, nonfinite in zip(self._layers, totals, self._nonfinite, strict=True):
                of_units = total[: layer.size - layer.odd]
                fired = of_units.view(layer.fold, -1).sum(0)
                seen = layer.observations * self._passes
                odd = total[-1] if layer.odd else nonfinite
                counts[layer.name] = counts_of(layer.site, seen - fired, odd, seen)
        self._clear()
        return counts


def counts_of(site: Site, zeros: Tensor, nonfinite: int | Tensor, observations: int) -> LayerCounts:
    """Return what a layer has shown."""
    return LayerCounts(zeros, nonfinite, observations, site.unit_dims[0], site.kind, site.assumed)
