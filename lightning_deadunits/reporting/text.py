"""A report as text: one line per layer, no wider than the terminal, then what deserves attention.

Where there is little room, fewer steps are named at which units died, then the column "made by" is
left out, then the names of layers are shortened where they are alike; at last
the dates go below the table. Numbers are never shortened.
"""

from __future__ import annotations

import shutil
import textwrap

from lightning_deadunits.reporting.figures import UNKNOWN, count, percent, rate
from lightning_deadunits.reporting.report import DeadUnitsReport, LayerReport
from lightning_deadunits.reporting.short_names import short_names
from lightning_deadunits.reporting.wording import STEPS_SHOWN, wholly_dead

_HEADER = ("layer", "units", "dead", "zero rate", "made by", "dead since")
_LEFT = {"layer", "made by", "dead since"}
_GAP = "  "
_NO_TERMINAL = 120
"""Columns where the text goes to a file or a notebook."""
_ALWAYS = _HEADER[:4]
_LEAST_NAME = 12
_MANY_MAKERS = 2

Row = dict[str, str]


def render(report: DeadUnitsReport, width: int | None = None) -> str:
    """Render a report as a table that reads well in a terminal.

    Args:
        report: The report.
        width: Columns there are; those of the terminal by default.
    """
    width = width or shutil.get_terminal_size(fallback=(_NO_TERMINAL, 24)).columns
    layers = list(report.layers.values())
    rows = [*map(row_of, layers), _total(report)]
    columns = [name for name in _HEADER if name in _ALWAYS or any(row[name] for row in rows)]
    if not _fit_dates(rows, layers, columns, width):
        columns = [name for name in columns if name != "made by"]
    dated = _fit_dates(rows, layers, columns, width)
    if not dated:
        spare = width - _length(_widths(rows, columns)) + _widths(rows, columns)["layer"]
        if spare < _LEAST_NAME:
            columns = [name for name in columns if name != "dead since"]
            spare = width - _length(_widths(rows, columns)) + _widths(rows, columns)["layer"]
        short = short_names((row["layer"] for row in rows), max(_LEAST_NAME, spare))
        for row in rows:
            row["layer"] = short[row["layer"]]
    beneath = [] if "dead since" in columns else _dates_beneath(layers, width)
    return "\n".join([*_table(rows, _widths(rows, columns)), *beneath, *_after(report)])


def _fit_dates(rows: list[Row], layers: list[LayerReport], columns: list[str], width: int) -> bool:
    """Name as many steps as there is room for, row by row; tell whether the table fits then."""
    others = _widths(rows, [name for name in columns if name != "dead since"])
    room = width - _length(others) - len(_GAP)
    for row, layer in zip(rows, layers, strict=False):
        told = [_since(layer, shown) for shown in range(STEPS_SHOWN, -1, -1)]
        row["dead since"] = next((text for text in told if len(text) <= room), told[-1])
    return _length(_widths(rows, columns)) <= width


def _dates_beneath(layers: list[LayerReport], width: int) -> list[str]:
    """Say below the table since when units are dead, where there is no room beside it."""
    told = [f"{it.name}: {text}" for it in layers if (text := _since(it, STEPS_SHOWN))]
    wrapped = [textwrap.fill(line, width, subsequent_indent="  ") for line in told]
    return ["", "dead since", *wrapped] if wrapped else []


def row_of(layer: LayerReport) -> Row:
    """Return the cells of one layer by their header, unshortened."""
    makers = [*layer.made_by[:_MANY_MAKERS]]
    if more := len(layer.made_by) - len(makers):
        makers.append(f"{more} more")
    seen = layer.observations > 0
    return {
        "layer": layer.name,
        "units": count(layer.num_units),
        "dead": share(len(layer.dead), layer.num_units) if seen else UNKNOWN,
        "zero rate": rate(layer.mean_zero_rate),
        "made by": ", ".join(makers),
        "dead since": _since(layer, STEPS_SHOWN),
    }


def share(dead: int, units: int) -> str:
    """Write how many units are dead, and which share that is."""
    return f"{count(dead)} ({percent(dead / units)})" if dead else "0"


def remarks(report: DeadUnitsReport) -> list[str]:
    """Return what there is to say beside the table."""
    said = [wholly_dead(name) for name in report.dead_layers]
    if report.diagnosis:
        said.append(report.diagnosis)
    if report.every_n_batches > 1:
        said.append(_of_sample(report))
    said += [
        f"NaN or infinite: {count(layer.nonfinite)} values of {name!r}, neither zero nor firing."
        for name, layer in report.layers.items()
        if layer.nonfinite
    ]
    said += [f"Not judged: {name!r}, {reason}." for name, reason in report.unjudged.items()]
    return said


def _total(report: DeadUnitsReport) -> Row:
    cells = dict.fromkeys(_HEADER, "")
    dead = share(report.num_dead, report.num_units) if report.num_units else UNKNOWN
    return {**cells, "layer": "total", "units": count(report.num_units), "dead": dead}


def _since(layer: LayerReport, shown: int) -> str:
    return layer.since(shown) if layer.observations else "not seen"


def _widths(rows: list[Row], columns: list[str]) -> dict[str, int]:
    return {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}


def _length(widths: dict[str, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)


def _table(rows: list[Row], widths: dict[str, int]) -> list[str]:
    rule = "-" * _length(widths)
    *layers, total = [_line(row, widths) for row in rows]
    return [_line({name: name for name in _HEADER}, widths), rule, *layers, rule, total]


def _after(report: DeadUnitsReport) -> list[str]:
    said = remarks(report)
    return ["", *said] if said else []


def _line(row: Row, widths: dict[str, int]) -> str:
    cells = [
        row[name].ljust(width) if name in _LEFT else row[name].rjust(width)
        for name, width in widths.items()
    ]
    return _GAP.join(cells).rstrip()


def _of_sample(report: DeadUnitsReport) -> str:
    """Say that not all was counted, and what a unit that was not seen firing may yet do."""
    told = f"Sampled: of every {report.every_n_batches} batches one was counted."
    seen = [layer for layer in report.layers.values() if layer.observations]
    if not seen:
        return told
    least = min(seen, key=lambda layer: layer.observations)
    return (
        f"{told} A unit not seen firing in n independent values fires at most 3/n of the time, at "
        f"95 %: {least.most_unseen:.2g} or less, by the {least.observations} values per unit of "
        f"{least.name!r}."
    )
