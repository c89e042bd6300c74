"""What tracing found is kept from event to event, while the architecture stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lightning_deadunits.reinit.running.probe import Recording
from lightning_deadunits.reinit.running.session import UnitKey
from lightning_deadunits.reinit.tracing import Trace, UnitTrace


class KnownTraces:
    """Remembers the units that could be traced; refusals depend on values, and are not kept."""

    def __init__(self) -> None:
        self._path: Any = None
        self._units: dict[UnitKey, UnitTrace] = {}

    def of(self, units: Iterable[UnitKey], *recorded: Recording) -> Trace | None:
        """Return what is known of some units, None unless it is all there is to know.

        A unit that shares weights is known only together with those that it shares them with.

        Args:
            units: The units.
            recorded: Passes that must take the path of those that the units were traced in.
        """
        wanted = set(units)
        if self._path != path_of(recorded) or not wanted <= self._units.keys():
            return None
        ties = {tie for unit in wanted for tie in self._units[unit].ties}
        others = self._units.keys() - wanted
        if any(not ties.isdisjoint(self._units[unit].ties) for unit in others):
            return None
        return Trace({unit: self._units[unit] for unit in wanted}, {})

    def remember(self, found: Trace, *recorded: Recording) -> None:
        """Keep what was found."""
        path = path_of(recorded)
        if path != self._path:
            self._path, self._units = path, {}
        self._units |= found.units
        for unit in found.refused:
            self._units.pop(unit, None)

    def clear(self) -> None:
        """Forget all."""
        self._path, self._units = None, {}


def path_of(recorded: Iterable[Recording]) -> Any:
    """Return what tells the architecture: every function that ran, on which shapes and weights."""
    return [
        (
            each.functions,
            [(call.layer, call.shapes, call.operation.made_axes) for call in each.calls],
            # By identity, too: a new parameter may take over the memory of an old one.
            [
                (use.call, id(use.parameter), use.parameter.data_ptr(), *_place(use.view))
                for use in each.uses
            ],
            {name: (dims, activation.shape) for name, (dims, activation) in each.sites.items()},
        )
        for each in recorded
    ]


def _place(view: Tensor) -> tuple[Any, ...]:
    return view.storage_offset(), view.shape, view.stride()
