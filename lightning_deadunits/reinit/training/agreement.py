"""One event on all processes of a training: one plans, all write, each verifies, or none does.

The process that has recorded most traces the units and writes fresh weights; the others are sent
the plan (names, places, values), write the same, and replay what they have recorded themselves.
What one of them refuses is taken back on all of them, and planned again without it. Whatever fails
on one process, it takes part in every exchange: the others wait for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from lightning_deadunits.distributed import gather_objects
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.plan import Plan
from lightning_deadunits.reinit.recording import Tape
from lightning_deadunits.reinit.report import ReinitReport, Units, reasons_by_layer
from lightning_deadunits.reinit.training.averages import copies_of, edit_copies_
from lightning_deadunits.reinit.training.followers import Followers
from lightning_deadunits.reinit.weights import WeightSlice

MakeEvent = Callable[[Sequence[Tape]], Event]
Reasons = Mapping[tuple[str, int], str]

_MOST_ROUNDS = 4
_UNSEEN = "{} ran in batches that are not recorded, and may use it"


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


class Together:
    """Has all processes of a Trainer re-initialise the same.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        tapes: What this process has recorded.
        missing: Names of what ran on this process and is not recorded.
        make_event: Makes an event of tapes.
        followers: Knows which copies of the module follow it.
    """

    def __init__(
        self,
        trainer: Any,
        pl_module: Any,
        tapes: Sequence[Tape],
        missing: Sequence[str],
        make_event: MakeEvent,
        followers: Followers,
    ) -> None:
        self._followers = followers
        self._trainer, self._pl_module = trainer, pl_module
        self._tapes, self._missing, self._make_event = tapes, missing, make_event

    def write_(self, units: Units) -> Attempt:
        """Plan, write and verify; the optimizers know nothing of it before :meth:`commit_`."""
        everyone = self._gather((len(self._tapes), list(self._missing)))
        missing = dict.fromkeys(name for _, names in everyone for name in names)
        if missing:
            return Attempt(report=self._refused(units, _UNSEEN.format(_some(missing))))
        recorded = [number for number, _ in everyone]
        planner = recorded.index(max(recorded))
        refused: dict[tuple[str, int], str] = {}
        for _ in range(_MOST_ROUNDS):
            attempt = self._round(units, planner)
            own: tuple[Reasons, str | None] = ({}, attempt.problem)
            if attempt.plan is not None and self._trainer.global_rank != planner:
                own = self._followed(attempt)
            everyone = self._gather(own)
            found = {unit: why for theirs, _ in everyone for unit, why in theirs.items()}
            problem = next((why for _, why in everyone if why is not None), None)
            if not found and problem is None:
                attempt.report.refused = _merged(attempt.report.refused, refused)
                return attempt
            self.undo_(attempt)
            if problem is not None:
                return Attempt(problem=problem)
            refused |= found
            units = without(units, refused)
        report = self._refused(units, "processes do not come to agree on it")
        report.refused = _merged(report.refused, refused)
        return Attempt(report=report)

    def write_plan_(self, plan: Plan, report: ReinitReport) -> Attempt:
        """Write what was planned and verified before a checkpoint was saved."""
        attempt = Attempt(plan=plan, report=report)
        _, problem = self._followed(attempt, ())
        attempt.problem = next((why for why in self._gather(problem) if why is not None), None)
        if attempt.problem is not None:
            self.undo_(attempt)
        return attempt

    def commit_(self, attempt: Attempt) -> None:
        """Have optimizers and averages follow, on all processes; or take everything back.

        Raises:
            RanksDifferError: If processes have come to different weights.
        """
        with ExitStack() as undo:
            digest = ""
            try:
                if attempt.event is not None and attempt.plan is not None:
                    undo.callback(attempt.event.undo_)
                    attempt.event.commit_()
                    written = [part for part, _ in attempt.plan.edit(self._pl_module).slices()]
                    copies = copies_of(self._trainer, self._pl_module)
                    copies += self._followers.copies(copies)
                    undo.callback(edit_copies_(copies, written).undo_)
                    digest = checksum(written) if self._trainer.world_size > 1 else ""
            except Exception as error:  # whatever an optimizer or a copy of the model raises
                attempt.problem = _said(error)
            everyone = self._gather((attempt.problem, digest))
            attempt.problem = next((why for why, _ in everyone if why is not None), None)
            if attempt.problem is not None:
                return
            if len({theirs for _, theirs in everyone}) > 1:
                raise RanksDifferError(
                    "Processes have re-initialised units differently: their weights differed "
                    "before."
                )
            undo.pop_all()

    def _refused(self, units: Units, reason: str) -> ReinitReport:
        refused = {name: dict.fromkeys(own, reason) for name, own in units.items()}
        return ReinitReport(refused=refused, step=self._trainer.global_step)

    def _round(self, units: Units, planner: int) -> Attempt:
        """Have one process plan and write; all return its plan, report and problem."""
        attempt = Attempt()
        if self._trainer.global_rank == planner:
            try:
                attempt.event = self._make_event(self._tapes)
                attempt.event.operate_(units)
                attempt.plan, attempt.report = attempt.event.plan(), attempt.event.report
            except Exception as error:  # a fault of ours, or of the user's `init`
                attempt.problem = _said(error)
                self.undo_(attempt)
        if self._trainer.world_size > 1:
            own = (attempt.plan, attempt.report, attempt.problem)
            plan, report, attempt.problem = self._gather(own)[planner]
            attempt.plan, attempt.report = plan, report
        return attempt

    def _followed(
        self, attempt: Attempt, tapes: Sequence[Tape] | None = None
    ) -> tuple[Reasons, str | None]:
        """Write what another process has planned; return what is refused here, and what failed."""
        assert attempt.plan is not None
        try:
            attempt.event = self._make_event(self._tapes if tapes is None else tapes)
            return attempt.event.follow_(attempt.plan), None
        except Exception as error:  # as above
            return {}, _said(error)

    def undo_(self, attempt: Attempt) -> None:
        """Take back what this process has written."""
        if attempt.event is not None:
            attempt.event.undo_()
        attempt.event = attempt.plan = None

    def _gather(self, value: Any) -> list[Any]:
        return gather_objects(self._trainer, value)


def without(units: Units, refused: Mapping[tuple[str, int], Any]) -> Units:
    """Return units without those that were refused."""
    left = {n: [unit for unit in own if (n, unit) not in refused] for n, own in units.items()}
    return {name: own for name, own in left.items() if own}


def checksum(written: Sequence[WeightSlice]) -> str:
    """Return a digest of the whole parameters that were written to; buffers are each process's."""
    digest = hashlib.sha256()
    for weights in written:
        if weights.parameter.requires_grad:
            values = weights.parameter.detach().cpu().double().contiguous()
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _merged(
    reasons: dict[str, dict[int, str]], more: Mapping[tuple[str, int], str]
) -> dict[str, dict[int, str]]:
    flat = {(name, unit): why for name, own in reasons.items() for unit, why in own.items()}
    return reasons_by_layer(flat | dict(more))


def _some(names: Iterable[str]) -> str:
    """List the first names."""
    first, *more = names
    return f"{first} and {len(more)} more" if more else first


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
