"""Writes fresh and silent weights for some units, verifies, and takes back what disturbs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.edit import Edit
from lightning_deadunits.reinit.operations import Channel
from lightning_deadunits.reinit.report import by_layer
from lightning_deadunits.reinit.running.probe import PathChangedError, Recording
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.surgery.draws import Draws
from lightning_deadunits.reinit.surgery.verification import (
    DisturbedError,
    Settled,
    Stressed,
    zero_of,
)
from lightning_deadunits.reinit.tracing import Part
from lightning_deadunits.reinit.tracing.groups import (
    Traces,
    biases_of,
    left_in,
    made_by,
    parts_by_call,
    statistics_of,
    tied,
    with_ties,
)
from lightning_deadunits.reinit.weight_slice import WeightSlice

_MOST_ATTEMPTS = 40
"""How many groups of units are tried before the rest of a disturbing group is refused."""


@dataclass
class Outcome:
    """What an event came to.

    Attributes:
        edits: What was written, in order; nothing else was.
        units: The units that were re-initialised.
        refused: The others, with the reason.
        silent: Those units that do not fire on the example.
        stuck: Units that do not fire without the weights that had to be left, and why these had.
    """

    edits: list[Edit] = field(default_factory=list)
    units: list[UnitKey] = field(default_factory=list)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    silent: list[UnitKey] = field(default_factory=list)
    stuck: dict[UnitKey, str] = field(default_factory=dict)

    def undo_(self) -> None:
        """Take everything back."""
        for edit in reversed(self.edits):
            edit.undo_()


class StuckError(Exception):
    """Units do not fire without weights that had to be left.

    Attributes:
        units: The units, and why.
    """

    def __init__(self, units: dict[UnitKey, str]) -> None:
        super().__init__()
        self.units = units


class Surgeon:
    """Re-initialises units of one model.

    Args:
        session: The session that traced them.
        training: A pass in training mode, recorded before.
        config: The options.
        draws: Where fresh weights come from.
    """

    def __init__(
        self, session: Session, training: Recording, config: ReinitConfig, draws: Draws
    ) -> None:
        self._session, self._training = session, training
        self._config, self._draws = config, draws
        self._made: set[int] = set()
        self._attempts = 0

    def operate_(self, traces: Traces) -> Outcome:
        """Re-initialise units; those that disturb the model are found by halving, and refused."""
        outcome = Outcome()
        try:
            if traces:
                self._operate_on(traces, outcome)
        except BaseException:
            outcome.undo_()
            raise
        return outcome

    def _operate_on(self, traces: Traces, outcome: Outcome) -> None:
        edits: list[Edit] = []
        self._attempts += 1
        try:
            silent = self._write_and_verify_(traces, edits)
        except BaseException as error:
            for edit in reversed(edits):
                edit.undo_()
            if isinstance(error, StuckError):
                self._leave_out(error.units, traces, outcome)
            elif isinstance(error, (DisturbedError, PathChangedError)):
                self._halve(traces, str(error) or "the model took another path afterwards", outcome)
            else:
                raise
        else:
            self._made |= made_by(traces)
            outcome.edits += edits
            outcome.units += traces
            outcome.silent += silent

    def _halve(self, traces: Traces, reason: str, outcome: Outcome) -> None:
        together = tied(traces)
        if len(together) == 1 or self._attempts > _MOST_ATTEMPTS:
            outcome.refused.update(dict.fromkeys(traces, reason))
            return
        middle = len(together) // 2
        for half in (together[:middle], together[middle:]):
            self._operate_on({unit: traces[unit] for group in half for unit in group}, outcome)

    def _leave_out(self, stuck: dict[UnitKey, str], traces: Traces, outcome: Outcome) -> None:
        """Refuse units, and operate on the others anew."""
        outcome.stuck |= stuck
        rest = {unit: trace for unit, trace in traces.items() if unit not in stuck}
        with_ties(rest, outcome.stuck, traces)
        if rest:
            self._operate_on(rest, outcome)

    def _write_and_verify_(self, traces: Traces, edits: list[Edit]) -> list[UnitKey]:
        """Write fresh weights until every unit fires or there are no attempts left."""
        pending = dict(traces)
        for attempt in range(self._config.attempts):
            edit = self._edit(traces, pending, attempt, first=attempt == 0)
            edits.append(edit)
            edit.apply_()
            firing = self._settle_(traces, pending, edits)
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

    def _edit(self, traces: Traces, fresh: Traces, attempt: int, first: bool) -> Edit:
        edit = Edit()
        if first:
            for trace in traces.values():
                for part in trace.reads:
                    edit.set(part.weights, self._silence(part))
        # After the silencing: what one unit reads of another one is fresh, for it is silent itself.
        for (layer, _), parts in parts_by_call(fresh).items():
            revived = {part.channel for part in parts}
            drawn = self._draws.fresh(layer, attempt, parts, revived)
            for part, values in zip(parts, drawn, strict=True):
                edit.set(part.weights, values)
        _clear_gradients(edit)
        return edit

    def _silence(self, part: Part) -> torch.Tensor | float:
        """Return what a reading weight must be so that the unit is not heard."""
        if part.role != "shift":
            return 0.0
        # A norm with scale 0 returns its shift: what it has made of the silent unit so far.
        call = self._session.recorded.calls[part.index]
        assert call.out is not None
        axis = call.operation.made_axes[0]
        return call.out.select(axis, part.channel).flatten()[0]

    def _settle_(self, traces: Traces, fresh: Traces, edits: list[Edit]) -> set[UnitKey]:
        """Verify in eval mode; fresh channels get the biases and statistics of the example."""
        recorded, biases = self._session.recorded, biases_of(fresh)
        visitor = Settled(
            statistics_of(traces),
            self._centres(fresh),
            recorded,
            self._made | made_by(traces),
            by_layer(traces),
            self._config.tolerance,
            varying=left_in(traces),
        )
        visitor.check_outputs(self._session.run(visitor))
        edit = Edit()
        for channel, shift in visitor.shifts.items():
            bias = biases[channel]
            edit.set(bias, bias.read(bias.parameter).float() + shift)
        for (index, number), values in visitor.statistics.items():
            running = recorded.calls[index].operation.running
            assert running is not None
            for buffer, value in zip(running, values, strict=True):
                edit.set(WeightSlice.along(buffer, {0: [number]}), value)
        edits.append(edit)
        edit.apply_()
        return visitor.units_firing

    def _centres(self, traces: Traces) -> dict[Channel, float]:
        """Return the medians that fresh biases should have: what a frozen norm behind makes 0."""
        calls = self._session.recorded.calls
        frozen = {
            before: zero_of(calls[index].operation, channel)
            for trace in traces.values()
            for (index, channel), before in trace.fixed.items()
        }
        return {channel: frozen.get(channel, 0.0) for channel in biases_of(traces)}

    def _stress(self, traces: Traces) -> set[UnitKey]:
        """Verify in training mode, with the units firing at random; return who may do so there.

        Only units that had to do without some weights are looked at.
        """
        # In training mode a model may make more calls, such as a dropout of parameters, or fewer.
        made = self._training.counterparts(self._session.recorded, self._made | made_by(traces))
        visitor = Stressed(
            self._training, made, by_layer(traces), self._config.tolerance, varying=left_in(traces)
        )
        try:
            visitor.check_outputs(self._session.run(visitor, training=True))
        except DisturbedError as error:
            raise DisturbedError(f"{error} in training mode") from error
        absent = {unit for unit in traces if unit[0] not in self._training.sites}
        return visitor.units_firing | absent


def _clear_gradients(edit: Edit) -> None:
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
