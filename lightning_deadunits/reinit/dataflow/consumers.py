"""Find consumers: tag the units at their spots, replay, and see which channels show them.

Every contraction returns what it returned before, so that only direct consumers show. Then the
units are clamped to zero and noise is put on everything else: a channel that reads a unit must stay
zero, or its weights read something else as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.dataflow.noise import refuse_shared
from lightning_deadunits.reinit.dataflow.passes import Passes, Spot, UnitKey
from lightning_deadunits.reinit.dataflow.propagate import Place, Shown, TagReplay, on_tape, tagged
from lightning_deadunits.reinit.dataflow.tags import CellsLostError, Codebook
from lightning_deadunits.reinit.dataflow.uses import with_all_uses
from lightning_deadunits.reinit.ops import Channel, Operation
from lightning_deadunits.reinit.values import replaced

STEERS = "its values steer the model (Python reads them): what it does then cannot be traced"


@dataclass
class Consumers:
    """What consumes the units.

    Attributes:
        channels: Channels of calls, and which units feed them.
        refused: Units whose consumers cannot be silenced, with the reason.
        hints: What stands between a unit and its consumers, should they turn out to be shared.
    """

    channels: dict[Channel, set[UnitKey]] = field(default_factory=dict)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    hints: dict[UnitKey, str] = field(default_factory=dict)


def find_consumers(passes: Passes, units: Iterable[UnitKey]) -> Consumers:
    """Find all that consumes some units, and whether it consumes anything else by those weights."""
    units = list(units)
    found = _find(passes, units, factors=False)
    left = [unit for unit in units if unit in found.refused]
    if left and any(call.operation.reads_by_factor for call in passes.recorded.calls):
        _take_over(found, _find(passes, left, factors=True), left)
    return found


def _find(passes: Passes, units: list[UnitKey], factors: bool) -> Consumers:
    shown: dict[tuple[Place, int], set[UnitKey]] = {}
    lost: dict[UnitKey, str] = {}
    for tape in passes.distinct():
        own = [u for u in units if passes.recorded.of_layer(u[0], tape)]
        seen = on_tape(passes, tape, partial(_search, passes, tape, own, factors)) if own else []
        if seen is None:
            lost |= dict.fromkeys(own, STEERS)
        for unit, place, channel in seen or ():
            shown.setdefault((place, channel), set()).add(unit)
    found = _resolved(passes, shown)
    found.refused |= lost
    found.channels = {
        (twin, channel): units
        for (index, channel), units in found.channels.items()
        for twin in passes.with_twins(index)
    }
    found.channels = with_all_uses(passes, found.channels)
    refuse_shared(passes, found)
    consumed = set().union(*found.channels.values())
    for unit in units:
        if unit not in consumed:
            found.refused.setdefault(unit, found.hints.get(unit, "no layer reads it"))
    return found


def _take_over(found: Consumers, other: Consumers, units: list[UnitKey]) -> None:
    """Have units that a factor of their own can silence consumed by that factor alone."""
    saved = {unit for unit in units if unit not in other.refused}
    channels = {channel: fed_by - saved for channel, fed_by in found.channels.items()}
    for channel, fed_by in other.channels.items():
        channels[channel] = channels.get(channel, set()) | (fed_by & saved)
    found.channels = {channel: fed_by for channel, fed_by in channels.items() if fed_by}
    found.refused = {unit: why for unit, why in found.refused.items() if unit not in saved}


def _search(
    passes: Passes, tape: int, units: list[UnitKey], factors: bool, cells: int
) -> list[Shown[UnitKey]]:
    def replays(book: Codebook, code_of: Mapping[UnitKey, int]) -> Iterator[tuple[Place, int, int]]:
        return _UnitTags(passes, tape, book, code_of, units, factors).run()

    return tagged(units, cells, replays)


class _UnitTags(TagReplay):
    """Tags units and clamps every contraction: who shows them?"""

    def __init__(
        self,
        passes: Passes,
        tape: int,
        book: Codebook,
        code_of: Mapping[UnitKey, int],
        clamped: list[UnitKey],
        factors: bool,
    ) -> None:
        super().__init__(passes, tape, book, clamped)
        self._factors = factors
        self._codes: dict[str, Tensor] = {}
        for layer in self.units:
            self._codes[layer] = torch.zeros(self.recorded.num_units(layer), dtype=torch.int64)
        for (layer, unit), code in code_of.items():
            self._codes[layer][unit] = code

    def at_unit(self, spot: Spot, clamped: Tensor) -> Tensor:
        if not self.book.cells.fits(clamped, spot.dims):
            raise CellsLostError
        return self.put(clamped, spot.dims, self._codes[spot.layer])

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        call = self.recorded.calls[index]
        by_factor = self._factors and operation.reads_by_factor
        if operation.kind == "contraction" or operation.reads_by_scale or by_factor:
            self.look(Place("consumer", index), reads[0], operation.read_axes)
            if call.out is None:
                return out
            return replaced(out, call.out) if by_factor else call.out.clone()
        if operation.kind in ("opaque", "product") or operation.mixes:
            for order, tensor in enumerate(reads):
                kind = "norm" if operation.mixes else operation.kind
                self.look(Place(kind, index, order), tensor, ())
        return out

    def result(self, key: Any, value: Tensor) -> None:
        self.look(Place("result", (self.tape, key)), value, ())

    def read(self, key: Any, value: Tensor, name: str) -> None:
        self.look(Place("python", (self.tape, key)), value, ())


# --- what that means ------------------------------------------------------------------------------


def _resolved(passes: Passes, shown: Mapping[tuple[Place, int], set[UnitKey]]) -> Consumers:
    """Follow units that feed other units to what consumes those."""
    spots, calls = passes.recorded.spots, passes.recorded.calls
    fed: dict[UnitKey, set[UnitKey]] = {}
    for (place, channel), units in shown.items():
        if place.kind == "unit":
            at = (spots[place.of].layer, channel)
            for unit in units - {at}:
                fed.setdefault(unit, set()).add(at)
    before = {unit: _ancestors(unit, fed) for unit in set().union(*fed.values())}
    found = Consumers()
    refusals: list[tuple[str, set[UnitKey]]] = []
    for (place, channel), direct in shown.items():
        units = set(direct).union(*(before.get(unit, set()) for unit in direct))
        if place.kind == "consumer":
            found.channels[(place.of, channel)] = units
        elif place.kind in _HINTS:
            hint = _HINTS[place.kind].format(calls[place.of].title)
            found.hints |= {unit: hint for unit in units if unit not in found.hints}
        elif place.kind != "unit":
            refusals.append((_REASONS[place.kind], units))
    for reason, units in refusals:
        for unit in units:
            found.refused.setdefault(unit, found.hints.get(unit, reason))
    return found


_REASONS = {
    "result": "the model's output depends on it without a layer in between",
    "python": STEERS,
}

_HINTS = {
    "norm": "{} normalises it together with others before it is read",
    "product": "{} multiplies it with what is no plain parameter: with other activations, or with "
    "weights that are computed, pruned or parametrised",
    "opaque": "{} reads it, whose weights are no plain parameters (computed, pruned or "
    "parametrised), or cannot be traced to single units",
}


def _ancestors(unit: UnitKey, fed: Mapping[UnitKey, set[UnitKey]]) -> set[UnitKey]:
    """Return the units that feed a unit, directly or through others."""
    found: set[UnitKey] = set()
    fresh = {unit}
    while fresh:
        fresh = {source for source, places in fed.items() if places & fresh} - found
        found |= fresh
    return found
