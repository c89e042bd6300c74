"""A report as a picture: one strip per layer, units sorted by rate, the dead ones unmistakable."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_deadunits.reporting.report import DeadUnitsReport, LayerReport

_DEAD = "#d1335b"
_UNSEEN = "#bdbdbd"
_SCALE = "cividis"
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
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "report.plot() needs matplotlib: pip install lightning-deadunits[plot]"
        ) from error
    layers = list(report.layers.values())
    height = max(_LEAST_INCHES, 1.2 + _STRIP_INCHES * len(layers))
    kwargs.setdefault("figsize", (8, height))
    figure = plt.figure(layout="constrained", **kwargs)
    axes = np.atleast_1d(figure.subplots(max(1, len(layers)), 1, sharex=True))
    image = None
    for axis, layer in zip(axes, layers, strict=False):
        image = _strip(axis, layer)
    axes[-1].set_xlabel("units of the layer, sorted by zero-activation rate")
    axes[-1].tick_params(bottom=True, labelbottom=True)
    if image is not None:
        _legend(figure, axes, image, report)
    return figure


def _strip(axis: Any, layer: LayerReport) -> Any:
    import matplotlib

    scale = matplotlib.colormaps[_SCALE].with_extremes(over=_DEAD, bad=_UNSEEN)
    # Dead units get a colour outside of the scale: 0.999 is alive and must not look dead.
    shown = np.sort(np.where(layer.dead_mask.numpy(), 2.0, layer.zero_rate.numpy()))
    image = axis.imshow(
        shown[None], aspect="auto", cmap=scale, vmin=0, vmax=1, extent=(0, 100, 0, 1),
        interpolation="nearest",
    )  # fmt: skip
    axis.set_yticks([])
    axis.tick_params(bottom=False, labelbottom=False)
    axis.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    axis.set_ylabel(layer.name, rotation=0, ha="right", va="center", fontsize=8)
    dead = len(layer.dead)
    axis.text(
        1.01, 0.5, f"{dead} of {layer.num_units} dead", transform=axis.transAxes, va="center",
        fontsize=8, color=_DEAD if dead else "#606060",
    )  # fmt: skip
    return image


def _legend(figure: Any, axes: Any, image: Any, report: DeadUnitsReport) -> None:
    bar = figure.colorbar(image, ax=list(axes), extend="max", shrink=0.9, pad=0.14)
    bar.set_label("zero-activation rate (red: dead)", fontsize=8)
    share = f"{report.num_dead} of {report.num_units} units are dead"
    figure.suptitle(share, fontsize=10)
