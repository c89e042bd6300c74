"""One event in a Trainer: every process does the same, or none does; copies are edited alike."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from lightning_deadunits.distributed import gather_objects
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.known_traces import KnownTraces
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reinit.running.example import Example
from lightning_deadunits.reinit.training.agreement import agreed, edited, same_buffers
from lightning_deadunits.reinit.training.averages import copies_of, edit_copies_
from lightning_deadunits.reinit.training.keepsake import mapped_tensors, portable
from lightning_deadunits.reinit.training.lightning_step import step_of
from lightning_deadunits.reinit.training.trainer_memory import TrainerMemory


def attempt(
    trainer: Any,
    pl_module: Any,
    units: Units,
    batch: Any,
    memory: TrainerMemory,
    config: ReinitConfig,
    *,
    scales: Mapping[str, float],
    known: KnownTraces,
) -> tuple[ReinitReport | None, str | None]:
    """Re-initialise units on every process alike.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        units: What is due, the same on every process.
        batch: Samples that this process has kept; all use those of the first that has any.
        memory: What the Trainer's optimizers remember.
        config: The options.
        scales: How large parameters were when training began, by name.
        known: What earlier events have traced.

    Returns:
        What was done, None if nothing; and why all is as it was, None if it is not.

    Raises:
        RanksDifferError: If processes come to different weights.
    """
    batch = _shared(trainer, batch)
    # Whatever fails on one process, it takes part in every exchange: the others wait for it.
    with same_buffers(trainer, pl_module) as keep, ExitStack() as undo:
        event = problem = None
        try:
            event = Event(
                _example(trainer, pl_module, batch, config),
                memory.of(trainer, pl_module),
                config,
                seed=config.seed,
                step=trainer.global_step,
                scales=scales,
                known=known,
            )
            undo.callback(event.undo_)
            event.operate_(units)
            event.commit_()
            undo.callback(edit_copies_(copies_of(trainer, pl_module), edited(event)).undo_)
        except Exception as error:  # whatever the user's code raises on an example
            problem = f"{type(error).__name__}: {error}"
        problem = agreed(trainer, event, problem)
        if event is None or problem is not None:
            known.clear()
            return None, problem
        keep += edited(event)
        undo.pop_all()
    said = event.report.reinitialised or event.report.refused or event.report.planned
    return (event.report if said else None), None


def _shared(trainer: Any, batch: Any) -> Any:
    """Return the samples of the first process that has any, on every process."""
    if trainer.world_size == 1:
        return batch
    kept = gather_objects(trainer, portable(batch))
    return next((theirs for theirs in kept if theirs is not None), None)


def _example(trainer: Any, pl_module: Any, batch: Any, config: ReinitConfig) -> Example:
    if batch is None:
        raise ValueError("no batch was kept to try it on: there was none, or it cannot be copied")
    batch = mapped_tensors(batch, lambda tensor: tensor.to(pl_module.device))
    on_training_batches = config.every_n_train_steps is not None
    return Example(pl_module, batch, step_of(trainer, pl_module, on_training_batches))
