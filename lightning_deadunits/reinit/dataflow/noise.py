"""Clamp the units to zero, noise everything else: the consumer's channel must stay zero.

Noise goes on what every call and every other unit returns, on masks, and on every floating point
leaf that is no parameter, in whatever container it came: what is zero on this batch need not be on
the next. A leaf on which noise makes a call raise (a label beyond 0 and 1, a wrong index) is nudged
by itself, in a direction that the call allows; where there is none, nothing is known of what it
flows into. Masks stay where noise on them does that, or makes NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.gates import FILLS, WHERE
from lightning_deadunits.observation.ways import WRITES
from lightning_deadunits.reinit.dataflow.passes import (
    Passes,
    Spot,
    UnitKey,
    Visitor,
    channel_of,
    replaced,
    silenced,
)
from lightning_deadunits.reinit.ops import FACTORS, SUMS, Channel, Operation
from lightning_deadunits.reinit.recording.tape import mapped

_SCALES = (2.0, 0.1, 1e-3)
_MOST_TRIES = 24
_NUDGE = 1e-3
_ARITHMETIC = {*SUMS, *FACTORS}
_MASKED = WHERE | FILLS
_CASTS = {Tensor.to, Tensor.type, Tensor.type_as}


def live_channels(passes: Passes, channels: Mapping[Channel, set[UnitKey]]) -> dict[Channel, str]:
    """Return the channels that are fed by units and by something else, and what that is."""
    live: dict[Channel, str] = {}
    for tape, *_ in passes.twins:
        own = {c: fed for c, fed in channels.items() if passes.recorded.calls[c[0]].tape == tape}
        live |= _live_channels(passes, tape, own) if own else {}
    return live


def _live_channels(
    passes: Passes, tape: int, channels: Mapping[Channel, set[UnitKey]]
) -> dict[Channel, str]:
    """Return the channels that are not zero although the units are, whatever else happens."""
    quiet: set[int] = set()
    masks = True
    for scale in _SCALES:
        for _ in range(_MOST_TRIES):
            visitor = _Noise(passes, channels, scale, quiet, masks=masks)
            try:
                passes.run(visitor, tape)
            except Exception:  # noise may be no input at all: a wrong index, a failing check
                if masks:
                    masks = False  # one may have kept an index within its bounds
                    continue
                # The leaf that was last seen is the likely cause: it stays as it is.
                if visitor.last is None or visitor.last in quiet:
                    break
                quiet.add(visitor.last)
                continue
            if visitor.lost and masks:
                masks = False  # of a row that is masked altogether a softmax makes NaN
                continue
            live = visitor.live
            for leaf in sorted(quiet):
                live |= _nudged(passes, tape, channels, scale, quiet - {leaf}, leaf)
            return live
    return dict.fromkeys(channels, _UNKNOWN)


_UNKNOWN = "others, for all that is known: its values steer the model"


def _nudged(
    passes: Passes,
    tape: int,
    channels: Mapping[Channel, set[UnitKey]],
    scale: float,
    quiet: set[int],
    leaf: int,
) -> dict[Channel, str]:
    """Return the channels that are not zero when a leaf that bears no noise is changed a little."""
    for direction in _DIRECTIONS:
        visitor = _Noise(passes, channels, scale, quiet, (leaf, direction))
        try:
            passes.run(visitor, tape)
        except Exception:  # as above
            continue
        return visitor.live
    return dict.fromkeys(channels, _UNKNOWN)


def _inwards(value: Tensor) -> Tensor:
    """Return 1 for values in the lower half of the range that they have, -1 for the others."""
    return torch.where(value <= (value.min() + value.max()) / 2, 1.0, -1.0).to(value.dtype)


_DIRECTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    _inwards,
    torch.ones_like,
    lambda value: -torch.ones_like(value),
)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _is_of_floats(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, torch.dtype) and value.is_floating_point


class _Noise(Visitor):
    """Clamps the units to zero, noises all else, and sees which channels are not zero.

    ``quiet`` are leaves, by their order, that get no noise, whose size is relative to the values.
    ``nudge`` is a leaf that is changed a little, and in which direction. With ``masks``, these are
    drawn at random, for on other batches they may be others.

    Attributes:
        live: Channels that are not zero, and what they read.
        last: The last leaf that got noise.
        lost: Whether a channel is NaN, so that nothing can be seen of it.
    """

    clamps = True

    def __init__(
        self,
        passes: Passes,
        channels: Mapping[Channel, set[UnitKey]],
        scale: float,
        quiet: set[int],
        nudge: tuple[int, Callable[[Tensor], Tensor]] | None = None,
        *,
        masks: bool = False,
    ) -> None:
        self.recorded, self.scale, self.quiet = passes.recorded, scale, quiet
        self._nudge, self._masks, self.lost = nudge, masks, False
        self.live: dict[Channel, str] = {}
        self.last: int | None = None
        self._leaves = 0
        self._generator = _seeded()
        self._channels: dict[int, list[int]] = {}
        for index, channel in channels:
            self._channels.setdefault(index, []).append(channel)
        self._units: dict[str, list[int]] = {}
        for layer, unit in set().union(*channels.values()):
            self._units.setdefault(layer, []).append(unit)

    def leaf(self, value: Tensor) -> Tensor:
        self._leaves += 1
        if self._leaves in self.quiet or value.is_nested or value.layout is not torch.strided:
            return value
        if self._nudge is not None and self._leaves == self._nudge[0] and value.numel():
            size = _NUDGE * value.abs().max().nan_to_num(1.0, 1.0, 1.0).clamp(min=1.0)
            size = size * (0.5 + torch.rand(value.shape, generator=_seeded())).to(value)
            return value + self._nudge[1](value) * size.to(value.dtype)
        self.last = self._leaves
        noisy = self._noisy(value)
        # What is never negative, as a variance, stays so; what is zero everywhere does not.
        one_sided = bool((value >= 0).all()) and bool((value > 0).any())
        return noisy.abs() if one_sided else noisy

    def given(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Noise masks, and integers where they become floats: in arithmetic, and by a cast."""
        if function in _MASKED and self._masks:
            return mapped(args, self._drawn), mapped(kwargs, self._drawn)
        if function in WRITES and self._masks:
            target, index, value = args
            return (target, mapped(index, self._drawn), value), kwargs
        if function in _ARITHMETIC:
            becomes_float = any(isinstance(a, Tensor) and a.is_floating_point() for a in args)
        else:
            targets = (*args[1:], *kwargs.values()) if function in _CASTS else ()
            becomes_float = function is Tensor.float or any(map(_is_of_floats, targets))
        if not becomes_float:
            return args, kwargs
        return tuple(
            self._noisy(a.float()) if isinstance(a, Tensor) and not _is_of_floats(a) else a
            for a in args
        ), kwargs

    def _drawn(self, mask: Any) -> Any:
        """Return a mask of which half is true in the place of one, anything else as it is."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.is_nested:
            return mask
        return (torch.rand(mask.shape, generator=self._generator) < 0.5).to(mask.device)

    def _noisy(self, tensor: Tensor) -> Tensor:
        """Return a tensor with noise of its own size, one number per row of its first two axes."""
        if not tensor.numel():
            return tensor
        size = self.scale * tensor.abs().mean().nan_to_num(1.0, 1.0, 1.0).clamp(min=1e-3)
        shape = tensor.shape[:2] + (1,) * (tensor.ndim - 2)
        noise = torch.randn(shape, generator=self._generator)
        return tensor + noise.to(tensor.device, tensor.dtype) * size.to(tensor.dtype)

    def spot(self, number: int, spot: Spot, output: Tensor) -> Tensor:
        units = self._units.get(spot.layer)
        return silenced(output, spot.dims, units) if units else output

    def activation(self, output: Tensor) -> Tensor:
        # Units may fire on other batches, whatever they do on this one.
        return replaced(output, self._noisy(output).abs())

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        call = self.recorded.calls[index]
        for channel in self._channels.get(index, ()):
            values = channel_of(reads[0], operation.read_axes, channel).flatten()
            if bool((values != 0).any()):
                self.lost |= bool(values.isnan().any())
                constant = bool((values == values[0]).all())
                what = "a constant that others set" if constant else "other, live values"
                self.live[(index, channel)] = what
        if call.out is None or operation.passes_on:
            return out
        return self._noisy(call.out)
