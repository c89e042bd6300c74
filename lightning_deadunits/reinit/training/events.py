"""The events of a training: what is due is done on recorded passes, and noted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_deadunits.distributed import gather_objects
from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory, optimizers_of
from lightning_deadunits.reinit.plan import Plan
from lightning_deadunits.reinit.recording import Tape
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reinit.surgery.initialisation import initial_scales
from lightning_deadunits.reinit.training.agreement import Attempt, Together
from lightning_deadunits.reinit.training.first_batches import FirstBatches
from lightning_deadunits.reinit.training.followers import Followers
from lightning_deadunits.reinit.training.summary import Summary
from lightning_deadunits.reinit.training.tapes import Tapes


class TrainerMemory:
    """Follows the optimizers of a training: they are made late, and may be made anew."""

    def __init__(self) -> None:
        self._memory: OptimizerMemory | None = None
        self._optimizers: list[Any] = []
        self._names: dict[Tensor, str] = {}
        self._saved: list[Any] = []

    def resume(self, trainer: Any, pl_module: Any) -> None:
        """Go on with what a checkpoint holds, or what optimizers did that were replaced since."""
        replaced = self._memory and self._optimizers != optimizers_of(trainer, pl_module)
        if self._saved or replaced:
            try:
                self.of(trainer, pl_module)
            except (TypeError, ValueError) as error:
                warnings.warn(
                    f"Weights re-initialised before are stepped like all others from now on: "
                    f"{error}",
                    stacklevel=2,
                )

    def of(self, trainer: Any, pl_module: Any) -> OptimizerMemory:
        """Return the memory of the Trainer's present optimizers."""
        optimizers = optimizers_of(trainer, pl_module)
        if self._memory is None or self._optimizers != optimizers:
            saved, self._saved = self.state_dict(), []
            self._optimizers, self._memory = optimizers, OptimizerMemory(optimizers)
            if any(saved):
                self._memory.load_state_dict(saved, dict(pl_module.named_parameters()))
        self._names = {p: name for name, p in pl_module.named_parameters()}
        return self._memory

    def detach(self) -> None:
        """Leave nothing behind on the optimizers; harmless when there is nothing."""
        # A checkpoint may still be written after an exception.
        self._saved = self.state_dict()
        if self._memory is not None:
            self._memory.detach()
        self._memory, self._optimizers, self._names = None, [], {}

    def state_dict(self) -> list[Any]:
        """Return tensors and primitives only."""
        return self._saved if self._memory is None else self._memory.state_dict(self._names)

    def load_state_dict(self, state: list[Any]) -> None:
        """Go on from :meth:`state_dict`, as soon as there are optimizers."""
        self._saved, self._memory = list(state), None


_LONGEST_WAIT = 32
"""Training batches by which an event is put off at most, until they ran what is on no tape."""


class Events:
    """Does what is due, on all processes of a Trainer alike.

    Attributes:
        done: The reports, in their order.
        summary: Sums over all events, those before a resume included.
    """

    def __init__(self, config: ReinitConfig, names: LayerNames) -> None:
        self.done: list[ReinitReport] = []
        self.summary = Summary()
        self._config, self._names = config, names
        self._at_validation = config.every_n_train_steps is None
        self._memory = TrainerMemory()
        self._scales: dict[str, float] | None = None
        self._planned: tuple[Plan, ReinitReport] | None = None
        self._first_batches = FirstBatches()
        self._followers = Followers()
        self._waited = 0

    def resume(self, trainer: Any, pl_module: Any) -> None:
        """Go on with the optimizers as they are now; take down how large weights are at first."""
        self._memory.resume(trainer, pl_module)
        if self._scales is None:
            known = trainer.global_step == 0
            self._scales = initial_scales(pl_module.named_parameters()) if known else {}

    def must_wait(self, trainer: Any, tapes: Tapes) -> bool:
        """Tell whether training batches are to be recorded first, the same on every process.

        In a training that was resumed before what is due was planned, and where modules ran that
        are on no tape; for some batches at most.
        """
        if self._planned is not None or self._waited >= _LONGEST_WAIT:
            return False
        wait = any(gather_objects(trainer, tapes.incomplete))
        self._waited += wait
        return wait

    def act_(self, trainer: Any, tapes: Tapes, units: Units) -> ReinitReport | None:
        """Re-initialise units, those that were planned for before a resume as it was planned.

        Returns:
            What was done; None if there is nothing to say.

        Raises:
            RanksDifferError: If processes come to different weights.
        """
        planned, self._planned, self._waited = self._planned, None, 0
        together = self._together(trainer, tapes)
        attempt = together.write_(units) if planned is None else together.write_plan_(*planned)
        if attempt.problem is None:
            together.commit_(attempt)
        self._first_batches.watch(attempt.event if attempt.problem is None else None)
        return self._noted(trainer, units, attempt)

    def take_back_(self, trainer: Any, optimizer: Any = None) -> ReinitReport | None:
        """Give up the last event if weights of its units became NaN in their first batches.

        Returns:
            Its units, refused; None if all is well.
        """
        report = self._first_batches.take_back_(optimizer)
        if report is not None:
            report.step = trainer.global_step
            self.summary.take_back(self.done[-1])
            self.done.append(report)
            self.summary.add(report)
        return report

    def end_batch(self, trainer: Any, pl_module: Any) -> None:
        """Take note that a training batch has ended."""
        self._first_batches.end_batch()
        self._followers.watch(trainer, pl_module)
        self._followers.look()

    def complete_state(
        self, trainer: Any, tapes: Tapes, units: Units, state: dict[str, Any]
    ) -> None:
        """Add what is planned for what is due: done, noted, and taken back."""
        state["planned"] = self._plan(trainer, tapes, units)
        state["followers"] = sorted(self._followers.names)

    def _plan(self, trainer: Any, tapes: Tapes, units: Units) -> dict[str, Any] | None:
        if self._planned is not None:
            return _saved(*self._planned)
        if any(gather_objects(trainer, tapes.incomplete)) or self.lacks_validation(trainer, tapes):
            return None
        together = self._together(trainer, tapes)
        attempt = together.write_(units)
        planned = None if attempt.plan is None else _saved(attempt.plan, attempt.report)
        together.undo_(attempt)
        return planned

    def forget_plan(self) -> None:
        """There is another verdict."""
        self._planned = None

    def take_verdict(self, dead: Mapping[str, Tensor]) -> ReinitReport | None:
        """Take a verdict; return the last event if it is the first one after it."""
        last = self.done[-1] if self.done else None
        if not dead or last is None or last.alive is not None or not last.reinitialised:
            return None
        last.tell_outcome(dead)
        self.summary.add_outcome(last)
        return last

    def lacks_validation(self, trainer: Any, tapes: Tapes) -> bool:
        """Tell whether a validation decided of which no process has recorded anything.

        It was one of an earlier fit, and nothing was planned for what it found.
        """
        if self._planned is not None or not self._at_validation:
            return False
        return not any(gather_objects(trainer, len(tapes.evaluation)))

    def _together(self, trainer: Any, tapes: Tapes) -> Together:
        # Fresh biases are settled on the first tape: on what decides, for a resume finds the same.
        ordered = (tapes.evaluation, tapes.training)[:: 1 if self._at_validation else -1]
        every = [tape for some in ordered for tape in some]
        self._followers.watch(trainer, tapes.model)
        self._followers.judge(every)

        def make(given: Sequence[Tape]) -> Event:
            return Event(
                tapes.model,
                given,
                self._memory.of(trainer, tapes.model),
                self._config,
                seed=self._config.seed,
                step=trainer.global_step,
                scales=self._scales or {},
                names=self._names,
            )

        return Together(trainer, tapes.model, every, tapes.missing, make, self._followers)

    def _noted(self, trainer: Any, units: Units, attempt: Attempt) -> ReinitReport | None:
        report, problem = attempt.report, attempt.problem
        if problem is not None:
            warnings.warn(
                f"Dead units were not re-initialised at step {trainer.global_step}, all is as it "
                f"was: {problem}",
                stacklevel=2,
            )
            refused = {name: dict.fromkeys(own, problem) for name, own in units.items()}
            report = ReinitReport(refused=refused, step=trainer.global_step)
        if not (report.reinitialised or report.refused or report.planned):
            return None
        self.done.append(report)
        self.summary.add(report)
        return report

    # --- state --------------------------------------------------------------------------------

    def detach(self) -> None:
        """Leave nothing behind on the optimizers; harmless when there is nothing."""
        self._memory.detach()
        self._first_batches.watch(None)
        self._followers = Followers(self._followers.names)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        self._followers.judge()
        untold = self.done[-1:] if self.done and self.done[-1].alive is None else []
        return {
            "memory": self._memory.state_dict(),
            "followers": sorted(self._followers.names),
            "planned": None if self._planned is None else _saved(*self._planned),
            "scales": self._scales,
            "summary": self.summary.state_dict(),
            "untold": [(event.step, event.reinitialised) for event in untold],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._memory.load_state_dict(state["memory"])
        self._followers = Followers(state.get("followers", ()))
        self._planned = None if state["planned"] is None else _loaded(state["planned"])
        self._scales = state["scales"]
        self.summary.load_state_dict(state["summary"])
        self.done = [ReinitReport(step=step, reinitialised=own) for step, own in state["untold"]]

    def __getstate__(self) -> dict[str, Any]:
        """Leave hooks on the optimizers of this training out of copies: they are for another."""
        return {
            **self.__dict__,
            "_memory": TrainerMemory(),
            "_first_batches": FirstBatches(),
            "_followers": Followers(self._followers.names),
        }


def _saved(plan: Plan, report: ReinitReport) -> dict[str, Any]:
    return {"plan": plan.state_dict(), "report": dict(vars(report))}


def _loaded(state: Mapping[str, Any]) -> tuple[Plan, ReinitReport]:
    return Plan.load(state["plan"]), ReinitReport(**state["report"])
