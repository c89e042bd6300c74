"""Which weights read a unit: it is changed at its activation, and layers that notice are asked.

Every contraction returns what it returned before, so that only direct readers show. The units are
told apart by :mod:`codes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    for cells in dict.fromkeys((session.example.cells, 1)):
        try:
            found = _found(session, units, cells)
        except (CellsLostError, PathChangedError):
            continue
        _refuse_shared(session, found)
        _refuse_unread(units, found)
        return found
    reason = "the model's control flow depends on its values, so that it cannot be traced"
    return Readers(refused=dict.fromkeys(units, reason))


def _found(session: Session, units: list[UnitKey], cells: int) -> Readers:
    """Ask all units at once; those that are mixed somewhere, with codes that can be mixed."""
    edges = _Edges()
    mixed = _search(session, units, units, Codebook.of(len(units), cells), edges)
    most = max(1, cells - 1) * (_LONGEST // cells)
    for first in range(0, len(mixed), most):
        some = mixed[first : first + most]
        _search(session, some, units, Codebook.of_single_bits(len(some), cells), edges)
    return edges.resolved(session)


_LONGEST = 62
"""Bits of a code."""


class _Edges:
    """Which unit was seen at which place.

    A place is a channel of a call (``read``), another unit that was asked for (``unit``), or
    something that cannot be silenced or hints at why (``output``, ``opaque``, ``norm``).
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[str, Any], set[UnitKey]] = {}

    def add(self, kind: str, place: Any, units: Iterable[UnitKey]) -> None:
        self.seen.setdefault((kind, place), set()).update(units)

    def resolved(self, session: Session) -> Readers:
        """Follow units that feed other units to what reads those."""
        found = Readers()
        fed: dict[UnitKey, set[UnitKey]] = {}
        for (kind, place), units in self.seen.items():
            if kind == "unit":
                for unit in units - {place}:
                    fed.setdefault(unit, set()).add(place)
        before = {unit: _ancestors(unit, fed) for unit in set().union(*fed.values())}
        everywhere = {
            key: set(units).union(*(before.get(unit, set()) for unit in units))
            for key, units in self.seen.items()
        }
        for (kind, place), units in everywhere.items():
            if kind == "read":
                found.channels[place] = units
            elif kind in ("opaque", "norm"):
                for unit in units:
                    found.hints.setdefault(unit, _hint(session, kind, place))
        for (kind, _), units in everywhere.items():
            if kind == "output":
                reason = "the model's output depends on it without a layer in between"
                found.refused.update({unit: found.hints.get(unit, reason) for unit in units})
        return found


def _ancestors(unit: UnitKey, fed: Mapping[UnitKey, set[UnitKey]]) -> set[UnitKey]:
    """Return the units that feed a unit, directly or through others."""
    found: set[UnitKey] = set()
    fresh = {unit}
    while fresh:
        fresh = {source for source, places in fed.items() if places & fresh} - found
        found |= fresh
    return found


def _hint(session: Session, kind: str, index: int) -> str:
    title = session.recorded.calls[index].title
    if kind == "norm":
        return f"{title} normalises it together with others before it is read"
    return (
        f"{title} reads it, whose weights are no plain parameters (computed, pruned or "
        f"parametrised), or cannot be traced to single units"
    )


def _search(
    session: Session,
    coded: list[UnitKey],
    held: list[UnitKey],
    book: Codebook,
    edges: _Edges,
) -> list[UnitKey]:
    """Perturb units by their codes while holding the others; return those seen mixed."""
    unit_of = {int(code): unit for code, unit in zip(book.codes, coded, strict=True)}
    single = all(code & (code - 1) == 0 for code in unit_of) and len(unit_of) > 1
    places: dict[tuple[str, Any], Tensor] = {}
    for number in range(book.passes):
        visitor = _Perturbation(session, coded, held, book, number, places)
        for order, output in enumerate(session.replay(visitor)):
            _add(places, ("output", order), book.read(output, (), number))
    mixed: dict[UnitKey, None] = {}
    for place, shown in _by_place(places):
        for code in codes_in(shown):
            if code in unit_of:
                edges.add(*place, [unit_of[code]])
            elif single and book.spare(code):
                raise CellsLostError
            elif single:
                edges.add(*place, [unit for own, unit in unit_of.items() if own & code])
            else:
                mixed |= dict.fromkeys(u for own, u in unit_of.items() if own & code == own)
    return list(mixed)


def _by_place(
    places: Mapping[tuple[str, Any], Tensor],
) -> Iterator[tuple[tuple[str, Any], Tensor]]:
    """Split what calls showed by channel, and what activations showed by unit."""
    for (kind, index), shown in places.items():
        if kind not in ("read", "unit"):
            yield (kind, index), shown
            continue
        for channel in torch.nonzero((shown != 0).any(0)).flatten().tolist():
            yield (kind, (index, channel)), shown[:, channel]


def _add(places: dict[Any, Tensor], key: Any, shown: Tensor | None) -> None:
    if shown is None:
        return
    if key in places and places[key].shape != shown.shape:
        raise PathChangedError
    places[key] = places[key] + shown if key in places else shown


class _Perturbation(Visitor):
    """Makes units NaN by their codes, holds the others and every contraction: who notices?"""

    def __init__(
        self,
        session: Session,
        coded: list[UnitKey],
        held: list[UnitKey],
        book: Codebook,
        number: int,
        places: dict[tuple[str, Any], Tensor],
    ) -> None:
        self.session, self.book, self.number, self.places = session, book, number, places
        self.held = session.recorded
        self.codes: dict[str, dict[int, int]] = {}
        for layer, unit in held:
            self.codes.setdefault(layer, {})[unit] = 0
        for (layer, unit), code in zip(coded, book.codes.tolist(), strict=True):
            self.codes[layer][unit] = code

    def site(self, site: Site, output: Tensor) -> Tensor:
        of_layer = self.codes.get(site.name)
        if not of_layer:
            return output
        dims, before = self.session.recorded.sites[site.name]
        if before.shape != output.shape:
            raise PathChangedError
        units = list(of_layer)
        shown = self.book.read(output, dims, self.number)
        if shown is not None:
            elsewhere = torch.ones(shown.shape[1], dtype=torch.bool)
            elsewhere[units] = False
            _add(self.places, ("unit", site.name), shown.masked_fill(elsewhere, 0))
        codes = torch.zeros(torch.Size([output.shape[axis] for axis in dims]).numel()).long()
        codes[units] = torch.tensor(list(of_layer.values()))
        still = torch.where(mask_of(output, dims, units), before, output)
        return replaced(output, self.book.inject(still, dims, codes, self.number, torch.nan))

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        call = self.session.recorded.call(index, operation, out)
        if operation.kind == "contraction" or operation.reads_by_scale:
            shown = self.book.read(reads[0], operation.read_axes, self.number)
            _add(self.places, ("read", index), shown)
            return out if call.out is None else call.out.clone()
        if operation.kind == "opaque" or operation.mixes:
            kind = "norm" if operation.mixes else "opaque"
            for tensor in reads:
                shown = self.book.read(tensor, (), self.number)
                if shown is not None:
                    self.places[(kind, index)] = shown
        return out


def held(session: Session, layer: str, output: Tensor, units: list[int]) -> Tensor:
    """Give some units of an activation the values that were recorded."""
    dims, before = session.recorded.sites[layer]
    if before.shape != output.shape:
        raise PathChangedError
    return replaced(output, torch.where(mask_of(output, dims, units), before, output))


def mask_of(tensor: Tensor, axes: tuple[int, ...], units: list[int]) -> Tensor:
    """Return a mask that is True at some units and broadcasts to the tensor."""
    mask = torch.zeros([tensor.shape[axis] for axis in axes], dtype=torch.bool)
    mask.view(-1)[units] = True
    shape = [tensor.shape[axis] if axis in axes else 1 for axis in range(tensor.ndim)]
    return mask.reshape(shape).to(tensor.device)


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
        self.held = recorded
        self.live: dict[Channel, str] = {}
        self._generator = torch.Generator().manual_seed(0)
        self._channels: dict[int, list[int]] = {}
        for index, channel in channels:
            self._channels.setdefault(index, []).append(channel)
        self._units: dict[str, list[int]] = {}
        for layer, unit in set().union(*channels.values()):
            self._units.setdefault(layer, []).append(unit)

    def noisy(self, tensor: Tensor) -> Tensor:
        """Return a tensor with noise of its own size, one number per row of its first two axes."""
        size = self.scale * tensor.abs().mean().clamp(min=1e-3)
        shape = tensor.shape[:2] + (1,) * (tensor.ndim - 2)
        noise = torch.randn(shape, generator=self._generator)
        return tensor + noise.to(tensor.device, tensor.dtype) * size.to(tensor.dtype)

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
    return replaced(output, output.masked_fill(mask_of(output, unit_dims, units), 0.0))
