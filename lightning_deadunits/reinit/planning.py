"""Which units can be re-initialised, with which weights; the others are refused with a reason."""

from __future__ import annotations

from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.fitness import editable, loudness
from lightning_deadunits.reinit.known_traces import KnownTraces
from lightning_deadunits.reinit.optimizers.memory import OptimizerMemory
from lightning_deadunits.reinit.running.baseline import Baseline
from lightning_deadunits.reinit.running.session import Session, UnitKey
from lightning_deadunits.reinit.tracing import Trace, UnitTrace, trace
from lightning_deadunits.reinit.tracing.groups import with_ties


class Planner:
    """Plans one event.

    Args:
        session: The session.
        baseline: Its recorded pass.
        training: A pass in training mode, recorded before.
        memory: What optimizers remember.
        config: The options.
        known: What earlier events have traced.

    Attributes:
        recalled: Whether the last plan stands on what an earlier event has traced.
    """

    def __init__(
        self,
        session: Session,
        baseline: Baseline,
        training: Baseline,
        memory: OptimizerMemory,
        config: ReinitConfig,
        known: KnownTraces,
    ) -> None:
        self._session, self._baseline, self.training = session, baseline, training
        self._memory, self._config, self._known = memory, config, known
        self.recalled = False

    def plan(self, units: list[UnitKey], *, recall: bool = True, guess: bool = True) -> Trace:
        """Trace units and refuse those whose weights cannot be edited.

        Args:
            units: The units.
            recall: Whether what an earlier event has traced may be taken over.
            guess: Whether a maker that was guessed and confirmed is enough, see :func:`trace`.
        """
        alive = self._baseline.alive(units)
        dead = [unit for unit in units if unit not in alive]
        found = self._known.of(dead, self._baseline, self.training) if recall else None
        self.recalled = found is not None
        if found is None:
            found = trace(self._session, dead, guess=guess)
            if guess:  # or a resumed training, which knows nothing yet, would go another way
                self._known.remember(found, self._baseline, self.training)
        planned = Trace(dict(sorted(found.units.items())), found.refused | alive)
        for unit, own in found.units.items():
            fit = self._fit(unit, own)
            if isinstance(fit, str):
                planned.refused[unit] = fit
                del planned.units[unit]
            else:
                planned.units[unit] = fit
        with_ties(planned.units, planned.refused, found.units)
        return planned

    def _fit(self, unit: UnitKey, trace: UnitTrace) -> UnitTrace | str:
        """Return what of a trace can be edited, or the reason to refuse the unit."""
        fit = editable(self._session, self.training, self._memory, trace)
        if isinstance(fit, str):
            return fit
        tolerance = self._config.tolerance
        return loudness(self._session, self.training, unit, fit, tolerance) or fit
