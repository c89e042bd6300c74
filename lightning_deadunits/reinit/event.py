"""One re-initialisation of some units of a model: replayed, planned, operated, reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.names import as_patterns, selects
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.dataflow.passes import Passes, PathChangedError, UnitKey
from lightning_deadunits.reinit.dataflow.trace import Trace
from lightning_deadunits.reinit.eligibility import eligible, model_refusal
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.plan import Plan
from lightning_deadunits.reinit.recording.layers import keys_of, made_by_rows
from lightning_deadunits.reinit.recording.soundness import refuse_unsound
from lightning_deadunits.reinit.recording.tape import Tape
from lightning_deadunits.reinit.report import ReinitReport, Units, by_layer, reasons_by_layer
from lightning_deadunits.reinit.surgery.initialisation import Draws
from lightning_deadunits.reinit.surgery.surgeon import Outcome, Surgeon, clear_gradients
from lightning_deadunits.reinit.surgery.verification import DisturbedError, verify_plan
from lightning_deadunits.reinit.weights import WeightSlice, written


class Event:
    """One re-initialisation.

    Args:
        model: The model.
        tapes: What was recorded of it, in eval mode, in training, or both; replays compute with
            the weights as they are now.
        memory: What optimizers remember.
        config: The options.
        seed: Seed of the fresh weights.
        step: The training step, None outside of training.
        scales: How large parameters were when training began, by name, if known.
        names: The names of layers, if a training keeps them.

    Attributes:
        model: The model.
        report: What was done.
        outcome: What was written.
        touched: The elements of parameters that were written, each once.
    """

    def __init__(
        self,
        model: nn.Module,
        tapes: Sequence[Tape],
        memory: OptimizerMemory,
        config: ReinitConfig,
        *,
        seed: int = 0,
        step: int | None = None,
        scales: Mapping[str, float] | None = None,
        names: LayerNames | None = None,
    ) -> None:
        self.model, self._tapes = model, list(tapes)
        self._memory, self._config = memory, config
        self._seed, self._step = seed, step
        self._scales, self._names = scales or {}, names
        self._fresh: list[WeightSlice] = []
        self.report = ReinitReport(step=step)
        self.outcome = Outcome()
        self.touched: list[WeightSlice] = []
        self._remember_: Callable[[], None] = lambda: None

    def operate_(self, units: Units) -> None:
        """Re-initialise what can be; the optimizers know nothing of it before :meth:`commit_`."""
        layers = as_patterns("layers", self._config.layers)
        exclude = as_patterns("exclude", self._config.exclude)
        units = {name: own for name, own in units.items() if selects(name, layers, exclude)}
        keys = [(layer, unit) for layer, own in units.items() for unit in own]
        if keys and (reason := model_refusal(self.model)) is not None:
            self.report.refused = reasons_by_layer(dict.fromkeys(keys, reason))
        elif keys:
            self._run(units, keys)

    def commit_(self) -> None:
        """Have the optimizers forget what was re-initialised."""
        try:
            self._remember_ = self._memory.forget_(self.touched)
        except BaseException:
            self.outcome.undo_()
            raise
        for weights in self.touched:
            if (caveat := self._memory.caveat(weights.parameter)) is not None:
                self.report.note(f"Note: {caveat}.")

    def undo_(self) -> None:
        """Take everything back, from the optimizers too; none may have stepped since."""
        self._remember_()
        self.outcome.undo_()
        self._remember_, self.touched = (lambda: None), []

    def plan(self) -> Plan:
        """Return what was written, for other processes and for a checkpoint."""
        units = self.report.reinitialised
        return Plan.of(self.model, units, self.outcome.edits, self._fresh)

    def follow_(self, plan: Plan) -> dict[UnitKey, str]:
        """Write what another process has planned, and verify it on the tapes of this one.

        Returns:
            The units that cannot be re-initialised here, with the reason; then nothing is written.
        """
        keys = [(layer, unit) for layer, own in plan.units.items() for unit in own]
        passes, refused = self._replayed(plan.units, keys)
        # A unit that is on no tape of this process is judged by those that have it.
        refused = {u: why for u, why in refused.items() if passes.of_layer(u[0])}
        refused |= passes.alive(keys)
        if refused:
            return refused
        edit = plan.edit(self.model)
        clear_gradients(edit)
        edit.apply_()
        self.outcome = Outcome([edit], keys)
        try:
            verify_plan(passes, plan, self._config.tolerance)
        except BaseException as error:
            self.outcome.undo_()
            if not isinstance(error, (DisturbedError, PathChangedError)):
                raise
            return dict.fromkeys(keys, f"on another process {error}")
        self.touched = touched(self.outcome, passes)
        return {}

    def _replayed(self, units: Units, keys: list[UnitKey]) -> tuple[Passes, dict[UnitKey, str]]:
        """Replay the tapes as they are; return the units too that they do not vouch for."""
        layers = keys_of(self._tapes, units, self._names)
        passes = Passes(self.model, self._tapes, layers)
        broken = passes.record(units if self._config.criterion == "dormant" else {})
        refused = refuse_unsound(passes.tapes, layers, broken, keys)
        for layer in units:
            if layer not in layers.values() and made_by_rows(self._tapes, layer):
                refused |= {(n, u): _BY_ROWS for n, u in keys if n == layer}
        refused |= passes.absent([unit for unit in keys if unit not in refused])
        return passes, refused

    def _run(self, units: Units, keys: list[UnitKey]) -> None:
        passes, unsound = self._replayed(units, keys)
        sound = [unit for unit in keys if unit not in unsound]
        planned = self._operate(passes, sound) if sound else Trace({}, {})
        planned.refused |= unsound
        self.report.refused = reasons_by_layer(planned.refused)
        self.report.passes = passes.replays

    def _operate(self, passes: Passes, keys: list[UnitKey]) -> Trace:
        planned = eligible(passes, keys, self._memory, self._config)
        if self._config.dry_run:
            self.report.planned = by_layer(planned.units)
            self._tell(passes, planned, list(planned.units))
            return planned
        self._write_(passes, planned)
        if self.outcome.silent:
            # Perhaps something else that makes them holds them down, as a second branch may.
            thorough = eligible(passes, keys, self._memory, self._config, guess=False)
            if _makes_more(thorough, planned, self.outcome.silent):
                planned = thorough
                self._write_(passes, planned)
        planned.refused |= self.outcome.refused
        self.touched = touched(self.outcome, passes)
        made = (part for unit in self.outcome.units for part in planned.units[unit].makes)
        self._fresh = [part.weights for part in made]
        self.report.reinitialised = by_layer(self.outcome.units)
        self.report.silent = by_layer(self.outcome.silent)
        self._tell(passes, planned, self.outcome.units)
        return planned

    def _write_(self, passes: Passes, planned: Trace) -> None:
        """Operate, in place of what was written before."""
        self.outcome.undo_()
        self.outcome = Outcome()
        step = 0 if self._step is None else self._step
        draws = Draws(passes, self._config.init_function(), self._seed, step, self._scales)
        self.outcome = Surgeon(passes, self._config, draws).operate_(planned.units)

    def _tell(self, passes: Passes, planned: Trace, units: list[UnitKey]) -> None:
        for unit in units:
            found = planned.units[unit]
            made, read = (
                [passes.parameters.named(part.weights.parameter).names[0] for part in parts]
                for parts in (found.makes, found.reads)
            )
            self.report.tell_weights(unit[0], made, read)


_BY_ROWS = "each row of the activation is made by another of several weights, which are not traced"


def _makes_more(thorough: Trace, planned: Trace, silent: list[UnitKey]) -> bool:
    """Tell whether a thorough search found more that makes silent units, or what must be left."""
    return all(unit in thorough.units for unit in planned.units) and any(
        len(thorough.units[unit].makes) > len(planned.units[unit].makes)
        or (thorough.units[unit].left is not None and planned.units[unit].left is None)
        for unit in silent
    )


def touched(outcome: Outcome, passes: Passes) -> list[WeightSlice]:
    """Return the elements of parameters that were written, each once."""
    return [part for part in written(outcome.edits) if part.parameter in passes.parameters]
