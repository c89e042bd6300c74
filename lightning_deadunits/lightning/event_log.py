"""Events of re-initialisation: a line in the log, scalars, all of it in TensorBoard's Text tab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_deadunits.lightning.logging import log_now, writers
from lightning_deadunits.lightning.terminal import announce
from lightning_deadunits.reinit.report import ReinitReport, headline
from lightning_deadunits.reporting.report import DeadUnitsReport
from lightning_deadunits.tensorboard_plugin.writing import write_reinit


def log_event(
    trainer: Any,
    pl_module: Any,
    event: ReinitReport,
    report: DeadUnitsReport | None,
    step: int,
    prefixes: Sequence[str] = ("",),
) -> None:
    """Log how many units of each layer were re-initialised, and what was done in plain words.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        event: What was done.
        report: The last verdicts.
        step: At which step.
        prefixes: What the names of layers begin with in TensorBoard, for each series of verdicts:
            a unit's new life shows in all of them.
    """
    counts = {f"reinit/{name}": float(len(units)) for name, units in event.reinitialised.items()}
    log_now(trainer, pl_module, counts, step)
    say(trainer, headline(event), step, details=str(event))
    for writer in writers(trainer):
        for name, units in event.reinitialised.items():
            num_units = _num_units(report, name, units)
            for prefix in prefixes:
                write_reinit(writer, prefix + name, units, num_units, step)


def say(trainer: Any, line: str, step: int, details: str = "") -> None:
    """Say one line through the rank-zero logger, and the details in TensorBoard's Text tab."""
    if not line:
        return
    announce(trainer, line)
    text = details or line
    for writer in writers(trainer):
        writer.add_text("reinit", "\n".join(f"    {line}" for line in text.splitlines()), step)


def _num_units(report: DeadUnitsReport | None, name: str, units: list[int]) -> int:
    known = None if report is None else report.layers.get(name)
    return max(units) + 1 if known is None else known.num_units
