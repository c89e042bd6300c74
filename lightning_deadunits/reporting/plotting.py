"""Pictures: a report as one strip per layer, a history as curves, in the colours of the tab."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_deadunits.reporting.course import TOTAL, Course
from lightning_deadunits.reporting.figures import (
    CURVE_COLOURS,
    DEAD_COLOUR,
    RATE_COLOURS,
    UNSEEN_COLOUR,
    count,
    percent,
)
from lightning_deadunits.reporting.report import DeadUnitsReport, LayerReport
from lightning_deadunits.reporting.short_names import short_names

_DEAD_TEXT = "#c2440a"
"""The colour of dead units, dark enough for small letters on white."""
_MUTED = "#5d6b7c"
_LONGEST_NAME = 32
_STRIP_INCHES = 0.32
_LEAST_INCHES = 2.3
"""Room for the legend of the colour bar, however few the strips."""


def draw(report: DeadUnitsReport, **kwargs: Any) -> Any:
    """Draw a report with matplotlib.

    Args:
        report: The report.
        **kwargs: Passed on to ``matplotlib.pyplot.figure``.

    Returns:
        The figure.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    plt = _pyplot("report.plot()")
    layers = list(report.layers.values())
    height = max(_LEAST_INCHES, 1.2 + _STRIP_INCHES * len(layers))
    kwargs.setdefault("figsize", (8, height))
    figure = plt.figure(layout="constrained", **kwargs)
    axes = np.atleast_1d(figure.subplots(max(1, len(layers)), 1, sharex=True))
    image = None
    short = short_names(report.layers, _LONGEST_NAME)
    for axis, layer in zip(axes, layers, strict=False):
        image = _strip(axis, layer, short[layer.name])
    axes[-1].set_xlabel("units of the layer, sorted by zero-activation rate")
    axes[-1].tick_params(bottom=True, labelbottom=True)
    if image is not None:
        _legend(figure, axes, image, report)
    return figure


def _strip(axis: Any, layer: LayerReport, name: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    rates = LinearSegmentedColormap.from_list("zero_rate", RATE_COLOURS)
    scale = rates.with_extremes(over=DEAD_COLOUR, bad=UNSEEN_COLOUR)
    # Dead units get a colour outside of the scale: 0.999 is alive and must not look dead.
    shown = np.sort(np.where(layer.dead_mask.numpy(), 2.0, layer.zero_rate.numpy()))
    image = axis.imshow(
        shown[None], aspect="auto", cmap=scale, vmin=0, vmax=1, extent=(0, 100, 0, 1),
        interpolation="nearest",
    )  # fmt: skip
    axis.set_yticks([])
    axis.tick_params(bottom=False, labelbottom=False)
    axis.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    dead = len(layer.dead)
    told = f"{count(dead)} of {count(layer.num_units)} dead" if layer.observations else "not seen"
    axis.text(
        1.01, 0.5, told, transform=axis.transAxes, va="center", fontsize=8,
        color=_DEAD_TEXT if dead else _MUTED,
    )  # fmt: skip
    return image


def _legend(figure: Any, axes: Any, image: Any, report: DeadUnitsReport) -> None:
    bar = figure.colorbar(image, ax=list(axes), extend="max", shrink=0.9, pad=0.14)
    bar.set_label("zero-activation rate (orange: dead)", fontsize=8)
    figure.suptitle(report.summary, fontsize=10)


def draw_course(course: Course, **kwargs: Any) -> Any:
    """Draw the dead fraction of every layer over the steps of training.

    Args:
        course: The figures of all validations.
        **kwargs: Passed on to ``matplotlib.pyplot.figure``.

    Returns:
        The figure.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    plt = _pyplot("history.plot()")
    kwargs.setdefault("figsize", (8, 4))
    figure = plt.figure(layout="constrained", **kwargs)
    axis = figure.subplots()
    chosen = _most_dead(course)
    short = short_names(chosen, _LONGEST_NAME)
    for layer, colour in zip(chosen, CURVE_COLOURS, strict=False):
        _curve(axis, course, layer, color=colour, label=short[layer])
    if len(course):
        _curve(axis, course, TOTAL, color="black", linestyle="--", label="all layers")
    axis.set_xlabel("training step")
    axis.set_ylabel("dead fraction")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: percent(value) if 0 <= value <= 1 else "")
    axis.spines[["top", "right"]].set_visible(False)
    if len(course):
        _mark_reinitialisations(axis, course)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _most_dead(course: Course) -> list[str]:
    """Return as many layers as there are colours, those that had most dead, in network order."""
    layers = course.layers
    worst = sorted(layers, key=lambda it: -max(f.dead_fraction for f in course.of(it)))
    chosen = set(worst[: len(CURVE_COLOURS)])
    return [layer for layer in layers if layer in chosen]


def _curve(axis: Any, course: Course, layer: str, **style: Any) -> None:
    figures = course.of(layer)
    points = [it.step for it in figures], [it.dead_fraction for it in figures]
    axis.plot(*points, marker="o" if len(figures) == 1 else None, **style)


def _mark_reinitialisations(axis: Any, course: Course) -> None:
    """Mark the first validation after each re-initialisation."""
    marks = [it for it in course.of(TOTAL) if it.reinitialised]
    if marks:
        steps, fractions = [it.step for it in marks], [it.dead_fraction for it in marks]
        label = "after re-initialisation"
        axis.plot(steps, fractions, "^", color=_MUTED, label=label, zorder=3)


def _pyplot(what: str) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs matplotlib: pip install matplotlib, or lightning-deadunits[plot]."
        ) from error
    return plt
