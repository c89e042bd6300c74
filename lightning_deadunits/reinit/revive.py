"""reinit_dead_units: re-initialises units of a model once, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.activations import zero_atol
from lightning_deadunits.observation.names import as_patterns, selects
from lightning_deadunits.observation.sites import Site
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.edit import Edit
from lightning_deadunits.reinit.fitness import loudness, model_refusal, trace_refusal
from lightning_deadunits.reinit.optimizer_memory import OptimizerMemory
from lightning_deadunits.reinit.passes import Example
from lightning_deadunits.reinit.probe import Recording
from lightning_deadunits.reinit.report import ReinitReport, Units, by_layer, reasons_by_layer
from lightning_deadunits.reinit.session import Session, UnitKey
from lightning_deadunits.reinit.surgery import Outcome, Surgeon, with_ties
from lightning_deadunits.reinit.tracing import Trace, trace
from lightning_deadunits.reinit.values import silenced
from lightning_deadunits.reinit.verification import channel_of
from lightning_deadunits.reinit.weight_slice import WeightSlice
from lightning_deadunits.reinit.weights import Draws
from lightning_deadunits.report import DeadUnitsReport
from lightning_deadunits.scan import call
from lightning_deadunits.selection import listed


def reinit_dead_units(
    model: nn.Module,
    units: DeadUnitsReport | Mapping[str, Iterable[int]],
    example: Any,
    *,
    optimizers: Iterable[Any] = (),
    config: ReinitConfig | None = None,
    seed: int = 0,
) -> ReinitReport:
    """Give dead units a new life without changing what the model computes.

    Each unit's outgoing weights are silenced, its incoming weights drawn anew, and the optimizers
    forget both. What cannot be done without changing the model's output, in eval or training mode,
    is refused with a reason and left untouched, bit for bit.

    Args:
        model: Any module.
        units: A report of :func:`find_dead_units`, or the units per layer, ``{layer: [unit, ...]}``
            with layer names as in such a report.
        example: What the model is called with: a tensor (``model(x)``), a tuple (``model(*x)``) or
            a mapping (``model(**x)``). At least two different samples; some 8 are plenty.
        optimizers: Optimizers of the model's parameters.
        config: Options; those on when to re-initialise do not matter here.
        seed: Seed of the fresh weights.

    Returns:
        What was done, and what was refused and why.

    Raises:
        ValueError: If the example holds fewer than two different samples, or a layer or unit does
            not exist.
        TypeError: If the example is none of the above.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = model[0].bias.data[1].fill_(-100)
        >>> reinit_dead_units(model, {"1": [1]}, torch.randn(8, 4)).reinitialised
        {'1': [1]}
    """
    config = ReinitConfig() if config is None else config
    if not isinstance(example, (Tensor, tuple, list, Mapping)):
        raise TypeError(
            f"Expected `example` to be a tensor, a tuple or a mapping, but got "
            f"{type(example).__name__}."
        )
    batch = Example(model, example, lambda given: call(model, given))
    memory = OptimizerMemory(optimizers)
    event = Event(batch, memory, config, seed=seed)
    event.operate_(as_units(units))
    event.commit_()
    return event.report


def as_units(units: DeadUnitsReport | Mapping[str, Iterable[int]]) -> Units:
    """Return units per layer as plain integers, layers without any left out."""
    if isinstance(units, DeadUnitsReport):
        given: Mapping[str, Iterable[int]] = {
            name: layer.dead.tolist() for name, layer in units.layers.items()
        }
    else:
        given = units
    plain = {layer: sorted({int(unit) for unit in of_layer}) for layer, of_layer in given.items()}
    return {layer: of_layer for layer, of_layer in plain.items() if of_layer}


class Event:
    """One re-initialisation.

    Args:
        example: The example.
        memory: What optimizers remember.
        config: The options.
        seed: Seed of the fresh weights.
        step: The training step, None outside of training.

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
    ) -> None:
        self._example, self._memory, self._config = example, memory, config
        self._seed, self._step = seed, step
        self.report = ReinitReport(step=step)
        self.outcome = Outcome()
        self.touched: list[WeightSlice] = []

    def operate_(self, units: Units) -> None:
        """Re-initialise what can be; the optimizers know nothing of it before :meth:`commit_`."""
        units = self._wanted(units)
        if units:
            self._run(units)
        self.report.passes = self._example.passes

    def commit_(self) -> None:
        """Have the optimizers forget what was re-initialised."""
        try:
            self._memory.forget_(self.touched)
        except BaseException:
            self.outcome.undo_()
            raise
        for weights in self.touched:
            if (caveat := self._memory.caveat(weights.parameter)) is not None:
                self.report.notes = _merged(self.report.notes, [f"Note: {caveat}."])

    def undo_(self) -> None:
        """Take everything back, before :meth:`commit_`."""
        self.outcome.undo_()
        self.touched = []

    def _wanted(self, units: Units) -> Units:
        layers = as_patterns("layers", self._config.layers)
        exclude = as_patterns("exclude", self._config.exclude)
        return {name: own for name, own in units.items() if selects(name, layers, exclude)}

    def _run(self, units: Units) -> None:
        reason = model_refusal(self._example.model)
        if reason is not None:
            keys = [(layer, unit) for layer, own in units.items() for unit in own]
            self.report.refused = reasons_by_layer(dict.fromkeys(keys, reason))
            return
        if not self._example.differs():
            raise ValueError(
                "Expected `example` to hold at least two different samples: from less it does not "
                "show what is constant. Pass a small batch."
            )
        session = Session(self._example, units)
        with session.watching():
            self._operate(session, units)

    def _operate(self, session: Session, units: Units) -> None:
        silent = units if self._config.criterion == "dormant" else {}
        session.recorded = session.record(_Baseline(silent))
        _check_exist(session, units)
        training = session.record(_Baseline(silent), training=True)
        keys = [(layer, unit) for layer, own in units.items() for unit in own]
        keys = [(layer, unit) for layer, own in units.items() for unit in own]
        planned = self._plan(session, training, keys)
        if self._config.dry_run:
            self.report.planned = by_layer(planned.units)
            self._say(session, planned, planned.units)
            return
        step = 0 if self._step is None else self._step
        draws = Draws(session, self._config.init_function(), self._seed, step)
        surgeon = Surgeon(session, training, self._config, draws)
        self.outcome = surgeon.operate_(planned.units)
        if self.outcome.silent:
            # Perhaps something else that makes them holds them down, as a second branch may.
            thorough = self._plan(session, training, keys, guess=False)
            if _makes_more(thorough, planned, self.outcome.silent):
                self.outcome.undo_()
                planned = thorough
                surgeon = Surgeon(session, training, self._config, draws)
                self.outcome = surgeon.operate_(planned.units)
        planned.refused |= self.outcome.refused
        self._finish(session, planned)

    def _plan(
        self, session: Session, training: Recording, keys: list[UnitKey], *, guess: bool = True
    ) -> Trace:
        """Trace units and refuse those whose weights cannot be edited."""
        alive = _alive(session.recorded, keys)
        found = trace(session, [unit for unit in keys if unit not in alive], guess=guess)
        planned = Trace(dict(found.units), found.refused | alive)
        for unit, own in found.units.items():
            reason = trace_refusal(session, training, self._memory, own) or loudness(
                session, training, unit, own, self._config.tolerance
            )
            if reason is not None:
                planned.refused[unit] = reason
                del planned.units[unit]
        with_ties(planned.units, planned.refused, found.units)
        return planned

    def _finish(self, session: Session, planned: Trace) -> None:
        self.touched = touched(self.outcome, session)
        self.report.reinitialised = by_layer(self.outcome.units)
        self.report.silent = by_layer(self.outcome.silent)
        self._say(session, planned, self.outcome.units)

    def _say(self, session: Session, planned: Trace, units: Iterable[UnitKey]) -> None:
        self.report.refused = reasons_by_layer(planned.refused)
        for layer, unit in units:
            found = planned.units[(layer, unit)]
            made, read = (
                list(dict.fromkeys(_name(session, part.weights) for part in parts))
                for parts in (found.makes, found.reads)
            )
            self.report.made_by[layer] = _merged(self.report.made_by.get(layer, []), made)
            self.report.read_by[layer] = _merged(self.report.read_by.get(layer, []), read)


def _makes_more(thorough: Trace, planned: Trace, silent: list[UnitKey]) -> bool:
    """Tell whether a thorough search found more that makes silent units."""
    return all(unit in thorough.units for unit in planned.units) and any(
        len(thorough.units[unit].makes) > len(planned.units[unit].makes) for unit in silent
    )


def touched(outcome: Outcome, session: Session) -> list[WeightSlice]:
    """Return the elements of parameters that were written, each once."""
    merged = Edit()
    for edit in outcome.edits:
        for weights, _ in edit.slices():
            if weights.parameter in session.parameters:
                merged.set(weights, 0.0)
    return [weights for weights, _ in merged.slices()]


def _name(session: Session, weights: WeightSlice) -> str:
    return session.parameters.named(weights.parameter).names[0]


def _merged(known: list[str], new: list[str]) -> list[str]:
    return list(dict.fromkeys((*known, *new)))


class _Baseline(Recording):
    """Records a pass, with dormant units held at zero: what they contribute is to be lost."""

    def __init__(self, held: Units) -> None:
        super().__init__()
        self._held = held
        self.atol: dict[str, float] = {}

    def site(self, site: Site, output: Tensor) -> Tensor:
        held = self._held.get(site.name)
        if held:
            output = silenced(output, site.unit_dims, held)
        self.atol[site.name] = zero_atol(site.kind, None)
        return super().site(site, output)


def _check_exist(session: Session, units: Units) -> None:
    sites = session.recorded.sites
    session.probe.start_pass()  # which takes the names of the last one down
    for layer, own in units.items():
        if layer not in sites:
            raise ValueError(
                f"Expected `units` to name layers of the model, but got {layer!r}. Layers that ran "
                f"are: {listed(list(session.probe.met))}."
            )
        dims, activation = sites[layer]
        count = torch.Size([activation.shape[axis] for axis in dims]).numel()
        if not 0 <= own[0] <= own[-1] < count:
            raise ValueError(f"Expected units of {layer!r} to be in [0, {count}), but got {own}.")


def _alive(recorded: Recording, keys: list[UnitKey]) -> dict[UnitKey, str]:
    """Return the units that are not dead after all."""
    assert isinstance(recorded, _Baseline)
    found = {}
    for layer, unit in keys:
        dims, activation = recorded.sites[layer]
        values = channel_of(activation, dims, unit)
        if not bool((values.abs() <= recorded.atol[layer]).all()):
            found[(layer, unit)] = "it fires on the example"
    return found
