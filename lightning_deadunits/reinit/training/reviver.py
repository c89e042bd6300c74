"""Reviver: re-initialises dead units in the course of a training, for the callback.

1. A verdict, at validation or after a window of training batches, says which units are due
   (``schedule``).
2. Meanwhile, if any may be, batches that run anyway were recorded (``tapes``).
3. Before the next training batch the units are re-initialised on replays of these (``events``), on
   all processes alike (``agreement``). A checkpoint that is written at validation so holds the
   weights that were evaluated; one that is written while units are due holds what is planned for
   them, for a tape cannot be saved.
"""

from __future__ import annotations

import warnings
from typing import Any

from lightning_deadunits.distributed import Processes
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.eligibility import model_refusal
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reinit.training.events import Events
from lightning_deadunits.reinit.training.first_batches import SPOILT
from lightning_deadunits.reinit.training.schedule import Schedule
from lightning_deadunits.reinit.training.summary import Summary
from lightning_deadunits.reinit.training.tapes import Tapes
from lightning_deadunits.reinit.training.windows import GuardedWindow, Watch
from lightning_deadunits.reporting.report import DeadUnitsReport


class Reviver:
    """Decides at validation, or every so many training batches, and acts before the next batch.

    Attributes:
        config: The options.
        at_validation: Whether validation decides, rather than training batches.
    """

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        self.config = config
        self.at_validation = config.every_n_train_steps is None
        self._watch = watch
        self._schedule = Schedule(config)
        self._pending: Units = {}
        self._events = Events(config, watch.names)
        self._tapes: Tapes | None = None
        self._window = GuardedWindow(config, watch)
        self._impossible = False

    @property
    def events(self) -> list[ReinitReport]:
        """What was done so far."""
        return self._events.done

    @property
    def summary(self) -> Summary:
        """Sums over all events, those before a resume included."""
        return self._events.summary

    def told(self) -> str:
        """Say in one line what came of all of it."""
        return self.summary.told(due=sum(map(len, self._pending.values())))

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

    def end_recording(self, *, training: bool) -> None:
        """The step has ended; harmless if it was not recorded."""
        if self._tapes is not None:
            self._tapes.end_batch(training=training)

    def note_outputs(self, outputs: Any) -> None:
        """Take what the step has returned."""
        if self._tapes is not None:
            self._tapes.note_outputs(outputs)

    def _drop_tapes(self) -> None:
        """Let go of recorded batches; where windows decide, validation may be long ago."""
        if self._tapes is not None:
            self._tapes.drop(evaluation=self.at_validation)

    # --- deciding -----------------------------------------------------------------------------

    @property
    def _measures(self) -> bool:
        """Whether dormancy is judged, for which counts of zeros are not enough."""
        return self.config.criterion == "dormant" and not self._impossible

    def before_validation_batch(self, pl_module: Any) -> None:
        """Start measuring, where that is done at validation."""
        if self.at_validation and self._measures:
            self._window.begin(pl_module)

    def after_validation_batch(self) -> None:
        """Stop measuring."""
        if self.at_validation and self._measures:
            self._window.end()

    def judge(
        self, trainer: Any, pl_module: Any, report: DeadUnitsReport, *, of_validation: bool
    ) -> ReinitReport | None:
        """Take a report of a validation or a window of training batches, alike on every process.

        Returns:
            The last event, if this is the first verdict after it.
        """
        dead = {n: layer.dead_mask for n, layer in report.layers.items() if layer.observations}
        told = self._events.take_verdict(dead)
        if of_validation == self.at_validation and not self._impossible:
            if self._measures:
                dead = self._window.verdict(Processes(trainer, pl_module))
            self._pending = self._schedule.judge(dead)
            self._events.forget_plan()
            if not self._pending:
                self._drop_tapes()
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
        self._events.resume(trainer, pl_module)
        if self._pending:
            event = self._act(trainer, pl_module) or event
        if not self.at_validation and self._measures:
            self._window.begin(pl_module)
        return event

    def _act(self, trainer: Any, pl_module: Any) -> ReinitReport | None:
        tapes = self._tapes_of(pl_module)
        if self._events.must_wait(trainer, tapes):
            return None
        units, self._pending = self._pending, {}
        if self._events.lacks_validation(trainer, tapes):
            return None  # the first validation of this fit finds them again
        report = self._events.act_(trainer, tapes, units)
        self._drop_tapes()
        if report is not None:
            self._schedule.note(report)
        return report

    def take_back_(self, trainer: Any, optimizer: Any = None) -> ReinitReport | None:
        """Give up the last event if weights of its units became NaN in their first batches.

        Returns:
            Its units, refused; None if all is well.
        """
        report = self._events.take_back_(trainer, optimizer)
        if report is not None:
            for layer, reasons in report.refused.items():
                self._schedule.give_up(layer, [u for u, why in reasons.items() if why == SPOILT])
        return report

    def after_train_batch(self, trainer: Any, pl_module: Any) -> None:
        """Stop measuring."""
        if not self._impossible:
            self._events.end_batch(trainer, pl_module)
        if not self.at_validation and self._measures:
            self._window.end()

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
        self._tapes = None
        self._window.detach()
        self._events.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        return {
            "schedule": self._schedule.state_dict(),
            "pending": self._pending,
            "window": self._window.state_dict(),
            "events": self._events.state_dict(),
        }

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> None:
        """Add to a state what other processes have observed, and what is planned for what is due.

        All processes take part.
        """
        if self._impossible:
            return
        if self._pending:  # on every process alike
            tapes = self._tapes_of(trainer.lightning_module)
            self._events.complete_state(trainer, tapes, self._pending, state["events"])
        if not self.at_validation:
            state["window"] = self._window.complete_state(trainer, state["window"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self._schedule.load_state_dict(state["schedule"])
        self._pending = dict(state["pending"])
        self._window.load_state_dict(state["window"])
        self._events.load_state_dict(state["events"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave recorded batches out of copies: they are of this training."""
        return {**self.__dict__, "_tapes": None}
