"""Writes fresh and silent weights for some units, verifies, and takes back what disturbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.trace import (
    Part,
    Traces,
    UnitTrace,
    coupled_groups,
    refuse_with_group,
)
from lightning_deadunits.reinit.ops.operation import Channel
from lightning_deadunits.reinit.report import by_layer
from lightning_deadunits.reinit.surgery.initialisation import Draws
from lightning_deadunits.reinit.surgery.verification import (
    DisturbedError,
    Settled,
    Stressed,
    verify,
    zero_of,
)
from lightning_deadunits.reinit.weights import Edit, WeightSlice


@dataclass
class Outcome:
    """What an event came to.

    Attributes:
        edits: What was written, in order; nothing else was.
        units: The units that were re-initialised.
        refused: The others, with the reason.
        silent: Those units that do not fire on the example.
    """

    edits: list[Edit] = field(default_factory=list)
    units: list[UnitKey] = field(default_factory=list)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    silent: list[UnitKey] = field(default_factory=list)

    def undo_(self) -> None:
        """Take everything back."""
        for edit in reversed(self.edits):
            edit.undo_()


class StuckError(Exception):
    """Units do not fire without weights that had to be left: these units, and why these weights."""

    def __init__(self, units: dict[UnitKey, str]) -> None:
        super().__init__()
        self.units = units


class Surgeon:
    """Re-initialises units of one model."""

    def __init__(self, passes: Passes, config: ReinitConfig, draws: Draws) -> None:
        self._passes, self._config, self._draws = passes, config, draws
        self._made: set[int] = set()

    def operate_(self, traces: Traces) -> Outcome:
        """Re-initialise units; those that disturb the model are found by halving, and refused."""
        outcome = Outcome()
        try:
            self._operate_on(traces, outcome)
        except BaseException:
            outcome.undo_()
            raise
        return outcome

    def _operate_on(self, traces: Traces, outcome: Outcome) -> None:
        if not traces:
            return
        edits: list[Edit] = []
        try:
            silent = self._write_and_verify_(traces, edits)
        except BaseException as error:
            Outcome(edits).undo_()
            if isinstance(error, StuckError):
                outcome.refused |= error.units
                rest = {unit: trace for unit, trace in traces.items() if unit not in error.units}
                refuse_with_group(rest, outcome.refused, traces)
                self._operate_on(rest, outcome)
            elif isinstance(error, DisturbedError):
                self._halve(traces, str(error), outcome)
            else:
                raise
        else:
            self._made |= made_by(traces)
            outcome.edits += edits
            outcome.units += traces
            outcome.silent += silent

    def _halve(self, traces: Traces, reason: str, outcome: Outcome) -> None:
        together = coupled_groups(traces)
        if len(together) == 1:
            for unit, trace in traces.items():
                outcome.refused[unit] = reason
                if (tied := tied_to_itself(trace)) is not None:
                    name = self._passes.parameters.names(tied)[0]
                    outcome.refused[unit] = f"{name} both makes and reads it: {reason}"
            return
        middle = len(together) // 2
        for half in (together[:middle], together[middle:]):
            self._operate_on({unit: traces[unit] for group in half for unit in group}, outcome)

    def _write_and_verify_(self, traces: Traces, edits: list[Edit]) -> list[UnitKey]:
        """Write fresh weights until every unit fires or there are no attempts left."""
        pending = dict(traces)
        for attempt in range(self._config.attempts):
            edit = self._edit(traces, pending, attempt)
            edits.append(edit)
            edit.apply_()
            # A shortcut may hold it down. If it is something else, it stays without a lift.
            lift = 0.5 * 4.0**attempt if 0 < attempt < self._config.attempts - 1 else 0.0
            firing = self._settle_(traces, pending, edits, lift)
            # Of all: one that fired may be fed by another one that was drawn anew since.
            pending = {unit: trace for unit, trace in traces.items() if unit not in firing}
            if not pending:
                break
        firing = self._stress(traces)
        _check_gradients(edits)
        stuck = {
            unit: f"{trace.left}, and what else makes it cannot make it fire"
            for unit, trace in traces.items()
            if trace.left and (unit in pending or unit not in firing)
        }
        if stuck:
            raise StuckError(stuck)
        return list(pending)

    def _edit(self, traces: Traces, fresh: Traces, attempt: int) -> Edit:
        edit = Edit() if attempt else silencing(self._passes, traces)
        # After the silencing: what one unit reads of another one is fresh, for it is silent itself.
        for (layer, _), parts in parts_by_call(fresh).items():
            drawn = self._draws.fresh(layer, attempt, parts)
            for part, values in zip(parts, drawn, strict=True):
                edit.set(part.weights, values)
        clear_gradients(edit)
        return edit

    def _settle_(
        self, traces: Traces, fresh: Traces, edits: list[Edit], lift: float
    ) -> set[UnitKey]:
        """Verify; fresh channels get the biases and statistics of the recorded batches.

        Those of the tapes on which units are judged, where there are any: training tapes where
        windows of training batches decide, else eval tapes.
        """
        biases = biases_of(fresh)
        visitor = Settled(
            normed={norm for trace in traces.values() for norm in trace.statistics},
            biased=self._centres(fresh),
            lift=lift,
            bias_of={channel: weights_key(bias) for channel, bias in biases.items()},
            **self._observed(traces),
        )
        if lift:
            visitor.varying = {*visitor.varying, *fresh}  # not above the bound of a ReLU6
        in_training = self._config.every_n_train_steps is not None
        for tape in self._passes.numbers(training=in_training) or self._passes.numbers():
            verify(self._passes, visitor, tape)
        edit = Edit()
        for channel, shift in visitor.shifts.items():
            bias = biases[channel]
            edit.set(bias, bias.read(bias.parameter).float() + shift)
        # The first tape's win: later ones are other batches.
        for (index, number), values in reversed(visitor.statistics.items()):
            running = self._passes.calls[index].running
            assert running is not None
            for buffer, value in zip(running, values, strict=True):
                edit.set(WeightSlice.along(buffer, {0: [number]}), value)
        edits.append(edit)
        edit.apply_()
        return visitor.firing

    def _observed(self, traces: Traces) -> dict[str, Any]:
        """Return what :class:`Observed` is given for some units."""
        return {
            "made": self._made | made_by(traces),
            "units": by_layer(traces),
            "tolerance": self._config.tolerance,
            # They must do without some of what made them.
            "varying": {unit for unit, trace in traces.items() if trace.left},
        }

    def _centres(self, traces: Traces) -> dict[Channel, float]:
        """Return the medians that fresh biases should have: what a frozen norm behind makes 0."""
        calls = self._passes.calls
        frozen = {
            before: zero_of(calls[index], channel)
            for trace in traces.values()
            for (index, channel), before in trace.fixed.items()
        }
        return {channel: frozen.get(channel, 0.0) for channel in biases_of(traces)}

    def _stress(self, traces: Traces) -> set[UnitKey]:
        """Verify in training mode, with the units firing at random; return who may do so there.

        Only units that had to do without some weights are looked at.
        """
        tapes = self._passes.numbers(training=True) or self._passes.numbers()
        visitor = Stressed(**self._observed(traces))
        for tape in tapes:
            verify(self._passes, visitor, tape)
        of_layer = self._passes.of_layer
        absent = {u for u in traces if not any(of_layer(u[0], tape) for tape in tapes)}
        return visitor.firing | absent


def silencing(passes: Passes, traces: Traces) -> Edit:
    """Plan to silence units: whatever reads them hears nothing."""
    edit = Edit()
    for trace in traces.values():
        for part in reversed(trace.reads):  # the first call's value wins
            edit.set(part.weights, _silence(passes, part))
    return edit


def _silence(passes: Passes, part: Part) -> Tensor | float:
    """Return what a reading weight must be so that the unit is not heard."""
    if part.role != "shift":
        return 0.0
    # A norm with scale 0 returns its shift: what it has made of the silent unit so far.
    call = passes.calls[part.index]
    assert call.out is not None
    return call.out.select(call.made_axes[0], part.channel).flatten()[0]


def clear_gradients(edit: Edit) -> None:
    """Plan to forget gradients: a step that is still to come would move what was just written."""
    for weights, _ in list(edit.slices()):
        if weights.parameter.grad is not None:
            edit.set(WeightSlice(weights.parameter.grad, weights.positions), 0.0)


def _check_gradients(edits: list[Edit]) -> None:
    """Raise unless nothing is left that the optimizer's next step would act on."""
    for edit in edits:
        for weights, _ in edit.slices():
            gradient = weights.parameter.grad if weights.parameter.is_leaf else None
            if gradient is not None and bool((weights.read(gradient) != 0).any()):
                raise DisturbedError("a gradient from before would move the fresh weights")


# --- what the traces of several units come to ---------------------------------------------------


def parts_by_call(traces: Traces) -> dict[tuple[str, tuple[int, str]], list[Part]]:
    """Sort the parts that make units by layer, call and role; each of the weights once."""
    found: dict[tuple[str, tuple[int, str]], list[Part]] = {}
    seen: set[tuple[str, int, int, int]] = set()
    for (layer, _), trace in traces.items():
        for part in trace.makes:
            if (key := (part.role, *weights_key(part.weights))) not in seen:
                seen.add(key)
                found.setdefault((layer, (part.index, part.role)), []).append(part)
    return found


def made_by(traces: Traces) -> set[int]:
    """Return the calls that fresh weights feed, whose results so must differ."""
    parts = {part.index for trace in traces.values() for part in trace.makes}
    # A norm without weights of its own is fed by fresh ones all the same.
    norms = (n for trace in traces.values() for n in (*trace.statistics, *trace.fixed))
    return parts | {index for index, _ in norms}


def biases_of(traces: Traces) -> dict[Channel, WeightSlice]:
    """Return the biases of channels that no norm stands behind, which would take a shift back."""
    return {
        (part.index, part.channel): part.weights
        for trace in traces.values()
        for part in trace.makes
        if part.role == "bias" and not trace.statistics
    }


def tied_to_itself(trace: UnitTrace) -> Tensor | None:
    """Return a parameter of which all that reads a unit makes it, too, as in a tied decoder."""
    for read in trace.reads:
        for made in trace.makes:
            if made.weights.parameter is read.weights.parameter and bool(
                torch.isin(read.weights.positions, made.weights.positions).all()
            ):
                return read.weights.parameter
    return None


def weights_key(weights: WeightSlice) -> tuple[int, int, int]:
    """Return what tells some weights, whichever call uses them."""
    places = weights.positions
    return id(weights.parameter), int(places[0]) if len(places) else -1, len(places)
