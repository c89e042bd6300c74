"""Which weights read a unit: it is changed at its activation, and layers that notice are asked.

Every contraction returns what it returned before, so that only direct readers show. The units are
told apart by :mod:`codes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.sites import Site
from lightning_deadunits.reinit.codes import CellsLostError, Codebook, codes_in
from lightning_deadunits.reinit.operations import Operation
from lightning_deadunits.reinit.probe import PathChangedError, Recording, Visitor
from lightning_deadunits.reinit.session import Session, UnitKey

Channel = tuple[int, int]
"""A call, and a channel of what it reads or makes."""

_NOISES = ((2.0, True), (2.0, False), (0.1, False), (1e-3, False))


@dataclass
class Readers:
    """What reads the units.

    Attributes:
        channels: Channels of calls, and which units feed them.
        refused: Units whose readers cannot be silenced, with the reason.
        hints: What stands between a unit and its readers, should they turn out to be shared.
    """

    channels: dict[Channel, set[UnitKey]] = field(default_factory=dict)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    hints: dict[UnitKey, str] = field(default_factory=dict)


def find_readers(session: Session, units: Iterable[UnitKey]) -> Readers:
    """Find all that reads some units, and whether it reads anything else with the same weights."""
    units = list(units)
    for cells in dict.fromkeys((session.example.size, 1)):
        try:
            found = _Search(session, units, cells).run()
        except (CellsLostError, PathChangedError):
            continue
        if found is not None:
            _refuse_shared(session, found)
            _refuse_unread(units, found)
            return found
    reason = "the model's control flow depends on its values, so that it cannot be traced"
    return Readers(refused=dict.fromkeys(units, reason))


class _Search:
    """One attempt, with some number of cells."""

    def __init__(self, session: Session, units: list[UnitKey], cells: int) -> None:
        self.session, self.units = session, units
        self.book = Codebook.of(len(units), cells)
        self.unit_of = {int(c): unit for c, unit in zip(self.book.codes, units, strict=True)}
        self.found = Readers()
        self.garbled = False

    def run(self) -> Readers | None:
        """Return what was found, None if codes were mixed up by the samples' being mixed."""
        seen = _Seen()
        for number in range(self.book.passes):
            visitor = _Perturbation(self, seen, number)
            outputs = self.session.replay(visitor)
            for output in outputs:
                seen.add("output", -1, self.book.read(output.isnan(), (), number))
        self._note_channels(seen)
        self._note_refusals(seen)
        ambiguous = self.garbled and self.book.cells > 1
        return None if ambiguous else self.found

    def codes_of(self, layer: str, sizes: int) -> Tensor:
        codes = torch.zeros(sizes, dtype=torch.int64)
        for (name, unit), code in zip(self.units, self.book.codes, strict=True):
            if name == layer:
                codes[unit] = code
        return codes

    def _note_channels(self, seen: _Seen) -> None:
        for index, places in seen.maps["channel"].items():
            for channel in torch.nonzero((places != 0).any(0)).flatten().tolist():
                units = self._units(places[:, channel], index)
                self.found.channels.setdefault((index, channel), set()).update(units)

    def _note_refusals(self, seen: _Seen) -> None:
        for places in seen.maps["output"].values():
            reason = "the model's output depends on it without a layer in between"
            self.found.refused.update(dict.fromkeys(self._units(places, -1), reason))
        for kind in ("opaque", "norm"):
            for index, places in seen.maps[kind].items():
                for code in codes_in(places):
                    hinted = (unit for own, unit in self.unit_of.items() if own & code == own)
                    for unit in hinted:
                        self.found.hints.setdefault(unit, self._hint(kind, index))

    def _hint(self, kind: str, index: int) -> str:
        title = self.session.recorded.calls[index].title
        if kind == "norm":
            return f"{title} normalises it together with others before it is read"
        return f"{title} reads it, whose weights cannot be traced to single units"

    def _units(self, places: Tensor, index: int) -> set[UnitKey]:
        """Return the units that show at some places; of those that are mixed, all it may be."""
        units = set()
        for code in codes_in(places):
            if code in self.unit_of:
                units.add(self.unit_of[code])
                continue
            self.garbled = True
            mixed = [unit for own, unit in self.unit_of.items() if own & code == own]
            title = self.session.recorded.calls[index].title if index >= 0 else "the output"
            for unit in mixed:
                reason = f"it reaches {title} mixed with other units that were asked for"
                self.found.refused.setdefault(unit, reason)
        return units


class _Seen:
    """Code maps, summed over passes."""

    def __init__(self) -> None:
        self.maps: dict[str, dict[int, Tensor]] = {
            kind: {} for kind in ("output", "opaque", "norm", "channel")
        }

    def add(self, kind: str, index: int, places: Tensor | None) -> None:
        if places is None:
            return
        maps = self.maps[kind]
        if kind != "channel":
            places = places.flatten()
            known = maps.get(index)
            maps[index] = places if known is None or len(known) != len(places) else known + places
        else:
            maps[index] = maps[index] + places if index in maps else places


class _Perturbation(Visitor):
    """Makes units NaN by their codes, holds every contraction, and sees who notices."""

    def __init__(self, search: _Search, seen: _Seen, number: int) -> None:
        self.search, self.seen, self.number = search, seen, number

    def site(self, site: Site, output: Tensor) -> Tensor:
        sizes = torch.Size([output.shape[axis] for axis in site.unit_dims]).numel()
        codes = self.search.codes_of(site.name, sizes)
        book = self.search.book
        return replaced(
            output, book.inject(output, site.unit_dims, codes, self.number, torch.nan)
        )

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        call = self.search.session.recorded.call(index, operation, out)
        book = self.search.book
        if operation.kind == "contraction" or operation.reads_by_scale:
            places = book.read(reads[0].isnan(), operation.read_axes, self.number)
            self.seen.add("channel", index, places)
            return out if call.out is None else call.out.clone()
        if operation.kind == "opaque" or operation.mixes:
            kind = "norm" if operation.mixes else "opaque"
            for tensor in reads:
                self.seen.add(kind, index, book.read(tensor.isnan(), (), self.number))
        return out


def replaced(output: Tensor, value: Tensor) -> Tensor:
    """Write into an activation, for ``x.relu_()`` is often called without use of its result."""
    try:
        return output.copy_(value)
    except RuntimeError:  # expanded, or an inference tensor
        return value


# --- do the readers read anything else? -----------------------------------------------------


def _refuse_shared(session: Session, found: Readers) -> None:
    """Refuse units whose readers hear others with the same weights, and those that none reads."""
    if not found.channels:
        return
    live = _live_channels(session, found.channels)
    for channel, units in found.channels.items():
        if channel in live:
            title = session.recorded.calls[channel[0]].title
            for unit in units:
                reason = f"{title} reads it together with {live[channel]}"
                found.refused.setdefault(unit, found.hints.get(unit, reason))


def _refuse_unread(units: Iterable[UnitKey], found: Readers) -> None:
    read = set().union(*found.channels.values())
    for unit in units:
        if unit not in read:
            found.refused.setdefault(unit, found.hints.get(unit, "no layer reads it"))


def _live_channels(
    session: Session, channels: Mapping[Channel, set[UnitKey]]
) -> dict[Channel, str]:
    """Return the channels that are not silent although the units are, whatever else happens."""
    for scale, inputs in _NOISES:
        visitor = _Silence(session.recorded, channels, scale)
        try:
            session.replay(visitor, change=visitor.noisy if inputs else None)
        except Exception:  # noise may be no input at all: a wrong index, a failing check
            continue
        return visitor.live
    return dict.fromkeys(channels, "others, for all that is known: its values steer the model")


class _Silence(Visitor):
    """Holds the units at zero, puts noise on all else, and sees which channels are not silent."""

    def __init__(
        self, recorded: Recording, channels: Mapping[Channel, set[UnitKey]], scale: float
    ) -> None:
        self.recorded, self.scale = recorded, scale
        self.live: dict[Channel, str] = {}
        self._generator = torch.Generator().manual_seed(0)
        self._channels: dict[int, list[int]] = {}
        for index, channel in channels:
            self._channels.setdefault(index, []).append(channel)
        self._units: dict[str, list[int]] = {}
        for layer, unit in set().union(*channels.values()):
            self._units.setdefault(layer, []).append(unit)

    def noisy(self, tensor: Tensor) -> Tensor:
        """Return a tensor with noise of its own size on it."""
        size = self.scale * tensor.float().pow(2).mean().sqrt().clamp(min=1e-3)
        noise = torch.randn(tensor.shape, generator=self._generator)
        return tensor + (noise.to(tensor.device) * size).to(tensor.dtype)

    def site(self, site: Site, output: Tensor) -> Tensor:
        units = self._units.get(site.name)
        return silenced(output, site.unit_dims, units) if units else output

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        call = self.recorded.call(index, operation, out)
        for channel in self._channels.get(index, ()):
            values = channel_values(reads[0], operation.read_axes, channel)
            if bool((values != 0).any()):
                constant = bool((values == values[0]).all())
                what = "a constant that others set" if constant else "other, live values"
                self.live[(index, channel)] = what
        if call.out is None or operation.kind == "link":
            return out
        return self.noisy(call.out)


def channel_values(tensor: Tensor, axes: tuple[int, ...], channel: int) -> Tensor:
    """Return the values of one channel, shape ``(P,)``."""
    others = [axis for axis in range(tensor.ndim) if axis not in axes]
    channels = torch.Size([tensor.shape[axis] for axis in axes]).numel()
    return tensor.permute(*others, *axes).reshape(-1, channels)[:, channel]


def silenced(output: Tensor, unit_dims: tuple[int, ...], units: list[int]) -> Tensor:
    """Make some units of an activation zero."""
    dead = torch.zeros([output.shape[axis] for axis in unit_dims], dtype=torch.bool)
    dead.view(-1)[units] = True
    shape = [output.shape[axis] if axis in unit_dims else 1 for axis in range(output.ndim)]
    return replaced(output, output.masked_fill(dead.reshape(shape).to(output.device), 0.0))
