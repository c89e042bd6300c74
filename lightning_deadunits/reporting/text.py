"""A report as text: one line per layer, then what deserves attention."""

from __future__ import annotations

from lightning_deadunits.reporting.report import ALIVE, DeadUnitsReport, LayerReport

_HEADER = ("layer", "units", "dead", "zero rate", "dead since")
_STEPS_SHOWN = 3


def render(report: DeadUnitsReport) -> str:
    """Render a report as a table that reads well in a terminal."""
    rows = [_row(layer) for layer in report.layers.values()]
    rows.append(("total", str(report.num_units), _share(report.num_dead, report.num_units), "", ""))
    widths = [max(len(row[column]) for row in (_HEADER, *rows)) for column in range(len(_HEADER))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_line(_HEADER, widths), rule, *(_line(row, widths) for row in rows[:-1])]
    lines += [rule, _line(rows[-1], widths), *_remarks(report)]
    return "\n".join(line.rstrip() for line in lines)


def _row(layer: LayerReport) -> tuple[str, ...]:
    if not layer.observations:
        return (layer.name, str(layer.num_units), "?", "?", "saw no value")
    return (
        layer.name,
        str(layer.num_units),
        _share(len(layer.dead), layer.num_units),
        f"{layer.mean_zero_rate:.3f}",
        _since(layer),
    )


def _share(dead: int, units: int) -> str:
    return f"{dead} ({dead / units:.1%})" if dead else "0"


def _since(layer: LayerReport) -> str:
    """Say since when: born dead, and the steps at which units died, the earliest first."""
    if layer.dead_since is None or layer.born_dead is None:
        return ""
    parts = []
    born = int(layer.born_dead.sum())
    if born:
        parts.append(f"{born} born dead")
    later = layer.dead_since[(layer.dead_since != ALIVE) & ~layer.born_dead]
    steps = sorted(set(later.tolist()))
    parts += [f"{int((later == step).sum())} at step {step}" for step in steps[:_STEPS_SHOWN]]
    if len(steps) > _STEPS_SHOWN:
        parts.append(f"{int((later > steps[_STEPS_SHOWN - 1]).sum())} later")
    return ", ".join(parts)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, *figures, since = row
    cells = [name.ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(figures, widths[1:-1], strict=True)]
    return "  ".join([*cells, since])


def _remarks(report: DeadUnitsReport) -> list[str]:
    remarks = []
    for name in report.dead_layers:
        remarks.append(f"WHOLLY DEAD: nothing gets through {name!r}, the network is cut there.")
    if report.diagnosis:
        remarks.append(report.diagnosis)
    if report.every_n_batches > 1:
        remarks.append(_of_sample(report))
    for name, reason in report.unjudged.items():
        remarks.append(f"not judged: {name!r}, {reason}.")
    return ["", *remarks] if remarks else []


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
