"""Does the model still compute what it did? Every call with weights is compared, and the output."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.dataflow.passes import (
    Passes,
    PathChangedError,
    Spot,
    UnitKey,
    Visitor,
    by_call,
    channel_of,
    mask_of,
    replaced,
)
from lightning_deadunits.reinit.ops.operation import Channel, Operation
from lightning_deadunits.reinit.plan import Plan
from lightning_deadunits.reinit.recording.soundness import change_of


class DisturbedError(Exception):
    """The model computes something else than before."""


@dataclass(eq=False)
class Observed(Visitor):
    """Compares a replay with what was recorded, and sees which fresh units fire.

    Attributes:
        made: Calls whose outputs are those of fresh weights, and so must differ.
        units: Layer to the units that are fresh.
        tolerance: Largest relative change, None for the rounding of the dtype.
        varying: Units that fire only if their values differ: what makes them may be a constant.
        firing: The units that fired.
    """

    made: set[int]
    units: Mapping[str, list[int]]
    tolerance: float | None
    varying: Collection[UnitKey] = ()
    firing: set[UnitKey] = field(default_factory=set)

    def spot(self, number: int, spot: Spot, output: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        for unit in self.units.get(spot.layer, ()):
            values = channel_of(output, spot.dims, unit)
            fires = (values.abs() > spot.fires_above).any()
            if (spot.layer, unit) in self.varying:
                fires &= values.max() > values.min()
            if bool(fires):
                self.firing.add((spot.layer, unit))
        return output

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """See :class:`Visitor`."""
        call = self.passes.calls[index]
        if call.out is not None and index not in self.made and not operation.passes_on:
            check_same(call.title, call.out, out, self.tolerance)
        return out

    def result(self, key: Any, value: Tensor, read_by: str | None) -> None:
        """See :class:`Visitor`."""
        what = "the model's output" if read_by is None else f"what Python reads of it ({read_by})"
        check_same(what, self.passes.results[(self.tape, key)], value, self.tolerance)


@dataclass(eq=False, kw_only=True)
class Settled(Observed):
    """Also takes from the example what fresh channels need to know of it, and uses it.

    A fresh channel's bias is set so that half of its values are positive: alive, and its threshold
    where the data is (as in the data-dependent initialisation of Krähenbühl et al. 2016, with the
    median in place of the mean). Its running statistics are those of the example.

    Attributes:
        normed: Calls and channels of norms that fresh weights feed.
        biased: Calls and channels that have a fresh bias, and what their median is to be.
        lift: How many standard deviations the median is to be above that.
        bias_of: Which bias that is: one that several calls have gets one shift, by the first.
        statistics: Running mean and variance that normed channels should have.
        shifts: What is to be added to the bias of biased channels.
    """

    normed: set[Channel]
    biased: Mapping[Channel, float]
    lift: float
    bias_of: Mapping[Channel, Hashable]
    statistics: dict[Channel, tuple[Tensor, Tensor]] = field(default_factory=dict)
    shifts: dict[Channel, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the channels by call."""
        self._normed, self._biased = by_call(self.normed), by_call(self.biased)
        self._shift_of: dict[Hashable, Tensor] = {}

    def operation(self, index: int, operation: Operation, reads: list[Tensor], out: Any) -> Any:
        """See :class:`Visitor`."""
        if index in self._biased and isinstance(out, Tensor):
            if torch.is_grad_enabled():
                out = out.clone()  # autograd may have kept what would be overwritten
            self._centre_(index, operation, out)
        if index in self._normed and operation.running and operation.again is not None:
            self._normalise_(index, operation, reads[0])
            out = operation.again()
        return super().operation(index, operation, reads, out)

    def _centre_(self, index: int, operation: Operation, out: Tensor) -> None:
        for channel in self._biased[index]:
            values = channel_of(out.detach(), operation.made_axes, channel)
            bias = self.bias_of[(index, channel)]
            if bias in self._shift_of:
                values += self._shift_of[bias].to(values.dtype)
            elif bool((values != values.flatten()[0]).any()):  # else the bias is all that it has
                own = values.float()
                shift = self.biased[(index, channel)] - own.median() + self.lift * own.std()
                values += shift.to(values.dtype)
                self.shifts[(index, channel)] = self._shift_of[bias] = shift

    def _normalise_(self, index: int, operation: Operation, read: Tensor) -> None:
        assert operation.running is not None
        mean, variance = operation.running
        for channel in self._normed[index]:
            values = channel_of(read.detach(), operation.read_axes, channel).float()
            # A variance of zero would blow up whatever comes next.
            spread = values.var(correction=min(1, values.numel() - 1)).clamp(min=1e-5)
            mean[channel], variance[channel] = values.mean(), spread
            self.statistics[(index, channel)] = mean[channel].clone(), variance[channel].clone()


def zero_of(norm: Operation, channel: int) -> float:
    """Return which value a norm that goes by its running statistics turns into 0."""
    assert norm.running is not None
    mean, variance = (float(statistic[channel]) for statistic in norm.running)
    scale, shift = (
        default if p is None else float(p.detach().flatten()[channel])
        for p, default in ((norm.weight, 1.0), (norm.bias, 0.0))
    )
    return mean - shift * variance**0.5 / scale if scale else mean


_LOUDEST = 50.0  # of which exponentials are finite


class Stressed(Observed):
    """Also has the fresh units fire at random, for whatever they may do later."""

    def spot(self, number: int, spot: Spot, output: Tensor) -> Tensor:
        """See :class:`Visitor`."""
        units = self.units.get(spot.layer)
        if not units:
            return output
        if self.varying:  # it waits for the device, for a verdict that nobody else needs
            super().spot(number, spot, output)
        size = output.abs().float().mean().add(1.0).to(output.dtype)
        noise = torch.rand((2, *output.shape), generator=torch.Generator().manual_seed(0))
        # Some of it far above all that is there, and so above what it may be compared with.
        loud = (noise[0] * _LOUDEST ** noise[1]).to(output.device, output.dtype) * size
        mask = mask_of(output, spot.dims, list(units))
        return replaced(output, torch.where(mask, loud, output))


def check_same(title: str, before: Tensor, after: Any, tolerance: float | None) -> None:
    """Raise unless a tensor is what it was, up to rounding.

    Raises:
        DisturbedError: If it differs by more.
    """
    if not isinstance(after, Tensor) or after.shape != before.shape:
        raise DisturbedError(f"{title} has another shape")
    if torch.equal(before, after):
        return
    if not before.is_floating_point():
        raise DisturbedError(f"{title} would change")
    change, size = change_of(before, after)
    if not change <= allowed(before.dtype, tolerance) * size:
        if not size:
            raise DisturbedError(f"{title} would be zero no more")
        raise DisturbedError(f"{title} would change by {change / size:.1e} of its largest value")


def allowed(dtype: torch.dtype, tolerance: float | None) -> float:
    """Return the largest relative change that is no disturbance.

    The order of a sum may change with its terms: by default a few units in the last place.
    """
    return 4 * torch.finfo(dtype).eps if tolerance is None else tolerance


def verify(passes: Passes, visitor: Observed, tape: int) -> None:
    """Replay a tape with what was written.

    Raises:
        DisturbedError: If it comes to something else, or can be replayed no more.
    """
    mode = " in training mode" if passes.tapes[tape].training else ""
    try:
        passes.run(visitor, tape)
    except DisturbedError as error:
        raise DisturbedError(f"{error}{mode}") from error
    except PathChangedError as error:
        raise DisturbedError("the model took another path afterwards") from error
    except Exception as error:  # whatever a call raises: of one unit, it must not cost the others
        failure = f"{type(error).__name__}: {error}"
        raise DisturbedError(f"the model would fail{mode} ({failure})") from error


def verify_plan(passes: Passes, plan: Plan, tolerance: float | None) -> None:
    """Verify what another process has planned, with the units firing at random.

    Raises:
        DisturbedError: If a pass comes to something else.
    """
    made = {i for i, call in enumerate(passes.calls) if call.kind == "norm"}
    made.update(*(passes.users_of(fresh) for fresh in plan.made(passes.model)))
    for tape in passes.numbers():
        verify(passes, Stressed(made, plan.units, tolerance), tape)
