"""Reviver: re-initialises dead units in the course of a training, for the callback.

1. A verdict, at validation or after a window of training batches, says which units are due
   (``schedule``).
2. Meanwhile, if any may be, batches that run anyway were recorded (``tapes``).
3. Before the next training batch the units are re-initialised on replays of these, on all processes
   alike (``agreement``). A checkpoint that is written at validation so holds the weights that were
   evaluated; one that is written while units are due holds what is planned for them, for a tape
   cannot be saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from lightning_deadunits.distributed import Processes, gather_objects
from lightning_deadunits.observation.selection import listed
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.eligibility import model_refusal
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import TrainerMemory
from lightning_deadunits.reinit.plan import Plan
from lightning_deadunits.reinit.recording import Tape
from lightning_deadunits.reinit.recording.layout import Layout
from lightning_deadunits.reinit.report import ReinitReport, Summary, Units, each_of
from lightning_deadunits.reinit.surgery.initialisation import initial_scales
from lightning_deadunits.reinit.training.agreement import (
    Attempt,
    Together,
    commit_,
    recorded_by_all,
)
from lightning_deadunits.reinit.training.copies import Copies
from lightning_deadunits.reinit.training.first_batches import FIRST_BATCHES, SPOILT, take_back_
from lightning_deadunits.reinit.training.schedule import Schedule
from lightning_deadunits.reinit.training.tapes import Recorded, Tapes
from lightning_deadunits.reinit.training.windows import GuardedWindow, Watch
from lightning_deadunits.reporting.report import DeadUnitsReport

_OTHER_WEIGHTS = (
    "Note: validation ran with other weights than training (an average, perhaps): a unit that was "
    "dead by those may have fired by these."
)
_OTHER_PARTS = (
    "validation ran other modules or parameters than training goes on with, each time that the "
    "unit was due"
)


class Reviver:
    """Decides at validation, or every so many training batches, and acts before the next batch.

    Attributes:
        config: The options.
        at_validation: Whether validation decides, rather than training batches.
        events: What was done so far.
        summary: Sums over all events, those before a resume included.
    """

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        self.config = config
        self.at_validation = config.every_n_train_steps is None
        self.events: list[ReinitReport] = []
        self.summary = Summary()
        self._watch = watch
        self._schedule = Schedule(config, watch.names)
        self._window = GuardedWindow(config, watch)
        self._tapes: Tapes | None = None
        self._memory = TrainerMemory()
        self._copies = Copies()
        self._scales: dict[str, float] | None = None
        self._pending: Units = {}
        self._planned: tuple[Plan, ReinitReport] | None = None
        self._judged_others: bool | None = None
        self._at_start: Layout | None = None
        self._newborn: Event | None = None
        self._first_batches = 0
        self._impossible = False

    def told(self) -> str:
        """Say in one line what came of all of it."""
        due = len(each_of(self._pending))
        return self.summary.told(due=due, dry_run=self.config.dry_run)

    def begin_fit(self, trainer: Any) -> None:
        """Say once if nothing of this model can be re-initialised; then nothing else is done."""
        # A plan of a checkpoint is for the model as it is now.
        self._at_start = None if self._planned is None else Layout(trainer.lightning_module)
        reason = model_refusal(trainer.model)
        self._impossible = reason is not None
        if self._impossible and trainer.is_global_zero:
            warnings.warn(
                f"Dead units are found and logged, but will not be re-initialised: {reason}.",
                stacklevel=2,
            )

    # --- recording ----------------------------------------------------------------------------

    def _records(self, trainer: Any) -> bool:
        """Tell whether batches are recorded, for a unit may be due at the next verdict."""
        if self._impossible or (trainer.sanity_checking and self.at_validation):
            return False  # the sanity check is no validation that decides
        return bool(self._pending) or self._schedule.may_be_due()

    def _tapes_of(self, pl_module: Any) -> Tapes:
        if self._tapes is None or self._tapes.model is not pl_module:
            self._tapes = Tapes(pl_module, self._watch.layers)
        return self._tapes

    def start_validation(self, trainer: Any, pl_module: Any) -> None:
        """Make room for batches of a validation."""
        if self._records(trainer):
            self._tapes_of(pl_module).start_validation()

    def record_batch(
        self,
        trainer: Any,
        pl_module: Any,
        loader: int,
        *,
        wanted: bool = True,
        ends_window: bool = False,
    ) -> None:
        """Record a batch of a loader, see :meth:`Tapes.begin_batch`; one of each at least."""
        if self._records(trainer):
            last = ends_window and not self.at_validation
            self._tapes_of(pl_module).begin_batch(loader, wanted=wanted, last=last)

    def end_recording(self, *outputs: Any, training: bool) -> None:
        """The step has ended, see :meth:`Tapes.end_batch`; harmless if it was not recorded."""
        if self._tapes is not None:
            self._tapes.end_batch(*outputs, training=training)

    # --- deciding -----------------------------------------------------------------------------

    @property
    def _measures(self) -> bool:
        """Whether dormancy is judged, for which counts of zeros are not enough."""
        return self.config.criterion == "dormant" and not self._impossible

    def begin_measuring(self, pl_module: Any, *, in_validation: bool) -> None:
        """Start measuring a batch, where that is done in batches of this kind."""
        if in_validation == self.at_validation and self._measures:
            self._window.begin(pl_module)

    def end_measuring(self, *, in_validation: bool) -> None:
        """Stop measuring."""
        if in_validation == self.at_validation and self._measures:
            self._window.end()

    def judge(
        self, trainer: Any, pl_module: Any, report: DeadUnitsReport, *, of_validation: bool
    ) -> ReinitReport | None:
        """Take a report of a validation or a window of training batches, alike on every process.

        Returns:
            The last event, if this is the first verdict after it.
        """
        dead = {n: layer.dead_mask for n, layer in report.layers.items() if layer.observations}
        told = None
        last = self.events[-1] if self.events else ReinitReport()
        if dead and last.alive is None and last.reinitialised:
            last.tell_outcome(dead)
            self.summary.died_again += len(each_of(last.died_again or {}))
            told = last
        if of_validation == self.at_validation and not self._impossible:
            if self._measures:
                dead = self._window.verdict(Processes(trainer, pl_module))
            self._pending, self._planned = self._schedule.judge(dead), None
            self._judged_others = None
            # Where windows decide, validation may be long ago: its tapes stay.
            if not self._pending and self._tapes is not None:
                self._tapes.drop(evaluation=self.at_validation)
        return told

    # --- acting -------------------------------------------------------------------------------

    def before_train_batch(self, trainer: Any, pl_module: Any) -> ReinitReport | None:
        """Re-initialise what is due; then measure, if that is wanted.

        Returns:
            What was done, if anything.

        Raises:
            RanksDifferError: If processes come to different weights.
        """
        if self._impossible:
            return None
        event = self.take_back_(trainer)
        self._memory.resume(trainer, pl_module)
        if self._scales is None:
            known = trainer.global_step == 0
            self._scales = initial_scales(pl_module.named_parameters()) if known else {}
        if self._pending:
            event = self._act_(trainer, self._tapes_of(pl_module)) or event
        self.begin_measuring(pl_module, in_validation=False)
        return event

    def _act_(self, trainer: Any, tapes: Tapes) -> ReinitReport | None:
        """Re-initialise what is due, what was planned for before a resume as it was planned.

        Where modules ran that are on no tape, and in a training that was resumed before anything
        was planned, training batches are recorded first, but some at most.
        """
        units, planned = self._pending, self._planned
        if self._judged_others is None:  # before a step is taken
            self._judged_others = self.at_validation and tapes.judged_others
        if planned is None:
            tapes.drop_outdated()
            everyone = recorded_by_all(trainer, tapes)
            if any(each.outdated for each in everyone):
                return self._refused(units, trainer.global_step)
            if any(each.incomplete for each in everyone):
                return None
            if self._lacks_validation(everyone):
                self._pending = {}  # the first validation of this fit finds them again
                return None
        elif any(gather_objects(trainer, self._has_other_parts(tapes.model))):
            self._pending, self._planned = {}, None
            return None
        self._pending, self._planned = {}, None
        together = self._together(trainer, tapes)
        if planned is None:
            attempt = together.write_(units, everyone)
        else:
            attempt = together.write_plan_(*planned)
        if attempt.problem is None:
            commit_(trainer, attempt, self._copies)
        self._newborn = attempt.event if attempt.problem is None else None
        self._first_batches = FIRST_BATCHES
        tapes.drop(evaluation=self.at_validation)
        report = _report_of(attempt, units, trainer.global_step)
        if self._newborn is not None:
            self._copies.tell_(report, self._watch.names, tapes.model)
        if not (report.reinitialised or report.refused or report.planned):
            return None
        if self._judged_others and report.reinitialised:
            report.note(_OTHER_WEIGHTS)
        if report.reinitialised and (idle := tapes.given_up()):
            report.note(
                f"Note: {listed(idle)} ran before, and in no batch of the last events. What reads "
                f"re-initialised units there computes otherwise now."
            )
        self._note(report)
        self._schedule.note(report)
        return report

    def _refused(self, units: Units, step: int) -> ReinitReport:
        """Refuse units of a model whose parts are others whenever they are due."""
        self._pending = {}
        report = ReinitReport(step=step)
        report.refuse(dict.fromkeys(each_of(units), _OTHER_PARTS))
        self._note(report)
        self._schedule.note(report)
        return report

    def _has_other_parts(self, model: Any) -> bool:
        """Tell whether parts of a model were replaced since what is planned was loaded."""
        return self._at_start is not None and not self._at_start.has_parts_of(model)

    def _lacks_validation(self, everyone: Sequence[Recorded]) -> bool:
        """Tell whether a validation decided of which no process has recorded anything.

        It was one of an earlier fit, and nothing was planned for what it found.
        """
        return self.at_validation and not any(each.evaluation for each in everyone)

    def _together(self, trainer: Any, tapes: Tapes) -> Together:
        # Fresh biases are settled on the first tape: on what decides, for a resume finds the same.
        ordered = (tapes.evaluation, tapes.training)[:: 1 if self.at_validation else -1]
        every = [tape for some in ordered for tape in some]
        self._copies.judge(every)

        def make(given: Sequence[Tape]) -> Event:
            self._copies.find(trainer, tapes.model)
            return Event(
                tapes.model,
                given,
                self._memory.of(trainer, tapes.model),
                self.config,
                step=trainer.global_step,
                scales=self._scales or {},
                names=self._watch.names,
            )

        return Together(trainer, every, self._watch.names, make)

    def _note(self, report: ReinitReport) -> None:
        self.events.append(report)
        self.summary.add(report)

    def note_step(self, optimizer: Any) -> None:
        """Take note of what an optimizer is about to step."""
        if not self._impossible:
            self._copies.note_step(optimizer)

    def take_back_(self, trainer: Any, optimizer: Any = None) -> ReinitReport | None:
        """Give up the last event if weights of its units became NaN in their first batches.

        Returns:
            Its units, refused; None if all is well.
        """
        report = None if self._newborn is None else take_back_(self._newborn, optimizer)
        if report is None:
            return None
        self._newborn = None
        report.step = trainer.global_step
        self.summary.revived -= self.events[-1].num_reinitialised
        self._note(report)
        for layer, reasons in report.refused.items():
            self._schedule.give_up(layer, [u for u, why in reasons.items() if why == SPOILT])
        return report

    def after_train_batch(self, trainer: Any, pl_module: Any) -> None:
        """Stop measuring."""
        if not self._impossible:
            self._first_batches -= 1
            if self._first_batches <= 0:
                self._newborn = None
            self._copies.watch(trainer, pl_module)
            self._copies.look()
        self.end_measuring(in_validation=False)

    def after_train_epoch(self) -> None:
        """Observe no longer a batch that was begun and then skipped."""
        if self._tapes is not None:
            self._tapes.cancel()
        self._window.detach()

    # --- state --------------------------------------------------------------------------------

    def detach(self) -> None:
        """Leave nothing behind on the model and the optimizers; harmless when there is nothing."""
        if self._tapes is not None:
            self._tapes.detach()
        self._tapes = self._newborn = self._at_start = None
        self._window.detach()
        self._memory.detach()
        self._copies = Copies(self._copies.names)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        self._copies.judge()
        untold = self.events[-1:] if self.events and self.events[-1].alive is None else []
        return {
            "schedule": self._schedule.state_dict(),
            "pending": self._pending,
            "window": self._window.state_dict(),
            "events": {
                "planned": None if self._planned is None else _saved(*self._planned),
                "memory": self._memory.state_dict(),
                "followers": sorted(self._copies.names),
                "scales": self._scales,
                "summary": deepcopy(vars(self.summary)),
                "untold": [(event.step, event.reinitialised) for event in untold],
            },
        }

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> None:
        """Add to a state what other processes have observed, and what is planned for what is due.

        All processes take part. What is planned is done, noted, and taken back.
        """
        if self._impossible:
            return
        if self._pending and self._planned is None:  # on every process alike
            tapes = self._tapes_of(trainer.lightning_module)
            tapes.drop_outdated()
            everyone = recorded_by_all(trainer, tapes)
            waits = any(each.incomplete for each in everyone)
            if not waits and not self._lacks_validation(everyone):
                attempt = self._together(trainer, tapes).write_(self._pending, everyone)
                if attempt.plan is not None:
                    state["events"]["planned"] = _saved(attempt.plan, attempt.report)
                attempt.undo_()
                state["events"]["followers"] = sorted(self._copies.names)
        if not self.at_validation:
            self._window.complete_state(trainer, state["window"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self._schedule.load_state_dict(state["schedule"])
        self._pending = dict(state["pending"])
        self._window.load_state_dict(state["window"])
        own = state["events"]
        planned = own["planned"]
        self._planned = planned and (Plan(**planned["plan"]), ReinitReport(**planned["report"]))
        self._memory = TrainerMemory(own["memory"])
        self._copies = Copies(own.get("followers", ()))
        self._scales = own["scales"]
        self.summary = Summary(**deepcopy(own["summary"]))
        self.events = [ReinitReport(step=step, reinitialised=done) for step, done in own["untold"]]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what belongs to this training: recorded batches, and hooks."""
        return {
            **self.__dict__,
            "_tapes": None,
            "_newborn": None,
            "_memory": TrainerMemory(),
            "_copies": Copies(self._copies.names),
        }


def _report_of(attempt: Attempt, units: Units, step: int) -> ReinitReport:
    """Return what was done; all units as refused, with a warning, if anything failed."""
    if attempt.problem is None:
        return attempt.report
    warnings.warn(
        f"Dead units were not re-initialised at step {step}, all is as it was: {attempt.problem}",
        stacklevel=2,
    )
    report = ReinitReport(step=step)
    report.refuse(dict.fromkeys(each_of(units), attempt.problem))
    return report


def _saved(plan: Plan, report: ReinitReport) -> dict[str, Any]:
    return {"plan": dict(vars(plan)), "report": dict(vars(report))}
