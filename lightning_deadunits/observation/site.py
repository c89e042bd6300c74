"""What an activation site is: its name, its kind, which axes are the units."""

from __future__ import annotations

from typing import NamedTuple

from lightning_deadunits.observation.activations import Kind
from lightning_deadunits.observation.axes import Axes


class Site(NamedTuple):
    """One activation call of a forward pass.

    Attributes:
        name: Qualified name of the layer, with a suffix from the second call on.
        kind: Whether its units can be zero at rest.
        unit_dims: Axes that index the units; more than one after a head split.
        assumed: True if nothing told which axis it is, and convention was followed.
    """

    name: str
    kind: Kind
    unit_dims: Axes
    assumed: bool
