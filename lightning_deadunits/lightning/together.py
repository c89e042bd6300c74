"""What the processes of a Trainer saw together in a validation: all take part, or all give up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning_deadunits.distributed import Processes, gather_objects
from lightning_deadunits.lightning.failure_guard import Guard
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.selection import SelectionError, check_found
from lightning_deadunits.observation.tally import ProcessFailedError, report_of
from lightning_deadunits.reporting.report import DeadUnitsReport


def report_of_all(
    trainer: Any, pl_module: Any, seen: tuple[Any, ...], guard: Guard, **options: Any
) -> DeadUnitsReport | None:
    """Sum what all processes saw.

    Every process takes part, also one whose monitoring failed: the others wait for it.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        seen: What this process saw, as :func:`report_of` takes it.
        guard: Whether monitoring failed here.
        **options: Those of :func:`report_of`.

    Returns:
        The report, the same on every process; None if monitoring failed on one and all gave up.
    """
    processes = Processes(trainer, pl_module)
    try:
        return report_of(
            *seen,
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
    hint: str,
) -> bool:
    """At the first validation it is known what runs: raise before training, warn later.

    Args:
        trainer: The Trainer.
        observer: What has seen the layers, if it could be made.
        guard: Whether monitoring failed here.
        layers: Patterns of the layers to track.
        exclude: Patterns of the layers not to track.
        hint: What to add to the error.

    Returns:
        Whether it could be checked.

    Raises:
        SelectionError: If a pattern matches no layer, or there is none.
    """
    here = ([], []) if observer is None else (list(observer.met), list(observer.never_met))
    everywhere = gather_objects(trainer, here)
    found = [name for met, _ in everywhere for name in met]
    never = [name for _, met in everywhere for name in met]
    if trainer.sanity_checking and not found and not never:
        return False  # the step may leave the model out of the sanity check
    if guard.gave_up:
        return True
    try:
        check_found(found, never, layers, exclude)
    except SelectionError as error:
        told = SelectionError(f"{error}{hint}")
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.global_step:
            raise told from None
        warnings.warn(f"DeadUnitCallback: {told}", stacklevel=3)
    return True
