"""Says what a report could not judge, so that silence never passes for health."""

from __future__ import annotations

import re
import warnings

from lightning_deadunits.reporting.report import DeadUnitsReport

_NUMBER = re.compile(r"(?<= )\d+")


def gaps(report: DeadUnitsReport) -> dict[str, str]:
    """Return every layer whose verdict is missing or doubtful, with the reason."""
    found, sampled = dict(report.unjudged), of_sample(report.every_n_batches)
    for name, layer in report.layers.items():
        if not layer.observations:
            found[name] = "it saw no value: it did not run, or on empty batches only" + sampled
        elif layer.nonfinite:
            found[name] = (
                f"{layer.nonfinite} of its values are NaN or infinite; "
                f"they count neither as zero nor as firing"
            )
        elif layer.axis_assumed:
            found[name] = (
                f"nothing tells on which axis its units are; axis {layer.unit_dim} was assumed"
            )
        elif layer.order_assumed:
            found[name] = (
                "nothing tells which weights make its units; its calls were told apart by their "
                "order alone, and other weights in another pass would be counted as these"
            )
    return found


def of_sample(every_n_batches: int) -> str:
    """Return what to add where something was not seen, though it may be in uncounted batches."""
    return f" (one of every {every_n_batches} batches was counted)" if every_n_batches > 1 else ""


def warn_of_cuts(report: DeadUnitsReport, told: set[str]) -> None:
    """Warn once of layers that are wholly dead.

    Args:
        report: The report.
        told: Layers that have been told before, and are not again; updated.
    """
    fresh = [name for name in report.dead_layers if name not in told]
    told.update(fresh)
    if fresh:
        warnings.warn(
            f"Every unit of {', '.join(fresh)} is dead: nothing gets through, the network is "
            f"cut there and what comes before it does not learn."
            + (f" {report.diagnosis}" if report.diagnosis else ""),
            stacklevel=3,
        )


def warn_of_gaps(report: DeadUnitsReport, told: set[str] | None = None) -> None:
    """Warn once of all that is missing or doubtful in a report.

    Args:
        report: The report.
        told: What has been told before, and is not again; updated.
    """
    lines = [f"{name}: {reason}" for name, reason in gaps(report).items()]
    # How many it is this time is no news, and told at every validation would be never heard.
    kinds = [_NUMBER.sub("", line) for line in lines]
    fresh = [line for line, kind in zip(lines, kinds, strict=True) if not told or kind not in told]
    if told is not None:
        told.update(kinds)
    if fresh:
        warnings.warn(
            "Dead units: these layers could not be judged, or only with a doubt.\n  "
            + "\n  ".join(fresh),
            stacklevel=3,
        )
