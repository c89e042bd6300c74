"""The table of a validation to those loggers that take tables: W&B's and MLflow's.

By what their public interface offers rather than by their classes, so that neither is imported:
``WandbLogger.log_table``, and ``log_dict`` and ``log_text`` of the client that is MLFlowLogger's
``experiment``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_deadunits.reporting.report import DeadUnitsReport
from lightning_deadunits.reporting.text import render

NAME = "dead_units"
COLUMNS = ("layer", "made_by", "num_units", "num_dead", "dead_fraction", "zero_rate", "dead_since")
_WIDTH = 160


def log_tables(trainer: Any, report: DeadUnitsReport, step: int) -> None:
    """Log the table of a report to every logger that takes one.

    Args:
        trainer: The Trainer.
        report: The report.
        step: Training step of the validation.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    for logger in trainer.loggers:
        log_table = getattr(logger, "log_table", None)
        if callable(log_table):
            _to_wandb(log_table, report, step)
        elif hasattr(logger, "run_id") and hasattr(logger.experiment, "log_dict"):
            _to_mlflow(logger, report, step)


def rows(report: DeadUnitsReport) -> list[list[Any]]:
    """Return one row per layer, as :data:`COLUMNS` name them."""
    layers = report.to_dict(per_unit=False)["layers"]
    told = [
        {**figures, "layer": name, "made_by": ", ".join(figures["made_by"])}
        for name, figures in layers.items()
    ]
    return [[row[column] for column in COLUMNS] for row in told]


def _to_wandb(log_table: Callable[..., None], report: DeadUnitsReport, step: int) -> None:
    log_table(key=NAME, columns=list(COLUMNS), data=rows(report), step=step)


def _to_mlflow(logger: Any, report: DeadUnitsReport, step: int) -> None:
    client, run = logger.experiment, logger.run_id
    client.log_dict(run, report.to_dict(per_unit=False), f"{NAME}/step-{step:09d}.json")
    client.log_text(run, render(report, _WIDTH), f"{NAME}/latest.txt")
