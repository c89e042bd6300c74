"""What the processes of a Trainer saw together in a validation: all take part, or all give up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning_deadunits.distributed import Processes, gather_objects
from lightning_deadunits.lightning.failure_guard import Guard
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.selection import SelectionError, check_found, check_matched
from lightning_deadunits.observation.sums import Seen
from lightning_deadunits.observation.tally import ProcessFailedError, report_of
from lightning_deadunits.reinit import ReinitConfig
from lightning_deadunits.reporting.report import DeadUnitsReport


def report_of_all(
    trainer: Any, pl_module: Any, seen: Seen, guard: Guard, **options: Any
) -> DeadUnitsReport | None:
    """Sum what all processes saw.

    Every process takes part, also one whose monitoring failed: the others wait for it.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        seen: What this process saw.
        guard: Whether monitoring failed here.
        **options: Those of :func:`report_of`.

    Returns:
        The report, the same on every process; None if monitoring failed on one and all gave up.
    """
    processes = Processes(trainer, pl_module)
    try:
        return report_of(
            seen,
            device=processes.device,
            gather=processes.gather,
            reduce=processes.sum,
            failed=guard.gave_up,
            **options,
        )
    except ProcessFailedError as error:
        guard.all_know = True
        guard.give_up(error)
    except Exception as error:
        if trainer.world_size > 1:
            raise  # going on alone would leave the others waiting
        guard.give_up(error)
    return None


def check_selection(
    trainer: Any,
    observer: Observer | None,
    guard: Guard,
    layers: Sequence[str] | None,
    exclude: Sequence[str] | None,
    hint: str = "",
    reinit: ReinitConfig | None = None,
) -> bool:
    """At the first verdict it is known what runs: say what was asked for in vain.

    An error only where the user named something and nothing is lost by it, in the sanity check:
    what has been trained, validated or predicted by then is worth more than the verdict.

    Args:
        trainer: The Trainer.
        observer: What has seen the layers, if it could be made.
        guard: Whether monitoring failed here.
        layers: Patterns of the layers to track.
        exclude: Patterns of the layers not to track.
        hint: What to add to the error.
        reinit: Whose patterns are checked, too.

    Returns:
        Whether it could be checked.

    Raises:
        SelectionError: If a pattern matches no layer that ran in the sanity check.
    """
    here: tuple[list[str], ...] = ([], [], [], [])
    if observer is not None:
        ran = (observer.met, observer.never_met, observer.aside)
        here = (*map(list, ran), list(observer.expected))
    everywhere = gather_objects(trainer, here)
    found, never, aside, expected = (
        [n for theirs in everywhere for n in theirs[i]] for i in range(4)
    )
    if trainer.sanity_checking and not found and not never:
        return False  # the step may leave the model out of the sanity check
    if guard.gave_up:
        return True
    # A module that is there may run later: that it did not is told by the report.
    there = list(dict.fromkeys([*found, *expected])) if trainer.sanity_checking else found
    try:
        check_found(there, never, layers, exclude, dict.fromkeys(aside))
        if reinit is not None:
            check_matched(there, never, *reinit.patterns, of="reinit.")
    except SelectionError as error:
        told = SelectionError(f"{error}{hint}")
        named = (layers, exclude, *(() if reinit is None else reinit.patterns))
        if trainer.sanity_checking and any(named):
            raise told from None
        warnings.warn(f"DeadUnitCallback: {told}", stacklevel=3)
    return True
