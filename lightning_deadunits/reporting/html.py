"""A report in a notebook: the table of the terminal, with names unshortened."""

from __future__ import annotations

from html import escape

from lightning_deadunits.reporting.figures import count
from lightning_deadunits.reporting.report import DeadUnitsReport
from lightning_deadunits.reporting.text import remarks, row_of, share

_RIGHT = {"units", "dead", "zero rate"}


def render(report: DeadUnitsReport) -> str:
    """Render a report as HTML, without a colour of its own but for what is wholly dead."""
    rows = [row_of(layer) for layer in report.layers.values()]
    headers = ["layer", "units", "dead", "zero rate", "made by", "dead since"]
    columns = [it for it in headers if it in headers[:4] or any(row[it] for row in rows)]
    total = {"layer": "total", "units": count(report.num_units)}
    total["dead"] = share(report.num_dead, report.num_units)
    head = "".join(f"<th{_align(name)}>{name}</th>" for name in columns)
    body = "".join(_row(row, columns) for row in rows)
    said = "".join(f"<p>{escape(text)}</p>" for text in remarks(report))
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"<tfoot>{_row(total, columns)}</tfoot></table>{said}"
    )


def _row(row: dict[str, str], columns: list[str]) -> str:
    cells = "".join(f"<td{_align(it)}>{escape(row.get(it, ''))}</td>" for it in columns)
    return f"<tr>{cells}</tr>"


def _align(name: str) -> str:
    return f' style="text-align: {"right" if name in _RIGHT else "left"}"'
