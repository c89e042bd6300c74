"""Reviver: re-initialises dead units in the course of a training, for the callback.

1. A verdict, at validation or after a window of training batches, says which units are due
   (``schedule``).
2. Meanwhile, if any may be, batches that run anyway were recorded (``tapes``).
3. Before the next training batch the units are re-initialised on replays of these, on all processes
   alike (``agreement``). A checkpoint that is written at validation so holds the weights that were
   evaluated; one that is written while units are due holds what was planned for them, for a tape
   cannot be saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_deadunits.distributed import Processes, gather_objects
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.event import Event, Plan
from lightning_deadunits.reinit.fitness import model_refusal
from lightning_deadunits.reinit.recording import Tape
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reinit.surgery.initial_scale import initial_scales
from lightning_deadunits.reinit.training.agreement import Attempt, Together
from lightning_deadunits.reinit.training.observers import Watch
from lightning_deadunits.reinit.training.schedule import Schedule
from lightning_deadunits.reinit.training.summary import Summary
from lightning_deadunits.reinit.training.tapes import Tapes
from lightning_deadunits.reinit.training.trainer_memory import TrainerMemory
from lightning_deadunits.reinit.training.window import Window
from lightning_deadunits.reporting.report import DeadUnitsReport


class Reviver:
    """Decides at validation, or every so many training batches, and acts before the next batch.

    Args:
        config: The options.
        watch: What the callback watches.

    Attributes:
        events: What was done so far.
        summary: Sums over all events, those before a resume included.
    """

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        self.config = config
        self.events: list[ReinitReport] = []
        self.summary = Summary()
        self._watch = watch
        self._schedule = Schedule(config)
        self._pending: Units = {}
        self._planned: tuple[Plan, ReinitReport] | None = None
        self._waited = False
        self._tapes: Tapes | None = None
        self._window = Window(config, watch)
        self._memory = TrainerMemory()
        self._scales: dict[str, float] | None = None
        self._impossible = False

    @property
    def at_validation(self) -> bool:
        """Whether validation decides, rather than training batches."""
        return self.config.every_n_train_steps is None

    def begin_fit(self, trainer: Any) -> None:
        """Say once if nothing of this model can be re-initialised; then nothing else is done."""
        reason = model_refusal(trainer.model)
        self._impossible = reason is not None
        if self._impossible and trainer.is_global_zero:
            warnings.warn(
                f"Dead units are found and logged, but will not be re-initialised: {reason}.",
                stacklevel=2,
            )

    # --- recording ----------------------------------------------------------------------------

    @property
    def _records(self) -> bool:
        """Whether batches are recorded, for a unit may be due at the next verdict."""
        return not self._impossible and (bool(self._pending) or self._schedule.may_be_due())

    def _tapes_of(self, pl_module: Any) -> Tapes:
        if self._tapes is None or self._tapes.model is not pl_module:
            self._tapes = Tapes(pl_module, self._watch.layers)
        return self._tapes

    def start_validation(self, trainer: Any, pl_module: Any) -> None:
        """Make room for batches of a validation; the sanity check is none that decides."""
        if self._records and not (trainer.sanity_checking and self.at_validation):
            self._tapes_of(pl_module).start_validation()

    def record_validation_batch(
        self, trainer: Any, pl_module: Any, loader: int, *, wanted: bool
    ) -> None:
        """Record a batch of a validation loader, one of each at least.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            loader: Number of the loader.
            wanted: Whether it may be the one that stands for its loader.
        """
        if self._records and not (trainer.sanity_checking and self.at_validation):
            self._tapes_of(pl_module).begin_validation_batch(loader, wanted=wanted)

    def end_recording(self, *, training: bool) -> None:
        """The batch has ended; harmless if it was not recorded."""
        if self._tapes is not None:
            self._tapes.end_batch(training=training)

    def _drop_tapes(self) -> None:
        """Let go of recorded batches; validation may be long ago where windows decide."""
        if self._tapes is not None:
            self._tapes.drop(evaluation=self.at_validation)

    # --- deciding -----------------------------------------------------------------------------

    @property
    def _measures_validation(self) -> bool:
        """Whether dormancy is judged at validation, for which counts of zeros are not enough."""
        return self.at_validation and self.config.criterion == "dormant" and not self._impossible

    def before_validation_batch(self, pl_module: Any) -> None:
        """Start measuring, where that is done at validation."""
        if self._measures_validation:
            self._window.begin(pl_module)

    def after_validation_batch(self) -> None:
        """Stop measuring."""
        if self._measures_validation:
            self._window.end()

    def after_validation(
        self, trainer: Any, pl_module: Any, report: DeadUnitsReport
    ) -> ReinitReport | None:
        """Take the report of a validation, the same on every process.

        Returns:
            The last event, if this is the first verdict after it.
        """
        dead = {n: layer.dead_mask for n, layer in report.layers.items() if layer.observations}
        told = self._told(dead)
        if self.at_validation and not self._impossible:
            if self._measures_validation:
                dead = self._window.verdict(Processes(trainer, pl_module))
            self._judge(dead)
        return told

    def _judge(self, dead: Mapping[str, Tensor]) -> None:
        self._pending, self._planned = self._schedule.judge(dead), None
        if not self._pending:
            self._drop_tapes()

    def _told(self, dead: Mapping[str, Tensor]) -> ReinitReport | None:
        """Tell the last event how many of its units live, at the first verdict after it."""
        last = self.events[-1] if self.events else None
        if not dead or last is None or last.alive is not None or not last.reinitialised:
            return None
        last.tell_outcome(dead)
        self.summary.add_outcome(last)
        return last

    # --- acting -------------------------------------------------------------------------------

    def before_train_batch(self, trainer: Any, pl_module: Any) -> ReinitReport | None:
        """Re-initialise what is due; then count and record, if that is wanted.

        Returns:
            What was done, if anything.

        Raises:
            RanksDifferError: If processes come to different weights.
        """
        if self._impossible:
            return None
        self._memory.resume(trainer, pl_module)
        if self._scales is None:
            known = trainer.global_step == 0
            self._scales = initial_scales(pl_module.named_parameters()) if known else {}
        event = self._act(trainer, pl_module) if self._pending else None
        if not self.at_validation:
            self._window.begin(pl_module)
        if self._records:
            self._tapes_of(pl_module).begin_training_batch()
        return event

    def after_train_batch(self, trainer: Any, pl_module: Any) -> ReinitReport | None:
        """Stop counting; judge when the window is full.

        Returns:
            The last event, if this is the first verdict after it.
        """
        self.end_recording(training=True)
        if self.at_validation or self._impossible:
            return None
        self._window.end()
        if not self._window.full:
            return None
        dead = self._window.verdict(Processes(trainer, pl_module))
        self._judge(dead)
        return self._told(dead)

    def after_train_epoch(self) -> None:
        """Observe no longer a batch that was begun and then skipped."""
        if self._tapes is not None:
            self._tapes.cancel()
        self._window.detach()

    def _act(self, trainer: Any, pl_module: Any) -> ReinitReport | None:
        tapes = self._tapes_of(pl_module)
        everywhere = gather_objects(
            trainer, (len(tapes.evaluation), len(tapes.training), tapes.missing)
        )
        evaluations, trainings = (sum(counts) for counts in list(zip(*everywhere, strict=True))[:2])
        if self._planned is None and not trainings and not self._waited:
            self._waited = True  # a resumed training: the batch that follows is recorded first
            return None
        units, self._pending, self._waited = self._pending, {}, False
        if self._planned is None and self.at_validation and not evaluations:
            problem = "no validation batch is recorded, for the training was resumed in between"
            attempt = Attempt(problem=problem)
        else:
            attempt = self._attempt(trainer, pl_module, units)
        self._drop_tapes()
        self._planned = None
        return self._noted(trainer, units, attempt)

    def _attempt(self, trainer: Any, pl_module: Any, units: Units) -> Attempt:
        together = self._together(trainer, pl_module)
        if self._planned is not None:
            attempt = together.write_plan_(*self._planned)
        else:
            attempt = together.write_(units)
        if attempt.problem is None:
            together.commit_(attempt)
        return attempt

    def _together(self, trainer: Any, pl_module: Any) -> Together:
        tapes = self._tapes_of(pl_module)
        # Fresh biases are settled on the first tape: on what decides, for a resume finds the same.
        ordered = (tapes.evaluation, tapes.training)[:: 1 if self.at_validation else -1]

        def make(given: Sequence[Tape]) -> Event:
            return Event(
                pl_module,
                given,
                self._memory.of(trainer, pl_module),
                self.config,
                seed=self.config.seed,
                step=trainer.global_step,
                scales=self._scales or {},
            )

        return Together(trainer, pl_module, [tape for some in ordered for tape in some], make)

    def _noted(self, trainer: Any, units: Units, attempt: Attempt) -> ReinitReport | None:
        report = attempt.report
        if attempt.problem is not None:
            warnings.warn(
                f"Dead units were not re-initialised at step {trainer.global_step}, all is as it "
                f"was: {attempt.problem}",
                stacklevel=2,
            )
            refused = {name: dict.fromkeys(own, attempt.problem) for name, own in units.items()}
            report = ReinitReport(refused=refused, step=trainer.global_step)
        if not (report.reinitialised or report.refused or report.planned):
            return None
        self._schedule.revived(report.reinitialised)
        self._schedule.refused(report.refused)
        self.events.append(report)
        self.summary.add(report)
        return report

    # --- state --------------------------------------------------------------------------------

    def detach(self) -> None:
        """Leave nothing behind on the model and the optimizers; harmless when there is nothing."""
        if self._tapes is not None:
            self._tapes.detach()
        self._tapes = None
        self._window.detach()
        self._memory.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        untold = self.events[-1:] if self.events and self.events[-1].alive is None else []
        return {
            "schedule": self._schedule.state_dict(),
            "pending": self._pending,
            "planned": None if self._planned is None else _saved(*self._planned),
            "window": self._window.state_dict(),
            "memory": self._memory.state_dict(),
            "scales": self._scales,
            "summary": self.summary.state_dict(),
            "untold": [(event.step, event.reinitialised) for event in untold],
        }

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> None:
        """Add to a state what other processes have observed, and what is planned for what is due.

        All processes take part.
        """
        if self._impossible:
            return
        if self._pending and self._planned is None:
            state["planned"] = self._plan(trainer)
        if not self.at_validation:
            state["window"] = self._window.complete_state(trainer, state["window"])

    def _plan(self, trainer: Any) -> dict[str, Any] | None:
        """Do what is due, note what was written, and take it back."""
        together = self._together(trainer, trainer.lightning_module)
        attempt = together.write_(self._pending)
        planned = None if attempt.plan is None else _saved(attempt.plan, attempt.report)
        together.undo_(attempt)
        return planned

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self._schedule.load_state_dict(state["schedule"])
        self._pending = dict(state["pending"])
        self._planned = None if state["planned"] is None else _loaded(state["planned"])
        self._window.load_state_dict(state["window"])
        self._memory.load_state_dict(state["memory"])
        self._scales = state["scales"]
        self.summary.load_state_dict(state["summary"])
        self.events = [ReinitReport(step=step, reinitialised=own) for step, own in state["untold"]]

    def __getstate__(self) -> dict[str, Any]:
        """Leave hooks and tensors of this training out of copies: they are for another one."""
        return {**self.__dict__, "_memory": TrainerMemory(), "_tapes": None}


def _saved(plan: Plan, report: ReinitReport) -> dict[str, Any]:
    return {"plan": plan.state_dict(), "report": dict(vars(report))}


def _loaded(state: Mapping[str, Any]) -> tuple[Plan, ReinitReport]:
    return Plan.load(state["plan"]), ReinitReport(**state["report"])
