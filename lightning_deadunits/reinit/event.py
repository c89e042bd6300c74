"""One re-initialisation of some units of a model: replayed, planned, operated, reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from torch import nn

from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.names import selects_named
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.dataflow.passes import Passes, UnitKey
from lightning_deadunits.reinit.dataflow.trace import Trace
from lightning_deadunits.reinit.eligibility import eligible, model_refusal
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.plan import Plan, Write, tensors_of
from lightning_deadunits.reinit.recording.layers import keys_of, made_by_rows
from lightning_deadunits.reinit.recording.soundness import refuse_unsound
from lightning_deadunits.reinit.recording.tape import Tape
from lightning_deadunits.reinit.report import ReinitReport, Units, by_layer, each_of
from lightning_deadunits.reinit.surgery.initialisation import Draws
from lightning_deadunits.reinit.surgery.surgeon import (
    Outcome,
    Surgeon,
    clear_gradients,
    silencing,
)
from lightning_deadunits.reinit.surgery.verification import DisturbedError, verify_plan
from lightning_deadunits.reinit.weights import WeightSlice, written


@dataclass(eq=False)
class Event:
    """One re-initialisation.

    Args:
        model: The model.
        tapes: What was recorded of it, in eval mode, in training, or both; replays compute with
            the weights as they are now.
        memory: What optimizers remember.
        config: The options.
        step: The training step, None outside of training.
        scales: How large parameters were when training began, by name, if known.
        names: The names of layers, if a training keeps them.

    Attributes:
        report: What was done.
        outcome: What was written.
        touched: The elements of parameters that were written, each once, from :meth:`commit_` on.
    """

    model: nn.Module
    tapes: Sequence[Tape]
    memory: OptimizerMemory
    config: ReinitConfig
    _: KW_ONLY
    step: int | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    names: LayerNames | None = None

    def __post_init__(self) -> None:
        self.report = ReinitReport(step=self.step)
        self.outcome = Outcome()
        self.touched: list[WeightSlice] = []
        self._fresh: list[WeightSlice] = []
        self._remember_: Callable[[], None] = lambda: None

    def operate_(self, units: Units) -> None:
        """Re-initialise what can be; the optimizers know nothing of it before :meth:`commit_`."""
        patterns = self.config.patterns
        units = {n: own for n, own in units.items() if selects_named(n, self.names, *patterns)}
        if not units:
            return
        if (reason := model_refusal(self.model)) is not None:
            self.report.refuse(dict.fromkeys(each_of(units), reason))
            return
        self._operate(units)

    def commit_(self) -> None:
        """Have the optimizers forget what was re-initialised."""
        parameters = set(map(id, self.model.parameters()))
        parts = written(self.outcome.edits)
        self.touched = [part for part in parts if id(part.parameter) in parameters]
        try:
            self._remember_ = self.memory.forget_(self.touched)
        except BaseException:
            self.outcome.undo_()
            raise
        for weights in self.touched:
            if (caveat := self.memory.caveat(weights.parameter)) is not None:
                self.report.note(f"Note: {caveat}.")

    def undo_(self) -> None:
        """Take everything back, from the optimizers too; none may have stepped since."""
        self._remember_()
        self.outcome.undo_()
        self._remember_, self.touched = (lambda: None), []

    def plan(self) -> Plan:
        """Return what was written, for other processes and for a checkpoint."""
        names = {id(tensor): name for name, tensor in tensors_of(self.model).items()}
        writes = [
            (names[id(w.parameter)], w.positions.cpu(), w.read(w.parameter).cpu())
            for w in written(self.outcome.edits)
            if id(w.parameter) in names  # else it is a gradient
        ]
        fresh = [(names[id(w.parameter)], w.positions.cpu()) for w in self._fresh]
        return Plan(self.report.reinitialised, writes, fresh)

    def follow_(self, plan: Plan) -> tuple[dict[UnitKey, str], list[Write]]:
        """Write what another process has planned, and verify it on the tapes of this one.

        Returns:
            The units that cannot be re-initialised here, with the reason; then nothing is written.
            What else is to be written so that they can: whatever reads them on these tapes alone.
        """
        keys = each_of(plan.units)
        passes, refused = self._replayed(plan.units)
        # A unit that is on no tape of this process is judged by those that have it.
        refused = {u: why for u, why in refused.items() if passes.of_layer(u[0])}
        refused |= passes.alive(keys)
        if refused:
            return refused, []
        edit = plan.edit(self.model)
        clear_gradients(edit)
        edit.apply_()
        self.outcome = Outcome([edit], keys)
        try:
            verify_plan(passes, plan, self.config.tolerance)
        except BaseException as error:
            self.outcome.undo_()
            if not isinstance(error, DisturbedError):
                raise
            own = [unit for unit in keys if passes.of_layer(unit[0])]
            traced = eligible(passes, own, self.memory, self.config)
            refused = {unit: traced.refused.get(unit, str(error)) for unit in keys}
            said = {unit: f"on another process {why}" for unit, why in refused.items()}
            return said, plan.lacking(self.model, silencing(passes, traced.units))
        return {}, []

    def _replayed(self, units: Units) -> tuple[Passes, dict[UnitKey, str]]:
        """Replay the tapes as they are; return the units too that they do not vouch for."""
        keys, layers = each_of(units), keys_of(self.tapes, units, self.names)
        passes = Passes(self.model, self.tapes, layers)
        broken = passes.record(units if self.config.criterion == "dormant" else {})
        refused = refuse_unsound(passes.tapes, layers, broken, keys)
        for layer in units:
            if layer not in layers.values() and made_by_rows(self.tapes, layer):
                refused |= {(n, u): _BY_ROWS for n, u in keys if n == layer}
        refused |= passes.absent([unit for unit in keys if unit not in refused])
        return passes, refused

    def _operate(self, units: Units) -> None:
        passes, refused = self._replayed(units)
        if keys := [unit for unit in each_of(units) if unit not in refused]:
            planned = eligible(passes, keys, self.memory, self.config)
            refused |= planned.refused
            if refused and planned.units and self.config.criterion == "dormant":
                # Dormant units were held at zero; those that are refused go on being heard.
                self._operate(by_layer(planned.units))
            else:
                self._operate_on(passes, keys, planned)
        self.report.refuse(refused)
        self.report.passes += passes.replays

    def _operate_on(self, passes: Passes, keys: list[UnitKey], planned: Trace) -> None:
        if self.config.dry_run:
            self.report.planned = by_layer(planned.units)
            self.report.refuse(planned.refused)
            self._tell(passes, planned, list(planned.units))
            return
        self._write_(passes, planned)
        if self.outcome.silent:
            # Perhaps something else that makes them holds them down, as a second branch may.
            thorough = eligible(passes, keys, self.memory, self.config, guess=False)
            if _makes_more(thorough, planned, self.outcome.silent):
                planned = thorough
                self._write_(passes, planned)
        makes = (part for unit in self.outcome.units for part in planned.units[unit].makes)
        self._fresh = [part.weights for part in makes]
        self.report.reinitialised = by_layer(self.outcome.units)
        self.report.silent = by_layer(self.outcome.silent)
        self.report.refuse(planned.refused | self.outcome.refused)
        self._tell(passes, planned, self.outcome.units)

    def _write_(self, passes: Passes, planned: Trace) -> None:
        """Operate, in place of what was written before."""
        self.outcome.undo_()
        self.outcome = Outcome()
        config, step = self.config, self.step or 0
        draws = Draws(passes, config.init_function(), config.seed, step, self.scales)
        self.outcome = Surgeon(passes, config, draws).operate_(planned.units)

    def _tell(self, passes: Passes, planned: Trace, units: list[UnitKey]) -> None:
        """Name the parameters that make units, and those that read them."""
        for unit in units:
            layer, found = unit[0], planned.units[unit]
            for told, parts in (
                (self.report.made_by, found.makes),
                (self.report.read_by, found.reads),
            ):
                names = (passes.parameters.names(part.weights.parameter)[0] for part in parts)
                told[layer] = list(dict.fromkeys((*told.get(layer, ()), *names)))


_BY_ROWS = "each row of the activation is made by another of several weights, which are not traced"


def _makes_more(thorough: Trace, planned: Trace, silent: list[UnitKey]) -> bool:
    """Tell whether a thorough search found more that makes silent units, or what must be left."""
    return all(unit in thorough.units for unit in planned.units) and any(
        len(thorough.units[unit].makes) > len(planned.units[unit].makes)
        or (thorough.units[unit].left is not None and planned.units[unit].left is None)
        for unit in silent
    )
