"""The recorded pass that an event starts from, and which of the units named are dead in it."""

from __future__ import annotations

from torch import Tensor

from lightning_deadunits.observation.activations import zero_atol
from lightning_deadunits.observation.selection import listed
from lightning_deadunits.observation.site import Site
from lightning_deadunits.reinit.report import Units
from lightning_deadunits.reinit.running.probe import Recording
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.values import channel_of, silenced


class Baseline(Recording):
    """Records a pass.

    Args:
        held: Dormant units, which are held at zero: what they contribute is to be lost.
    """

    def __init__(self, held: Units) -> None:
        super().__init__()
        self._held = held
        self._atol: dict[str, float] = {}

    def site(self, site: Site, output: Tensor) -> Tensor:
        """Take an activation down."""
        held = self._held.get(site.name)
        if held:
            output = silenced(output, site.unit_dims, held)
        self._atol[site.name] = zero_atol(site.kind, None)
        return super().site(site, output)

    def alive(self, units: list[UnitKey]) -> dict[UnitKey, str]:
        """Return the units that are not dead after all."""
        found = {}
        for layer, unit in units:
            dims, activation = self.sites[layer]
            values = channel_of(activation, dims, unit)
            if not bool((values.abs() <= self._atol[layer]).all()):
                found[(layer, unit)] = "it fires on the example"
        return found


def check_exist(session: Session, units: Units) -> None:
    """Raise unless every unit is one of a layer that ran.

    Raises:
        ValueError: If a layer or a unit does not exist; it lists the layers there are.
    """
    sites = session.recorded.sites
    session.probe.start_pass()  # which takes the names of the last one down
    for layer, own in units.items():
        if layer not in sites:
            raise ValueError(
                f"Expected `units` to name layers of the model, but got {layer!r}. Layers that ran "
                f"are: {listed(list(session.probe.met))}."
            )
        count = session.recorded.num_units(layer)
        if not 0 <= own[0] <= own[-1] < count:
            raise ValueError(f"Expected units of {layer!r} to be in [0, {count}), but got {own}.")
