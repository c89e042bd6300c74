"""Reviver: re-initialises dead units in the course of a training, for the callback."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_deadunits.distributed import Processes, gather_objects
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.fitness import model_refusal
from lightning_deadunits.reinit.known_traces import KnownTraces
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reinit.surgery.initial_scale import initial_scales
from lightning_deadunits.reinit.training.guarded_window import GuardedWindow
from lightning_deadunits.reinit.training.keepsake import Keepsake, plain
from lightning_deadunits.reinit.training.observers import Watch
from lightning_deadunits.reinit.training.schedule import Schedule
from lightning_deadunits.reinit.training.trainer_event import attempt
from lightning_deadunits.reinit.training.trainer_memory import TrainerMemory
from lightning_deadunits.reporting.report import DeadUnitsReport


class Reviver:
    """Decides at validation, or every so many training batches, and acts before the next batch.

    A checkpoint that is written at validation so holds the weights that were evaluated.

    Args:
        config: The options.
        watch: What the callback watches.

    Attributes:
        events: What was done so far.
    """

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        self.config = config
        self.events: list[ReinitReport] = []
        self._schedule = Schedule(config)
        self._pending: Units = {}
        self._example = Keepsake()
        self._window = GuardedWindow(config, watch)
        self._memory = TrainerMemory()
        self._known = KnownTraces()
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

    # --- deciding -----------------------------------------------------------------------------

    @property
    def _measures(self) -> bool:
        """Whether dormancy is judged, for which counts of zeros are not enough."""
        return self.config.criterion == "dormant" and not self._impossible

    def remember_batch(self, batch: Any) -> None:
        """Keep a few samples of a validation, to try an event on."""
        if self.at_validation and not self._impossible:
            self._example.offer(batch)

    def before_validation_batch(self, pl_module: Any) -> None:
        """Start measuring, where that is done at validation."""
        if self.at_validation and self._measures:
            self._window.begin(pl_module)

    def after_validation_batch(self) -> None:
        """Stop measuring."""
        if self.at_validation and self._measures:
            self._window.end()

    def after_validation(
        self, trainer: Any, pl_module: Any, report: DeadUnitsReport
    ) -> ReinitReport | None:
        """Take the report of a validation, the same on every process.

        Returns:
            The last event, if this is the first verdict after it.
        """
        return self._judge(trainer, pl_module, report, decides=self.at_validation)

    def after_window(
        self, trainer: Any, pl_module: Any, report: DeadUnitsReport
    ) -> ReinitReport | None:
        """Take the report of a window of training batches, the same on every process.

        Returns:
            The last event, if this is the first verdict after it.
        """
        return self._judge(trainer, pl_module, report, decides=not self.at_validation)

    def _judge(
        self, trainer: Any, pl_module: Any, report: DeadUnitsReport, decides: bool
    ) -> ReinitReport | None:
        dead = {n: layer.dead_mask for n, layer in report.layers.items() if layer.observations}
        told = self._told(dead)
        if decides and not self._impossible:
            if self._measures:
                dead = self._window.verdict(Processes(trainer, pl_module))
            self._pending = self._schedule.judge(dead)
            self._example.stale = True
        return told

    def _told(self, dead: Mapping[str, Tensor]) -> ReinitReport | None:
        """Tell the last event how many of its units live, at the first verdict after it."""
        last = self.events[-1] if self.events else None
        if not dead or last is None or last.alive is not None or not last.reinitialised:
            return None
        last.tell_outcome(dead)
        return last

    # --- acting -------------------------------------------------------------------------------

    def before_train_batch(self, trainer: Any, pl_module: Any, batch: Any) -> ReinitReport | None:
        """Re-initialise what is due; then count, if training batches are what decides.

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
            self._example.offer(batch)
            if self._measures:
                self._window.begin(pl_module)
        return event

    def after_train_batch(self) -> None:
        """Stop measuring."""
        if not self.at_validation and self._measures:
            self._window.end()

    def after_train_epoch(self) -> None:
        """Observe no longer a batch that was begun and then skipped."""
        self._window.detach()

    def _act(self, trainer: Any, pl_module: Any) -> ReinitReport | None:
        units, self._pending = self._pending, {}
        report, problem = attempt(
            trainer,
            pl_module,
            units,
            self._example.batch,
            self._memory,
            self.config,
            scales=self._scales or {},
            known=self._known,
        )
        if problem is not None:
            warnings.warn(
                f"Dead units were not re-initialised at step {trainer.global_step}, all is as it "
                f"was: {problem}",
                stacklevel=2,
            )
            self._schedule.refused({name: dict.fromkeys(own, "") for name, own in units.items()})
        if report is not None:
            self._schedule.revived(report.reinitialised)
            self._schedule.refused(report.refused)
            self.events.append(report)
        return report

    # --- state --------------------------------------------------------------------------------

    def detach(self) -> None:
        """Leave nothing behind on the model and the optimizers; harmless when there is nothing."""
        self._window.detach()
        self._memory.detach()
        self._known.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        keep_example = self._pending or not self.at_validation
        untold = self.events[-1:] if self.events and self.events[-1].alive is None else []
        return {
            "schedule": self._schedule.state_dict(),
            "pending": self._pending,
            "example": plain(self._example.batch) if keep_example else None,
            "stale": self._example.stale,
            "window": self._window.state_dict(),
            "memory": self._memory.state_dict(),
            "scales": self._scales,
            "untold": [(event.step, event.reinitialised) for event in untold],
        }

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> None:
        """Add to a state what other processes have observed, and a batch if one of them has any."""
        if self._impossible:
            return
        if self._pending or not self.at_validation:  # on every process alike
            kept = gather_objects(trainer, state["example"])
            state["example"] = next((batch for batch in kept if batch is not None), None)
        if not self.at_validation:
            state["window"] = self._window.complete_state(trainer, state["window"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self._schedule.load_state_dict(state["schedule"])
        self._pending = dict(state["pending"])
        self._example.batch, self._example.stale = state["example"], bool(state["stale"])
        self._window.load_state_dict(state["window"])
        self._memory.load_state_dict(state["memory"])
        self._scales = state["scales"]
        self.events = [ReinitReport(step=step, reinitialised=own) for step, own in state["untold"]]

    def __getstate__(self) -> dict[str, Any]:
        """Leave hooks and tensors of this training out of copies: they are for another one."""
        return {**self.__dict__, "_memory": TrainerMemory(), "_known": KnownTraces()}
