"""One event on all processes of a training: one plans, all write, each verifies, or none does.

The process that has most of the units on tape traces them and writes fresh weights. The others are
sent the plan (names, places, values), write the same, and replay what they have recorded
themselves; what reads the units there alone, a head of their own, they add to the plan. What one of
them refuses is taken back on all of them, and planned again without it. Whatever fails on one
process, it takes part in every exchange: the others wait for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_deadunits.distributed import gather_objects
from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.reinit.dataflow.passes import UnitKey
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.plan import Plan, Write
from lightning_deadunits.reinit.recording import Tape
from lightning_deadunits.reinit.recording.layers import keys_of
from lightning_deadunits.reinit.report import ReinitReport, Units, by_layer, each_of
from lightning_deadunits.reinit.training.copies import Copies
from lightning_deadunits.reinit.training.tapes import Recorded, Tapes
from lightning_deadunits.reinit.weights import WeightSlice, written

_MOST_ROUNDS = 4
_UNSEEN = "{} ran in batches that are not recorded, and may use it"
_ELSEWHERE = "its layer ran on another process than most others that are due; its turn comes later"


class RanksDifferError(RuntimeError):
    """Processes have re-initialised units differently; training would go on with other weights."""


@dataclass
class Attempt:
    """What came of an attempt, the same on every process but for ``event``.

    Attributes:
        event: What this process has written; None if nothing is written.
        plan: What was written; None if nothing is.
        report: What was done and refused.
        problem: What failed; all is as it was then.
    """

    event: Event | None = None
    plan: Plan | None = None
    report: ReinitReport = field(default_factory=ReinitReport)
    problem: str | None = None

    def undo_(self) -> None:
        """Take back what this process has written."""
        if self.event is not None:
            self.event.undo_()
        self.event = self.plan = None


def recorded_by_all(trainer: Any, tapes: Tapes) -> list[Recorded]:
    """Return what each process has recorded; what is missing on one may be on another's tapes.

    As where each process has a head of its own, whose gradients all of them get.
    """
    everyone: list[Recorded] = gather_objects(trainer, tapes.recorded)
    if len(everyone) > 1 and any(each.missing for each in everyone):
        tapes.know_others(gather_objects(trainer, tapes.shown))
        everyone = gather_objects(trainer, tapes.recorded)
    return everyone


@dataclass
class Together:
    """Has all processes of a Trainer re-initialise the same.

    Attributes:
        trainer: The Trainer.
        tapes: What this process has recorded.
        names: The names of layers.
        make_event: Makes an event of the tapes on which it is verified.
    """

    trainer: Any
    tapes: Sequence[Tape]
    names: LayerNames
    make_event: Callable[[Sequence[Tape]], Event]

    def write_(self, units: Units, everyone: Sequence[Recorded]) -> Attempt:
        """Plan, write and verify; the optimizers know nothing of it before :func:`commit_`.

        Args:
            units: What is due.
            everyone: What each process has recorded.
        """
        missing = dict.fromkeys(name for each in everyone for name in each.missing)
        if missing:
            return self._refusing(units, _UNSEEN.format(_some(missing)))
        planner, refused = self._planner(units, everyone)
        units = by_layer(unit for unit in each_of(units) if unit not in refused)
        for _ in range(_MOST_ROUNDS):
            attempt = self._planned(units, planner)
            found = self._verify_(attempt, self.tapes)
            if not found:
                break
            refused |= found
            units = by_layer(unit for unit in each_of(units) if unit not in refused)
        else:
            attempt = self._refusing(units, "processes do not come to agree on it")
        attempt.report.refuse(refused)
        return attempt

    def _planner(
        self, units: Units, everyone: Sequence[Recorded]
    ) -> tuple[int, dict[UnitKey, str]]:
        """Return who plans: who has most of the units on tape, and among those most tapes.

        And the units that others alone have: of experts that ran on one process only, say. One of
        these plans as soon as those that were revived now are no longer due.
        """
        recorded = [each.evaluation + each.training for each in everyone]
        if len(everyone) == 1:
            return 0, {}
        own = set(keys_of(self.tapes, units, self.names).values())
        on_tape = gather_objects(self.trainer, own)
        numbers = [sum(len(units[layer]) for layer in theirs) for theirs in on_tape]
        ranks = list(zip(numbers, recorded, strict=True))
        planner = ranks.index(max(ranks))
        others = set().union(*on_tape) - on_tape[planner]
        return planner, {unit: _ELSEWHERE for unit in each_of(units) if unit[0] in others}

    def write_plan_(self, plan: Plan, report: ReinitReport) -> Attempt:
        """Write what was planned and verified before a checkpoint was saved."""
        attempt = Attempt(plan=plan, report=report)
        self._verify_(attempt, ())
        return attempt

    def _refusing(self, units: Units, reason: str) -> Attempt:
        report = ReinitReport(step=self.trainer.global_step)
        report.refuse(dict.fromkeys(each_of(units), reason))
        return Attempt(report=report)

    def _planned(self, units: Units, planner: int) -> Attempt:
        """Have one process plan and write; all return its plan, report and problem."""
        attempt = Attempt()
        if self.trainer.global_rank == planner:
            try:
                attempt.event = self.make_event(self.tapes)
                attempt.event.operate_(units)
                attempt.plan, attempt.report = attempt.event.plan(), attempt.event.report
            except Exception as error:  # a fault of ours, or of the user's `init`
                attempt.problem = _said(error)
                attempt.undo_()
        own = (attempt.plan, attempt.report, attempt.problem)
        everyone = gather_objects(self.trainer, own)
        attempt.plan, attempt.report, attempt.problem = everyone[planner]
        return attempt

    def _verify_(
        self, attempt: Attempt, tapes: Sequence[Tape], *, again: bool = True
    ) -> dict[UnitKey, str]:
        """Have those who did not plan write the same; what any of them refuses, all take back.

        What reads the units on their tapes alone they add to the plan, and all write it anew.
        """
        plan, refused, more = attempt.plan, dict[UnitKey, str](), list[Write]()
        if plan is not None and attempt.event is None:
            try:
                attempt.event = self.make_event(tapes)
                attempt.event.report = attempt.report
                refused, more = attempt.event.follow_(plan)
            except Exception as error:  # as above
                attempt.problem = _said(error)
        everyone = gather_objects(self.trainer, (refused, more, attempt.problem))
        attempt.problem = next((why for *_, why in everyone if why is not None), None)
        found = {unit: why for theirs, *_ in everyone for unit, why in theirs.items()}
        if found or attempt.problem is not None:
            attempt.undo_()
        if attempt.problem is not None:
            return {}
        more = [write for _, theirs, _ in everyone for write in theirs]
        if plan is None or not (more and again):
            return found
        attempt.plan = replace(plan, writes=[*plan.writes, *more])
        return self._verify_(attempt, tapes, again=False)


def commit_(trainer: Any, attempt: Attempt, copies: Copies) -> None:
    """Have optimizers and copies of the model follow, on all processes; or take everything back.

    Raises:
        RanksDifferError: If processes have come to different weights.
    """
    with ExitStack() as undo:
        digest = ""
        try:
            if (event := attempt.event) is not None:
                undo.callback(event.undo_)
                event.commit_()
                edited = written(event.outcome.edits)
                undo.callback(copies.edit_(edited).undo_)
                digest = checksum(event.touched) if trainer.world_size > 1 else ""
        except Exception as error:  # whatever an optimizer or a copy of the model raises
            attempt.problem = _said(error)
        everyone = gather_objects(trainer, (attempt.problem, digest))
        attempt.problem = next((why for why, _ in everyone if why is not None), None)
        if attempt.problem is not None:
            return
        if len({theirs for _, theirs in everyone}) > 1:
            raise RanksDifferError(
                "Processes have re-initialised units differently: their weights differed before."
            )
        undo.pop_all()


def checksum(parts: Iterable[WeightSlice]) -> str:
    """Return a digest of the whole parameters that were written to; buffers are each process's."""
    digest = hashlib.sha256()
    for part in parts:
        values = part.parameter.detach().cpu().double().contiguous()
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _some(names: Iterable[str]) -> str:
    """List the first names."""
    first, *more = names
    return f"{first} and {len(more)} more" if more else first


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
