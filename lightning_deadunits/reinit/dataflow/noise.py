"""Clamp the units to zero, noise everything else: the consumer's channel must stay zero.

Noise goes on what every call and every other unit returns, on masks, and on every floating point
leaf that is no parameter, in whatever container it came: what is zero on this batch need not be on
the next. So does what becomes floating point of integers and of lists in the course of the pass. A
leaf on which noise makes a call raise (a label beyond 0 and 1, a wrong index) is nudged by itself,
in a direction that the call allows; where there is none, nothing is known of what it flows into.
Masks are drawn anew where they come from, such that all that is chosen by one agrees, or else where
they choose, as indices are; and stay where that makes a call raise, or makes NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.lineage.gates import FILLS, WHERE
from lightning_deadunits.observation.lineage.ways import WRITES
from lightning_deadunits.reinit.dataflow.passes import (
    Passes,
    Spot,
    UnitKey,
    Visitor,
    by_call,
    channel_of,
    plain,
    replaced,
    silenced,
)
from lightning_deadunits.reinit.ops.elementwise import FACTORS, SUMS, named
from lightning_deadunits.reinit.ops.operation import Channel, Operation
from lightning_deadunits.reinit.recording.functions import FROM_PYTHON
from lightning_deadunits.reinit.recording.tape import Call, SiteCall, mapped, tensors_of
from lightning_deadunits.reinit.report import by_layer

_SCALES = (2.0, 0.1, 1e-3)
_MOST_TRIES = 24
_DRAWS = 4
_NUDGE = 1e-3
_ARITHMETIC = {*SUMS, *FACTORS}
_MASKED = WHERE | FILLS
_INDEXED = {*WRITES, Tensor.__getitem__}
_INDEX = 2
_ALONG_AXIS = named(
    *("gather", "index_select", "index_add", "index_add_", "index_copy", "index_copy_"),
    *("scatter", "scatter_", "scatter_add", "scatter_add_"),
)
"""Functions that are given a tensor, an axis, and indices along it."""
_CASTS = {Tensor.to, Tensor.type, Tensor.type_as}


def live_channels(passes: Passes, channels: Mapping[Channel, set[UnitKey]]) -> dict[Channel, str]:
    """Return the channels that are fed by units and by something else, and what that is."""
    live: dict[Channel, str] = {}
    for tape, *_ in passes.twins:
        own = {c: fed for c, fed in channels.items() if passes.calls[c[0]].tape == tape}
        live |= _live_channels(passes, tape, own) if own else {}
    return live


def _live_channels(
    passes: Passes, tape: int, channels: Mapping[Channel, set[UnitKey]]
) -> dict[Channel, str]:
    """Return the channels that are not zero although the units are, whatever else happens."""
    quiet: set[int] = set()
    masks = _WHERE_THEY_COME_FROM
    following = _following(passes, tape)
    for scale in _SCALES:
        for _ in range(_MOST_TRIES):
            visitor = _Noise(channels, following, scale, quiet, masks=masks)
            try:
                passes.run(visitor, tape)
            except Exception:  # noise may be no input at all: a wrong index, a failing check
                if masks:
                    masks -= 1  # one may have kept an index within its bounds
                    continue
                # The leaf that was last seen is the likely cause: it stays as it is.
                if visitor.last is None or visitor.last in quiet:
                    break
                quiet.add(visitor.last)
                continue
            if visitor.lost and masks:
                masks -= 1  # of a row that is masked altogether a softmax makes NaN
                continue
            live = visitor.live
            for seed in range(1, _DRAWS if visitor.chose else 1):  # one may have hit other units
                again = _Noise(channels, following, scale, quiet, masks=masks, seed=seed)
                with suppress(Exception):
                    passes.run(again, tape)
                live |= again.live
            for leaf in sorted(quiet):
                for direction in _DIRECTIONS:
                    nudge = (leaf, direction)
                    nudged = _Noise(channels, following, scale, quiet - {leaf}, nudge)
                    with suppress(Exception):  # as above
                        passes.run(nudged, tape)
                        live |= nudged.live
                        break
                else:
                    live |= dict.fromkeys(channels, _UNKNOWN)
            return live
    return dict.fromkeys(channels, _UNKNOWN)


_WHERE_THEY_COME_FROM, _WHERE_THEY_CHOOSE = 2, 1
_UNKNOWN = "others, for all that is known: its values steer the model"


def _following(passes: Passes, tape: int) -> set[int]:
    """Return the positions of activations that others alone make, by no product."""
    own, call_at = passes.tapes[tape], passes.call_at
    positions: set[int] = set()
    values = set(own.weight_values)
    for position, entry in enumerate(own.entries):
        if isinstance(entry, SiteCall):
            if entry.value in values and entry.value not in own.weight_values:
                positions.add(position)
            values.add(entry.value)
        elif (tape, position) not in call_at and values.issuperset(entry.given):
            values.update(entry.made)
        else:
            values.difference_update(entry.outs, entry.writes)
    return positions


def _inwards(value: Tensor) -> Tensor:
    """Return 1 for values in the lower half of the range that they have, -1 for the others."""
    return torch.where(value <= (value.min() + value.max()) / 2, 1.0, -1.0).to(value.dtype)


_DIRECTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    _inwards,
    torch.ones_like,
    lambda value: -torch.ones_like(value),
)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _is_of_floats(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, torch.dtype) and value.is_floating_point


@dataclass(eq=False)
class _Noise(Visitor):
    """Clamps the units to zero, noises all else, and sees which channels are not zero.

    Attributes:
        channels: The channels, and the units that feed them.
        following: Positions of activations that get no noise of their own.
        scale: Size of the noise, relative to the values.
        quiet: Leaves that get none.
        nudge: A leaf that is changed a little, and in which direction.
        masks: Where masks are drawn at random, which on other batches may be others; 0 for nowhere.
        seed: Of what is drawn.
        live: Channels that are not zero, and what they read.
        last: The last leaf that got noise.
        lost: Whether a channel is NaN, so that nothing can be seen of it.
        chose: Whether indices were drawn.
    """

    clamps = True

    channels: Mapping[Channel, set[UnitKey]]
    following: set[int]
    scale: float
    quiet: set[int]
    nudge: tuple[int, Callable[[Tensor], Tensor]] | None = None
    masks: int = 0
    seed: int = 0
    live: dict[Channel, str] = field(default_factory=dict)
    last: int | None = None
    lost: bool = False
    chose: bool = False

    def __post_init__(self) -> None:
        self._generator = _seeded(self.seed)
        self._of_masks: dict[int, Tensor] = {}
        self._indices: dict[int, Tensor] = {}
        self._channels = by_call(self.channels)
        self._units = by_layer(set().union(*self.channels.values()))

    def leaf(self, index: int, value: Any) -> Any:
        value = super().leaf(index, value)
        if index in self._calls.parameters or not isinstance(value, Tensor) or value.is_complex():
            return value
        if value.is_floating_point():
            return self._noisy_leaf(index, value)
        return value if index in self._calls.buffers else self._choice(value)

    def _noisy_leaf(self, index: int, value: Tensor) -> Tensor:
        if index in self.quiet or value.is_nested or value.layout is not torch.strided:
            return value
        if self.nudge is not None and index == self.nudge[0] and value.numel():
            size = _NUDGE * value.abs().max().nan_to_num(1.0, 1.0, 1.0).clamp(min=1.0)
            size = size * (0.5 + torch.rand(value.shape, generator=_seeded())).to(value)
            return value + self.nudge[1](value) * size.to(value.dtype)
        self.last = index
        noisy = self._noisy(value)
        # What is never negative, as a variance, stays so; what is zero everywhere does not.
        one_sided = bool((value >= 0).all()) and bool((value > 0).any())
        return noisy.abs() if one_sided else noisy

    def call(self, position: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (self.tape, position)
        if key in self.passes.aside:
            return super().call(position, call, args, kwargs)
        args, kwargs = self._given(plain(call.function), args, kwargs)
        out = super().call(position, call, args, kwargs)
        return out if key in self.passes.call_at else self._born(call, args, kwargs, out)

    def _given(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Draw masks, and noise integers that join floats."""
        if function in _MASKED and self.masks:
            return mapped(args, self._drawn), mapped(kwargs, self._drawn)
        if function in _INDEXED and self.masks:
            target, index, *value = args
            return (target, self._drawn_index(target, index), *value), kwargs
        if function in _ALONG_AXIS and self.masks and len(args) > _INDEX:
            target, axis, index, *more = args
            return (target, axis, self._redrawn(index, target.shape[axis]), *more), kwargs
        if function not in _ARITHMETIC or not any(map(_is_of_floats, args)):
            return args, kwargs
        return tuple(
            self._noisy(a.float()) if isinstance(a, Tensor) and not _is_of_floats(a) else a
            for a in args
        ), kwargs

    def _choice(self, value: Tensor) -> Tensor:
        if value.dtype != torch.bool:
            self._indices[id(value)] = value
        elif self.masks == _WHERE_THEY_COME_FROM:
            return self._noted(self._drawn(value))
        return value

    def _born(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Noise what becomes floating point, and take note of masks and indices made of data."""
        if not isinstance(out, Tensor):
            return out
        function = plain(call.function)
        if function is Tensor.new_tensor:  # of the type of its first argument
            args = args[1:]
        sources = tensors_of(args[:1] if function in _CASTS else (args, kwargs))
        of_floats = any(map(_is_of_floats, sources))
        if _is_of_floats(out):
            of_python = function in FROM_PYTHON and out.numel() > 1
            return self._noisy(out) if not of_floats and (sources or of_python) else out
        if any(id(source) in self._of_masks for source in sources):
            return self._noted(out)
        # What parameters and constants alone make is the same in every pass.
        fixed = self._calls.weight_values.issuperset(call.made)
        is_mask = out.dtype == torch.bool
        return out if fixed or (is_mask and (of_floats or not sources)) else self._choice(out)

    def _noted(self, value: Tensor) -> Tensor:
        """Remember what a drawn mask is, or was made of one."""
        self._of_masks[id(value)] = value
        return value

    def _drawn_index(self, target: Tensor, index: Any) -> Any:
        """Return an index in which masks and indices of data are others, within their bounds."""
        items = index if isinstance(index, tuple) else (index,)
        if any(item is Ellipsis for item in items):
            return mapped(index, self._drawn)
        drawn, axis = [], 0
        for item in items:
            many = isinstance(item, Tensor) and item.dtype == torch.bool
            if item is not None and axis < target.ndim:
                item = self._redrawn(self._drawn(item), target.shape[axis])
            drawn.append(item)
            axis += item.ndim if many else item is not None
        return tuple(drawn) if isinstance(index, tuple) else drawn[0]

    def _redrawn(self, index: Any, size: int) -> Any:
        """Return random indices in the place of those that come from data."""
        if id(index) not in self._indices or not size:
            return index
        self.chose = True
        values = torch.randint(size, index.shape, generator=self._generator)
        return values.to(index.device, index.dtype)

    def _drawn(self, mask: Any) -> Any:
        """Return a mask of which half is true in the place of one, anything else as it is."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.is_nested:
            return mask
        if id(mask) in self._of_masks:
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

    def site(self, position: int, site: SiteCall, value: Tensor) -> Tensor:
        # Units may fire on other batches, whatever they do on this one.
        if position not in self.following:
            value = replaced(value, self._noisy(value).abs())
        return super().site(position, site, value)

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        call = self.passes.calls[index]
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
