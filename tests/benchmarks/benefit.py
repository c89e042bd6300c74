"""Draws what re-initialisation is good for, from the result files of three benchmarks.

Run with::

    python -m tests.benchmarks.benefit --pictures .github/pictures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"
BIN = 20_000

# Okabe and Ito's colours, which everybody can tell apart; ours stands out.
SLOWLY_CHANGING = {
    "plain SGD": ("plain SGD", "#555555"),
    "continual backprop": ("continual backprop", "#0072b2"),
    "ReDo 0.1 every 1000": ("ReDo, every 1000 steps", "#009e73"),
    "callback every 100": ("this package, every 100 steps", "#d55e00"),
}
ADAM_REVIVAL = {
    "no reset": ("no re-initialisation", "#555555"),
    "mean moments": ("moments of the mean unit", "#cc79a7"),
    "zeroed moments": ("moments zeroed", "#0072b2"),
    "whole-tensor step": ("whole tensor back to step 0", "#009e73"),
    "reinit_dead_units": ("this package", "#d55e00"),
}


def curve(axis: Axes, x: Any, points: list[dict[str, float]], label: str, colour: str) -> None:
    """Draw means with their 95 % confidence band."""
    mean, half = (np.array([point[key] for point in points]) for key in ("mean", "ci95"))
    axis.plot(x, mean, color=colour, label=label, linewidth=1.6)
    axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def draw_slowly_changing(results: dict[str, Any], picture: Path) -> None:
    axis = new_axis()
    for name, (label, colour) in SLOWLY_CHANGING.items():
        points = results["policies"][name]["curve"]
        millions = (np.arange(len(points)) + 0.5) * BIN / 1e6
        curve(axis, millions, points, label, colour)
    axis.set(xlabel="million training steps", ylabel="squared error", ylim=(0.4, None))
    finish(axis, picture)


def draw_adam_revival(results: dict[str, Any], picture: Path) -> None:
    axis = new_axis()
    for name, (label, colour) in ADAM_REVIVAL.items():
        points = results["policies"][name]["curve"]
        steps = (np.arange(len(points)) + 1) * results["look"]
        curve(axis, steps, points, label, colour)
    axis.set(xlabel="training steps since the re-initialisation", ylabel="loss, relative to before")
    finish(axis, picture)


def draw_plasticity(results: dict[str, Any], picture: Path) -> None:
    """Draw every rule on every problem: mean and 95 % interval, better ones to the right."""
    columns = results["columns"]
    problems = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in columns))
    optimizers = list(dict.fromkeys(name.rsplit(", ", 1)[1] for name in columns))
    rules = list(max((found["rules"] for found in columns.values()), key=len))
    figure = plt.figure(figsize=(9, 2.5 * len(problems)), layout="constrained")
    axes = figure.subplots(len(problems), len(optimizers), squeeze=False, sharey=True)
    for row, problem in zip(axes, problems, strict=True):
        for axis, optimizer in zip(row, optimizers, strict=True):
            if found := columns.get(f"{problem}, {optimizer}"):
                panel(axis, found, f"{problem}, {optimizer}", rules)
            else:
                axis.set_visible(False)
    save(axes[0][0], picture)


def panel(axis: Axes, found: dict[str, Any], title: str, rules: list[str]) -> None:
    """Draw one problem under one optimizer, the rule on the vertical axis."""
    for place, rule in enumerate(rules):
        if (cell := found["rules"].get(rule)) is None:
            continue
        colour = "#d55e00" if rule.startswith("ours") else "#0072b2"
        colour = "#555555" if rule in ("nothing", "random units") else colour
        filled = colour if cell["tied_with_the_best"] else "white"
        options = {"color": colour, "markerfacecolor": filled, "capsize": 2, "markersize": 5}
        axis.errorbar(cell["mean"], place, xerr=cell["ci95"], fmt="o", **options)
    axis.set_yticks(range(len(rules)), rules)
    axis.set_title(title, fontsize=9)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()
    if not found["higher_is_better"]:
        axis.invert_xaxis()
        axis.set_xlabel("squared error (smaller to the right)", fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def new_axis() -> Axes:
    return plt.figure(figsize=(7.2, 3.4), layout="constrained").add_subplot()


def finish(axis: Axes, picture: Path) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    save(axis, picture)


def save(axis: Axes, picture: Path) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    axis.figure.savefig(picture, dpi=120)  # type: ignore[union-attr]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=Path(".github/pictures"))
    options = parser.parse_args(arguments)
    mpl.use("Agg")
    for draw, name in (
        (draw_slowly_changing, "continual"),
        (draw_adam_revival, "adam_revival"),
        (draw_plasticity, "plasticity"),
    ):
        results = json.loads((options.results / f"{name}.json").read_text())
        draw(results, options.pictures / f"{name}.png")


if __name__ == "__main__":
    main()
