"""One re-initialisation of some units of a model: recorded, planned, operated, reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lightning_deadunits.observation.names import as_patterns, selects
from lightning_deadunits.observation.sites import unobserved
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.edit import Edit
from lightning_deadunits.reinit.fitness import model_refusal
from lightning_deadunits.reinit.known_traces import KnownTraces
from lightning_deadunits.reinit.optimizers.memory import OptimizerMemory
from lightning_deadunits.reinit.planning import Planner
from lightning_deadunits.reinit.report import ReinitReport, Units, by_layer, reasons_by_layer
from lightning_deadunits.reinit.running.baseline import Baseline, check_exist
from lightning_deadunits.reinit.running.example import Example
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.surgery.draws import Draws
from lightning_deadunits.reinit.surgery.surgeon import Outcome, Surgeon
from lightning_deadunits.reinit.tracing import Trace
from lightning_deadunits.reinit.weight_slice import WeightSlice


class Event:
    """One re-initialisation.

    Args:
        example: The example.
        memory: What optimizers remember.
        config: The options.
        seed: Seed of the fresh weights.
        step: The training step, None outside of training.
        scales: How large parameters were when training began, by name, if known.
        known: What earlier events have traced.

    Attributes:
        report: What was done.
        outcome: What was written.
        touched: The elements of parameters that were written, each once.
    """

    def __init__(
        self,
        example: Example,
        memory: OptimizerMemory,
        config: ReinitConfig,
        *,
        seed: int = 0,
        step: int | None = None,
        scales: Mapping[str, float] | None = None,
        known: KnownTraces | None = None,
    ) -> None:
        self._example, self._memory, self._config = example, memory, config
        self._seed, self._step = seed, step
        self._scales = scales or {}
        self._known = KnownTraces() if known is None else known
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
        if keys and (reason := model_refusal(self._example.model)) is not None:
            self.report.refused = reasons_by_layer(dict.fromkeys(keys, reason))
        elif keys:
            self._run(units, keys)
        self.report.passes = self._example.passes

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
        if not self._example.differs():
            raise ValueError(
                "Expected `example` to hold at least two different samples: from less it does not "
                "show what is constant. Pass a small batch."
            )
        session = Session(self._example, units)
        with unobserved(), session.watching():
            held = units if self._config.criterion == "dormant" else {}
            session.recorded = baseline = session.record(Baseline(held))
            check_exist(session, units)
            training = session.record(Baseline(held), training=True)
            planner = Planner(session, baseline, training, self._memory, self._config, self._known)
            self._operate(session, planner, keys)

    def _operate(self, session: Session, planner: Planner, keys: list[UnitKey]) -> None:
        planned = planner.plan(keys)
        if self._config.dry_run:
            self.report.planned = by_layer(planned.units)
            self._tell(session, planned, list(planned.units))
            return
        self._write_(session, planner, planned)
        if self.outcome.refused and planner.recalled:
            # What was true of the network at an earlier event is so no more.
            planned = planner.plan(keys, recall=False)
            self._write_(session, planner, planned)
        if self.outcome.silent:
            # Perhaps something else that makes them holds them down, as a second branch may.
            thorough = planner.plan(keys, recall=False, guess=False)
            if _makes_more(thorough, planned, self.outcome.silent):
                planned = thorough
                self._write_(session, planner, planned)
        planned.refused |= self.outcome.refused | self.outcome.stuck
        self.touched = touched(self.outcome, session)
        self.report.reinitialised = by_layer(self.outcome.units)
        self.report.silent = by_layer(self.outcome.silent)
        self._tell(session, planned, self.outcome.units)

    def _write_(self, session: Session, planner: Planner, planned: Trace) -> None:
        """Operate, in place of what was written before."""
        self.outcome.undo_()
        self.outcome = Outcome()
        step = 0 if self._step is None else self._step
        draws = Draws(session, self._config.init_function(), self._seed, step, self._scales)
        surgeon = Surgeon(session, planner.training, self._config, draws)
        self.outcome = surgeon.operate_(planned.units)

    def _tell(self, session: Session, planned: Trace, units: list[UnitKey]) -> None:
        self.report.refused = reasons_by_layer(planned.refused)
        for unit in units:
            found = planned.units[unit]
            made, read = (
                [session.parameters.named(part.weights.parameter).names[0] for part in parts]
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


def touched(outcome: Outcome, session: Session) -> list[WeightSlice]:
    """Return the elements of parameters that were written, each once."""
    merged = Edit()
    for edit in outcome.edits:
        for weights, _ in edit.slices():
            if weights.parameter in session.parameters:
                merged.set(weights, 0.0)
    return [weights for weights, _ in merged.slices()]
