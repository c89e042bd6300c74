"""A report to Lightning's loggers: scalars to all, distributions and units to TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.distributed import silence_advice
from lightning_deadunits.reporting.report import DeadUnitsReport, LayerReport
from lightning_deadunits.tensorboard_plugin.verdict import write_verdict
from lightning_deadunits.tensorboard_plugin.writing import write_zero_rates

_BINS = 20


def scalars(report: DeadUnitsReport) -> dict[str, float]:
    """Return the scalars of a report, by the names under which they are logged.

    There are none where nothing was judged: a fraction of nothing is NaN, and stops an
    `EarlyStopping`.
    """
    if not report.num_units:
        return {}
    values = {"dead_fraction/total": report.dead_fraction}
    values["dead_layers"] = float(len(report.dead_layers))
    for name, layer in report.layers.items():
        values[f"dead_fraction/{name}"] = layer.dead_fraction
        values[f"zero_rate/{name}"] = layer.mean_zero_rate
    return values


def log_scalars(trainer: Any, pl_module: Any, report: DeadUnitsReport) -> None:
    """Log the scalars through the module, so that other callbacks can monitor them."""
    if trainer.barebones:
        return  # logging is off there, and warns
    values = scalars(report)
    # The counts were summed over processes already: every process logs the same.
    if trainer.world_size > 1:
        silence_advice(values)
    pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1)


def log_window(
    trainer: Any, pl_module: Any, report: DeadUnitsReport, prefix: str, step: int
) -> None:
    """Log the scalars of a window of training batches, all of them at its last batch.

    Not by way of the module alone: what it logs in a training step reaches the loggers at every
    ``log_every_n_steps`` only, which a window's end hits by chance.
    """
    values = {prefix + name: value for name, value in scalars(report).items()}
    log_now(trainer, pl_module, values, step)


def log_now(trainer: Any, pl_module: Any, values: dict[str, float], step: int) -> None:
    """Log values in the course of an epoch, for callbacks and loggers."""
    if trainer.barebones or not values:
        return
    pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False, batch_size=1)
    for logger in trainer.loggers:
        logger.log_metrics(metrics=values, step=step)  # by keyword, as Lightning calls it
        logger.save()


def write_report(
    trainer: Any,
    report: DeadUnitsReport,
    per_unit: bool,
    custom_scalars: bool,
    step: int,
    prefix: str = "",
) -> None:
    """Write the verdict, histograms and per-unit vectors to every TensorBoard logger.

    Args:
        trainer: The Trainer.
        report: What to write.
        per_unit: Whether to write the vector of rates that the Dead Units tab shows.
        custom_scalars: Whether to lay out one chart with all layers.
        step: At which step.
        prefix: What the names of the layers begin with.
    """
    for writer in writers(trainer):
        if per_unit and not prefix:
            write_verdict(writer, report.to_dict(per_unit=False), step)
        for layer in report.layers.values():
            name = prefix + layer.name
            if layer.observations:
                _write_histogram(writer, name, layer, step)
            if per_unit:
                write_zero_rates(
                    writer,
                    name,
                    layer.zero_rate.numpy(),
                    step,
                    dead_threshold=layer.dead_threshold,
                    made_by=layer.made_by,
                )
        if custom_scalars:
            _write_layout(writer, report)


def writers(trainer: Any) -> Iterator[SummaryWriter]:
    """Yield the writers of all TensorBoard loggers; elsewhere they are dummies."""
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    for logger in trainer.loggers:
        experiment = getattr(logger, "experiment", None)
        if isinstance(experiment, SummaryWriter):
            yield experiment


def _write_histogram(writer: SummaryWriter, name: str, layer: LayerReport, step: int) -> None:
    """Write rates with bins of our own: what is dead has one to itself, at the very end."""
    rates = layer.zero_rate.numpy()
    below = np.where(layer.dead_mask.numpy(), np.nan, rates)
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    counts, _ = np.histogram(below[~np.isnan(below)], bins=edges)
    dead = int(layer.dead_mask.sum())
    writer.add_histogram_raw(
        f"zero_rate_per_unit/{name}",
        min=0.0,
        max=1.0 + 1.0 / _BINS,
        num=layer.num_units,
        sum=float(rates.sum()),
        sum_squares=float(np.square(rates).sum()),
        # TensorBoard takes the first limit for the right edge of a bin without a left one.
        bucket_limits=[0.0, *edges[1:].tolist(), 1.0 + 1.0 / _BINS],
        bucket_counts=[0, *counts.tolist(), dead],
        global_step=step,
    )


def _write_layout(writer: SummaryWriter, report: DeadUnitsReport) -> None:
    names = list(report.layers)
    charts = {
        "dead fraction": ["Multiline", ["dead_fraction/total", *_tags("dead_fraction", names)]],
        "zero rate": ["Multiline", _tags("zero_rate", names)],
    }
    writer.add_custom_scalars({"dead units": charts})


def _tags(prefix: str, names: list[str]) -> list[str]:
    return [f"{prefix}/{name}" for name in names]
