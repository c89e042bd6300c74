"""One re-initialisation of some units of a model: replayed, planned, operated, reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from lightning_deadunits.observation.names import as_patterns, selects
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.trace import Trace
from lightning_deadunits.reinit.edit import Edit
from lightning_deadunits.reinit.eligibility import model_refusal, plan
from lightning_deadunits.reinit.optimizers.memory import OptimizerMemory
from lightning_deadunits.reinit.recording.soundness import refuse_unsound
from lightning_deadunits.reinit.recording.tape import Tape
from lightning_deadunits.reinit.report import ReinitReport, Units, by_layer, reasons_by_layer
from lightning_deadunits.reinit.surgery.draws import Draws
from lightning_deadunits.reinit.surgery.surgeon import Outcome, Surgeon
from lightning_deadunits.reinit.weight_slice import WeightSlice


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

    Attributes:
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
    ) -> None:
        self._model, self._tapes = model, list(tapes)
        self._memory, self._config = memory, config
        self._seed, self._step = seed, step
        self._scales = scales or {}
        self.report = ReinitReport(step=step)
        self.outcome = Outcome()
        self.touched: list[WeightSlice] = []
        self._remember_: Callable[[], None] = _nothing

    def operate_(self, units: Units) -> None:
        """Re-initialise what can be; the optimizers know nothing of it before :meth:`commit_`."""
        layers = as_patterns("layers", self._config.layers)
        exclude = as_patterns("exclude", self._config.exclude)
        units = {name: own for name, own in units.items() if selects(name, layers, exclude)}
        keys = [(layer, unit) for layer, own in units.items() for unit in own]
        if keys and (reason := model_refusal(self._model)) is not None:
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
        self._remember_, self.touched = _nothing, []

    def _run(self, units: Units, keys: list[UnitKey]) -> None:
        clamped = units if self._config.criterion == "dormant" else {}
        passes = Passes(self._model, self._tapes, units)
        broken = passes.record(clamped)
        unsound = refuse_unsound(passes.tapes, broken, keys)
        unsound |= passes.absent([unit for unit in keys if unit not in unsound])
        sound = [unit for unit in keys if unit not in unsound]
        planned = self._operate(passes, sound) if sound else Trace({}, {})
        planned.refused |= unsound
        self.report.refused = reasons_by_layer(planned.refused)
        self.report.passes = passes.replays

    def _operate(self, passes: Passes, keys: list[UnitKey]) -> Trace:
        planned = plan(passes, keys, self._memory, self._config)
        if self._config.dry_run:
            self.report.planned = by_layer(planned.units)
            self._tell(passes, planned, list(planned.units))
            return planned
        self._write_(passes, planned)
        if self.outcome.silent:
            # Perhaps something else that makes them holds them down, as a second branch may.
            thorough = plan(passes, keys, self._memory, self._config, guess=False)
            if _makes_more(thorough, planned, self.outcome.silent):
                planned = thorough
                self._write_(passes, planned)
        planned.refused |= self.outcome.refused | self.outcome.stuck
        self.touched = touched(self.outcome, passes)
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


def _nothing() -> None:
    pass


def _makes_more(thorough: Trace, planned: Trace, silent: list[UnitKey]) -> bool:
    """Tell whether a thorough search found more that makes silent units, or what must be left."""
    return all(unit in thorough.units for unit in planned.units) and any(
        len(thorough.units[unit].makes) > len(planned.units[unit].makes)
        or (thorough.units[unit].left is not None and planned.units[unit].left is None)
        for unit in silent
    )


def touched(outcome: Outcome, passes: Passes) -> list[WeightSlice]:
    """Return the elements of parameters that were written, each once."""
    merged = Edit()
    for edit in outcome.edits:
        for weights, _ in edit.slices():
            if weights.parameter in passes.parameters:
                merged.set(weights, 0.0)
    return [weights for weights, _ in merged.slices()]
