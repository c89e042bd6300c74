"""One event: plan the edit of some units, write it, verify it, and take back what disturbs."""

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
from lightning_deadunits.reinit.surgery.verification import DisturbedError, Settled, Stressed
from lightning_deadunits.reinit.tracing import Part, UnitTrace
from lightning_deadunits.reinit.weight_slice import WeightSlice

Traces = dict[UnitKey, UnitTrace]

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
    """

    edits: list[Edit] = field(default_factory=list)
    units: list[UnitKey] = field(default_factory=list)
    refused: dict[UnitKey, str] = field(default_factory=dict)
    silent: list[UnitKey] = field(default_factory=list)

    def undo_(self) -> None:
        """Take everything back."""
        for edit in reversed(self.edits):
            edit.undo_()


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
            if not isinstance(error, (DisturbedError, PathChangedError)):
                raise
            self._halve(traces, str(error) or "the model took another path afterwards", outcome)
        else:
            self._made |= _made(traces)
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
        self._stress(traces)
        _check_gradients(edits)
        return list(pending)

    def _edit(self, traces: Traces, fresh: Traces, attempt: int, first: bool) -> Edit:
        edit = Edit()
        if first:
            for trace in traces.values():
                for part in trace.reads:
                    edit.set(part.weights, self._silence(part))
        # After the silencing: what one unit reads of another one is fresh, for it is silent itself.
        for (layer, _), parts in _by_call(fresh).items():
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
        recorded, biases = self._session.recorded, _biases(fresh)
        visitor = Settled(
            _statistics(traces),
            set(biases),
            recorded,
            self._made | _made(traces),
            by_layer(traces),
            self._config.tolerance,
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
        return {(layer, unit) for layer, units in visitor.firing.items() for unit in units}

    def _stress(self, traces: Traces) -> None:
        """Verify in training mode, with the units firing at random."""
        # In training mode a model may make more calls, such as a dropout of parameters, or fewer.
        made = self._training.counterparts(self._session.recorded, self._made | _made(traces))
        visitor = Stressed(self._training, made, by_layer(traces), self._config.tolerance)
        try:
            visitor.check_outputs(self._session.run(visitor, training=True))
        except DisturbedError as error:
            raise DisturbedError(f"{error} in training mode") from error


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


def tied(traces: Traces) -> list[list[UnitKey]]:
    """Return the units in groups that share weights, so that one cannot go without the others."""
    group_of: dict[tuple[str, Channel], list[UnitKey]] = {}
    for unit, trace in traces.items():
        merged = [unit]
        for other in {id(g): g for tie in trace.ties if (g := group_of.get(tie))}.values():
            merged += other
        for member in merged:
            for tie in traces[member].ties:
                group_of[tie] = merged
    groups = {id(group): group for group in group_of.values()}
    loose = [[unit] for unit, trace in traces.items() if not trace.ties]
    return list(groups.values()) + loose


def with_ties(traces: Traces, refused: dict[UnitKey, str], ties: dict[UnitKey, UnitTrace]) -> None:
    """Refuse units that share weights with refused ones; both arguments are changed."""
    for group in tied(ties):
        lost = [unit for unit in group if unit in refused]
        for unit in group:
            if lost and unit not in refused:
                layer, number = lost[0]
                refused[unit] = f"it shares weights with unit {number} of {layer}, which is refused"
                traces.pop(unit, None)


def _by_call(traces: Traces) -> dict[tuple[str, tuple[int, str]], list[Part]]:
    """Sort the parts that make units by layer, call and role; each once."""
    found: dict[tuple[str, tuple[int, str]], list[Part]] = {}
    seen: set[tuple[int, str, int]] = set()
    for (layer, _), trace in traces.items():
        for part in trace.makes:
            if (key := (part.index, part.role, part.channel)) not in seen:
                seen.add(key)
                found.setdefault((layer, (part.index, part.role)), []).append(part)
    return found


def _made(traces: Traces) -> set[int]:
    parts = {part.index for trace in traces.values() for part in trace.makes}
    # A norm without weights of its own is fed by fresh ones all the same.
    return parts | {index for trace in traces.values() for index, _ in trace.statistics}


def _biases(traces: Traces) -> dict[Channel, WeightSlice]:
    """Return the biases of channels that no norm stands behind, which would take a shift back."""
    return {
        (part.index, part.channel): part.weights
        for trace in traces.values()
        for part in trace.makes
        if part.role == "bias" and not trace.statistics
    }


def _statistics(traces: Traces) -> set[Channel]:
    return {channel for trace in traces.values() for channel in trace.statistics}
