"""What an activation site is: its layer, its kind, which axes are the units."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_deadunits.observation.activations import Kind
from lightning_deadunits.observation.identity import Members, member_key
from lightning_deadunits.observation.lineage.axes import Axes


class Site(NamedTuple):
    """One activation call of a forward pass; several calls may be of one layer.

    Attributes:
        name: Key of the layer, see :mod:`identity`; :class:`LayerNames` gives it its name.
        kind: Whether its units can be zero at rest.
        unit_dims: Axes that index the units: several of them after a head split, or where stacked
            weights make members x features.
        assumed: True if nothing told which axis it is, and convention was followed.
        members: Which of several stacked weights made each row; each is a layer of its own.
        levels: Levels of ``torch.vmap`` that hide an axis of the units, None if nothing tells.
        sizes: The shape that ``unit_dims`` are about, () if it is the activation's own.
    """

    name: str
    kind: Kind
    unit_dims: Axes
    assumed: bool
    members: Members | None = None
    levels: tuple[int, ...] | None = None
    sizes: tuple[int, ...] = ()

    def layers(self) -> list[str]:
        """Return the keys of the layers that it has values of: that of each stacked weight."""
        members = self.members
        if members is None:
            return [self.name]
        return [member_key(self.name, member, members) for member in range(members.number)]

    def values(self, output: Tensor) -> Tensor:
        """Return an activation in the shape that ``unit_dims`` are about."""
        return output.reshape(self.sizes) if self.sizes else output
