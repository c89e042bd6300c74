"""Whether readers hear anything else by the same weights: with the units silent, all else loud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.site import Site
from lightning_deadunits.reinit.operations import Channel, Operation
from lightning_deadunits.reinit.running.probe import Recording, Visitor
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing.edges import Readers
from lightning_deadunits.reinit.values import channel_of, silenced

_NOISES = ((2.0, True), (2.0, False), (0.1, False), (1e-3, False))


def refuse_shared(session: Session, found: Readers) -> None:
    """Refuse units whose readers hear others with the same weights."""
    if not found.channels:
        return
    live = _live_channels(session, found.channels)
    for channel, units in found.channels.items():
        if channel in live:
            title = session.recorded.calls[channel[0]].title
            for unit in units:
                reason = f"{title} reads it together with {live[channel]}"
                found.refused.setdefault(unit, found.hints.get(unit, reason))


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
            values = channel_of(reads[0], operation.read_axes, channel).flatten()
            if bool((values != 0).any()):
                constant = bool((values == values[0]).all())
                what = "a constant that others set" if constant else "other, live values"
                self.live[(index, channel)] = what
        if call.out is None or operation.passes_on:
            return out
        return self.noisy(call.out)
