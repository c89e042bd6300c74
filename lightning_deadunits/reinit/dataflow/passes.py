"""The recorded passes that an event works on, as one sequence of calls with weights.

All tapes are numbered through: a weight that is used twice in a step, or on an eval tape and a
training tape, is used by two calls. A *spot* is one activation of one pass: a layer that is called
twice, or is on two tapes, has two spots, and a unit is a channel of every spot of its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.activations import plain_function, zero_atol
from lightning_deadunits.reinit.dataflow.taints import is_readable, steering, with_tags
from lightning_deadunits.reinit.ops.elementwise import SUMS, Copies
from lightning_deadunits.reinit.ops.operation import Channel, Given, Operation, unravel
from lightning_deadunits.reinit.ops.registry import PRODUCTS, describe
from lightning_deadunits.reinit.parameters import Parameters
from lightning_deadunits.reinit.recording.functions import GRADIENT
from lightning_deadunits.reinit.recording.replay import Visitor as ReplayVisitor
from lightning_deadunits.reinit.recording.replay import replay
from lightning_deadunits.reinit.recording.tape import Call, SiteCall, Tape, leaves_of, tensors_of
from lightning_deadunits.reinit.report import Units
from lightning_deadunits.reinit.weights import WeightSlice

UnitKey = tuple[str, int]
"""Layer and unit."""

Tagged = TypeVar("Tagged", UnitKey, Channel)

_MOST_CELLS = 31
"""So that a tag of 62 bits spans two replays at least."""


class PathChangedError(Exception):
    """A replay cannot go the recorded way with other values in it."""


@dataclass(frozen=True, eq=False)
class Spot:
    """One activation of a layer in one pass.

    Attributes:
        layer: The layer.
        dims: Axes that index its units.
        activation: What it returned.
        atol: Magnitude up to which a value counts as zero.
        fires_above: Magnitude above which a fresh unit counts as firing.
        reached: How many calls with weights came before it, on all tapes.
        tape: Number of its tape.
    """

    layer: str
    dims: tuple[int, ...]
    activation: Tensor
    atol: float
    fires_above: float
    reached: int
    tape: int


@dataclass(eq=False)
class Passes:
    """Replays tapes for visitors, and holds what they computed when replayed without a change.

    Attributes:
        model: The model.
        tapes: The tapes.
        layers: Names of the layers that matter, by key.
        calls: The calls with weights.
        spots: The activations of the layers that matter.
        results: By tape and value, what it came to and what Python read of it.
        first_call: Number of the first call of each tape.
        first_spot: Number of the first spot of each tape.
        call_at: Number of the call with weights at a position of a tape.
        spot_at: Number of the spot there.
        aside: What was returned there by a call that no replay makes again.
        twins: Numbers of the tapes that can be replayed, those of one structure together: their
            calls are the same.
        replays: How many replays there were.
        broken: Numbers of the tapes that cannot be replayed, with the reason.
    """

    model: nn.Module
    tapes: Sequence[Tape]
    layers: Mapping[str, str]
    calls: list[Operation] = field(default_factory=list)
    spots: list[Spot] = field(default_factory=list)
    results: dict[tuple[int, Any], Any] = field(default_factory=dict)
    first_call: list[int] = field(default_factory=list)
    first_spot: list[int] = field(default_factory=list)
    call_at: dict[tuple[int, int], int] = field(default_factory=dict)
    spot_at: dict[tuple[int, int], int] = field(default_factory=dict)
    aside: dict[tuple[int, int], Any] = field(default_factory=dict)
    twins: list[list[int]] = field(default_factory=list)
    replays: int = 0
    broken: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the parameters."""
        self.parameters = Parameters(self.model)

    def record(self, clamped: Units) -> dict[int, str]:
        """Replay every tape once and keep what matters; return which are broken.

        Clamped units are held at zero: dormant ones, whose contribution is to be lost.
        """
        for number in range(len(self.tapes)):
            self.first_call.append(len(self.calls))
            self.first_spot.append(len(self.spots))
            try:
                self.run(_Recording(clamped), number)
            except Exception as error:  # whatever a call of the user's step may raise
                self.broken[number] = (
                    f"the recorded pass cannot be replayed ({type(error).__name__}: {error})"
                )
        for number in self.numbers():
            structure = self.tapes[number].structure
            same = (own for own in self.twins if self.tapes[own[0]].structure == structure)
            if (twins := next(same, None)) is None:
                self.twins.append(twins := [])
            twins.append(number)
        return self.broken

    def run(self, visitor: Visitor, tape: int) -> None:
        """Replay one tape for a visitor."""
        self.replays += 1
        visitor.start(self, tape)
        replay(self.tapes[tape], visitor)

    def numbers(self, *, training: bool | None = None) -> list[int]:
        """Return the numbers of all tapes that can be replayed, or of those of one mode."""
        sound = [number for number in range(len(self.tapes)) if number not in self.broken]
        return [n for n in sound if training in (None, self.tapes[n].training)]

    def cells(self, tape: int) -> int:
        """Return the number of equal blocks of samples that are told apart on a tape.

        By the most common first axis of its leaves; few enough for the bits of a tag.
        """
        own = self.tapes[tape]
        model = {*own.parameters, *own.buffers}
        data = (leaf for index, leaf in own.leaves.items() if index not in model)
        # A nested one has no shape.
        tensors = (t for t in data if isinstance(t, Tensor) and not t.is_nested and t.ndim)
        sizes = [tensor.shape[0] for tensor in tensors]
        size = max(sizes, key=sizes.count) if sizes else 1
        fitting = range(min(size, _MOST_CELLS), 0, -1)
        return next((cells for cells in fitting if size % cells == 0), 1)

    def users_of(self, weights: WeightSlice, known: Collection[int] = ()) -> list[int]:
        """Return the calls that are given some elements of a parameter, beside those known."""
        return [
            index
            for index, call in enumerate(self.calls)
            for parameter, view in call.uses
            if parameter is weights.parameter
            and index not in known
            # Most weights are given to calls as a whole.
            and (view.shape == parameter.shape or self.parameters.meet(view, weights))
        ]

    def on_tape(self, tape: int, items: Iterable[Tagged]) -> list[Tagged]:
        """Return those units whose layer ran on a tape, or those channels whose call is on it."""
        own: set[str | int] = {spot.layer for spot in self.spots if spot.tape == tape}
        own |= {index for index, call in enumerate(self.calls) if call.tape == tape}
        return [item for item in items if item[0] in own]

    def of_layer(self, layer: str, tape: int | None = None) -> list[int]:
        """Return the spots of a layer, of one tape or of all."""
        own = enumerate(self.spots)
        return [n for n, s in own if s.layer == layer and tape in (None, s.tape)]

    def width(self, of: int | str) -> int:
        """Return the number of channels that a call makes, or of units of a layer."""
        if isinstance(of, str):
            return self.num_units_at(self.of_layer(of)[0])
        return torch.Size(self.calls[of].made_sizes).numel()

    def num_units_at(self, number: int) -> int:
        """Return the number of units at a spot."""
        spot = self.spots[number]
        return torch.Size([spot.activation.shape[axis] for axis in spot.dims]).numel()

    def absent(self, units: Iterable[UnitKey]) -> dict[UnitKey, str]:
        """Return the units that are in none of the passes, with that as the reason."""
        found = {}
        for layer, unit in units:
            spots = self.of_layer(layer)
            sizes = {self.num_units_at(number) for number in spots}
            if not spots:
                found[(layer, unit)] = "its layer ran in none of the recorded passes"
            elif len(sizes) > 1:
                found[(layer, unit)] = f"its layer has {min(sizes)} to {max(sizes)} units"
            elif not 0 <= unit < min(sizes):
                found[(layer, unit)] = f"its layer has {min(sizes)} units only"
        return found

    def alive(self, units: Iterable[UnitKey]) -> dict[UnitKey, str]:
        """Return the units that fire in one of the passes, with that as the reason."""
        found = {}
        for layer, unit in units:
            for number in self.of_layer(layer):
                spot = self.spots[number]
                values = channel_of(spot.activation, spot.dims, unit)
                if not bool((values.abs() <= spot.atol).all()):
                    found[(layer, unit)] = "it fires on the recorded batch"
        return found


class Visitor(ReplayVisitor):
    """What is done with the spots and calls with weights of a replay; by default nothing.

    Attributes:
        clamps: Whether contractions return what they returned before, and need not be computed.
        tags: Whether it tags values with NaN, which no call may drop.
        tape: Number of the tape that is replayed.
    """

    clamps: bool = False
    tags: bool = False

    def start(self, passes: Passes, tape: int) -> None:
        """Receive, before all else, which tape is replayed."""
        self.passes, self.tape, self._calls = passes, tape, passes.tapes[tape]
        self._copies = Copies()

    def spot(self, number: int, spot: Spot, output: Tensor) -> Tensor:
        """Receive an activation; what is returned takes its place."""
        return output

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """Receive a call with weights; what is returned takes its result's place."""
        return out

    # --- how they are told apart ----------------------------------------------------------------

    def leaf(self, index: int, value: Any) -> Any:
        """See :class:`ReplayVisitor`."""
        if index in self._calls.parameters and index in self._calls.written:
            self._copies.stand_in(value, self._calls.parameters[index])
        return value

    def call(self, position: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See :class:`ReplayVisitor`."""
        key, function = (self.tape, position), plain(call.function)
        if key in self.passes.aside and (self.clamps or function is not GRADIENT):
            return self._aside(key, function, args, kwargs)
        index = self.passes.call_at.get(key)
        known = None if index is None else self.passes.calls[index]
        if known is not None and self._is_clamped(known, function, kwargs):
            out: Any = known.out
        else:
            out = call.function(*args, **kwargs)
        if self.tags:
            looks_up = known is not None and known.kind == "contraction"
            for order, tensor in enumerate(steering(function, args, looks_up)):
                self.result((position, order), tensor, "choice")
            out = with_tags(function, out, args, kwargs)
        found = self.described(call, args, kwargs, out)
        if index is None or known is None:
            return out
        if found is None:
            raise PathChangedError
        if known.out is not None and getattr(out, "shape", None) != known.out.shape:
            raise PathChangedError
        operation, reads, _ = found
        if operation.kind == "norm":
            operation = replace(operation, again=lambda: call.function(*args, **kwargs))
        return self.operation(index, operation, reads, out)

    def described(
        self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> tuple[Operation, list[Tensor], Any] | None:
        """Return what a call does with weights, and what it was given; None if it has none."""
        given = Given(plain(call.function), args, kwargs, out, self.passes.parameters)
        if not is_readable(out) or self._copies.follow(given):
            return None
        resolved = self._copies.resolved(args), self._copies.resolved(kwargs)
        found = describe(replace(given, args=resolved[0], kwargs=resolved[1]))
        return None if found is None else (*found, resolved)

    def _is_clamped(self, known: Operation, function: Callable[..., Any], kwargs: Any) -> bool:
        if not self.clamps or known.out is None or "out" in kwargs:
            return False
        return known.kind == "contraction" and function in PRODUCTS

    def _aside(
        self, key: tuple[int, int], function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Return what a call returned before: gradients, or a penalty on the weights."""
        if function is GRADIENT:
            for order, tensor in enumerate(tensors_of((args, kwargs))):
                self.result((key[1], order), tensor, "autograd.grad")
        kept = [
            item.clone() if isinstance(item, Tensor) else item for item in self.passes.aside[key]
        ]
        return kept if len(kept) > 1 or function is GRADIENT else kept[0]

    def site(self, position: int, site: SiteCall, value: Tensor) -> Tensor:
        """See :class:`ReplayVisitor`."""
        number = self.passes.spot_at.get((self.tape, position))
        if number is None:
            return value
        spot, finer = self.passes.spots[number], site.site.values(value)
        if spot.activation.shape != finer.shape:
            raise PathChangedError
        return self.spot(number, spot, finer).reshape(value.shape)


class _Recording(Visitor):
    """Replays without a change, and keeps what matters."""

    def __init__(self, clamped: Units) -> None:
        self._clamped = clamped
        self._buffers = Copies()

    def start(self, passes: Passes, tape: int) -> None:
        super().start(passes, tape)
        self._of_penalties, self._penalties = self._calls.penalties(SUMS)

    def leaf(self, index: int, value: Any) -> Any:
        if index in self._calls.buffers:
            self._buffers.stand_in(value, self._calls.buffers[index])
        return super().leaf(index, value)

    def call(self, position: int, call: Call, args: Any, kwargs: Any) -> Any:
        out = call.function(*args, **kwargs)
        key = (self.tape, position)
        if call.function is GRADIENT or position in self._penalties:
            self.passes.aside[key] = [_kept(item) for item in leaves_of(out)]
        found = self.described(call, args, kwargs, out)
        if found is not None and position not in self._of_penalties:
            operation, _, given = found
            self.passes.call_at[key] = len(self.passes.calls)
            floats = isinstance(out, Tensor) and out.is_floating_point()
            kept = _kept(out) if floats else None
            uses = [
                (owner, tensor.detach())
                for tensor in tensors_of(given)
                if (owner := self.passes.parameters.owner(tensor)) is not None
            ]
            self.passes.calls.append(
                replace(
                    operation,
                    # The model's own buffers, rather than the copies that a replay works on.
                    running=self._buffers.resolved(operation.running),
                    module=call.module,
                    out=kept,
                    tape=self.tape,
                    uses=uses,
                )
            )
        return out

    def site(self, position: int, site: SiteCall, value: Tensor) -> Tensor:
        layer = self.passes.layers.get(site.layer)
        if layer is None:
            return value
        dims = site.site.unit_dims
        if units := self._clamped.get(layer):
            value = silenced(site.site.values(value), dims, units).reshape(value.shape)
        self.passes.spot_at[(self.tape, position)] = len(self.passes.spots)
        self.passes.spots.append(
            Spot(
                layer,
                dims,
                _kept(site.site.values(value)),
                zero_atol(site.site.kind, None),
                0.0 if site.site.kind == "exact" else 1e-3,
                len(self.passes.calls),
                self.tape,
            )
        )
        return value

    def result(self, key: Any, value: Tensor, read_by: str | None) -> None:
        self.passes.results[(self.tape, key)] = _kept(value)


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that an operator of torch's is."""
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return plain_function(function)
    return function


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


# --- values of some channels --------------------------------------------------------------------


def mask_of(tensor: Tensor, axes: tuple[int, ...], units: list[int]) -> Tensor:
    """Return a mask that is True at some units and broadcasts to the tensor."""
    mask = torch.zeros([tensor.shape[axis] for axis in axes], dtype=torch.bool)
    mask.view(-1)[units] = True
    shape = [tensor.shape[axis] if axis in axes else 1 for axis in range(tensor.ndim)]
    return mask.reshape(shape).to(tensor.device)


def replaced(output: Tensor, value: Tensor) -> Tensor:
    """Write into an activation, for ``x.relu_()`` is often called without use of its result."""
    if torch.is_grad_enabled() and output.requires_grad:
        return value  # autograd may have kept what would be overwritten
    try:
        return output.copy_(value)
    except RuntimeError:  # expanded, or an inference tensor
        return value


def silenced(output: Tensor, unit_dims: tuple[int, ...], units: list[int]) -> Tensor:
    """Make some units of an activation zero."""
    return replaced(output, output.masked_fill(mask_of(output, unit_dims, units), 0.0))


def by_call(channels: Iterable[Channel]) -> dict[int, list[int]]:
    """Sort channels by the call that they are of."""
    found: dict[int, list[int]] = {}
    for index, channel in sorted(channels):
        found.setdefault(index, []).append(channel)
    return found


def channel_of(tensor: Tensor, axes: tuple[int, ...], channel: int) -> Tensor:
    """Return the values of one channel; cheap where one axis indexes the channels."""
    if len(axes) == 1:
        return tensor.select(axes[0], channel)
    index: list[Any] = [slice(None)] * tensor.ndim
    for axis, i in zip(axes, unravel(channel, [tensor.shape[axis] for axis in axes]), strict=True):
        index[axis] = i
    return tensor[tuple(index)]
