"""Write down what came of the jobs: one result file, tables in Markdown, who is best or tied.

All rules see the same seeds, so differences are taken seed by seed: their intervals are narrower
than those of the scores suggest. A rule is *tied with the best* if the 95 % interval of its paired
difference to the best one holds zero.

Run with::

    python -m tests.benchmarks.plasticity.table --jobs logs/plasticity \
        --output tests/benchmarks/results/plasticity.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from tests.benchmarks.plasticity.rules import RULES
from tests.benchmarks.plasticity.tuning import ALL, OPTIMIZERS

RESULTS = Path(__file__).parents[1] / "results" / "plasticity.json"
CONTROLS = ("nothing", "random units")

Cell = dict[str, Any]


def interval(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Mean over seeds and the half width of its 95 % interval (Student's t)."""
    spread = values.std(ddof=1) / len(values) ** 0.5
    half = float(student.ppf(0.975, len(values) - 1) * spread)
    return {"mean": float(f"{values.mean():.5g}"), "ci95": float(f"{half:.3g}")}


def column(cells: dict[str, Cell], higher_is_better: bool) -> dict[str, Cell]:
    """Return what is said of each rule on one problem under one optimizer."""
    finals = {rule: np.array(cell["final"], dtype=float) for rule, cell in cells.items()}
    sign = 1 if higher_is_better else -1
    best = max(finals, key=lambda rule: sign * np.nan_to_num(finals[rule], nan=-sign * 1e9).mean())
    return {
        rule: {
            **interval(final),
            "tied_with_the_best": rule == best or _tied(final - finals[best]),
            "best": rule == best,
            **{
                f"minus {control}": interval(final - finals[control])
                for control in CONTROLS
                if control in finals and control != rule
            },
            "resets_per_run": round(float(np.mean(cells[rule]["resets"])), 1),
            "setting": cells[rule]["setting"],
            "tuning": cells[rule]["tuning"],
            "per_seed": cells[rule]["final"],
            "curve": thinned(cells[rule]["curve"]),
        }
        for rule, final in finals.items()
    }


def _tied(difference: np.ndarray[Any, Any]) -> bool:
    found = interval(difference)
    return abs(found["mean"]) <= found["ci95"]


def thinned(curve: list[float], points: int = 50) -> list[float]:
    """Average a curve over neighbouring tasks, to at most so many points."""
    parts = np.array_split(np.array(curve), min(points, len(curve)))
    return [float(f"{part.mean():.4g}") for part in parts]


def gathered(folder: Path) -> dict[str, Any]:
    """Return all columns for which there are results, by problem and optimizer."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found: dict[str, Any] = {}
    for problem, optimizer in ((p, o) for p in ALL for o in OPTIMIZERS):
        own = {
            c["rule"]: c for c in cells if (c["problem"], c["optimizer"]) == (problem, optimizer)
        }
        if not own:
            continue
        first = next(iter(own.values()))
        found[f"{problem}, {optimizer}"] = {
            "higher_is_better": ALL[problem].higher_is_better,
            "seeds": len(first["final"]),
            "tasks": first["tasks"],
            "steps": first["tasks"] * first["steps_per_task"],
            "machine": first["machine"],
            "rules": column(
                {rule: own[rule] for rule in RULES if rule in own}, ALL[problem].higher_is_better
            ),
        }
    return found


def markdown(columns: dict[str, Any]) -> str:
    """Return the table: a row per rule, a column per problem and optimizer."""
    head = ["rule", *columns]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --- |" * len(columns)]
    for rule in RULES:
        row = [_said(found["rules"].get(rule), found) for found in columns.values()]
        lines.append(f"| {rule} | {' | '.join(row)} |")
    return "\n".join(lines)


def _said(cell: Cell | None, found: dict[str, Any]) -> str:
    if cell is None:
        return "-"
    factor, digits = scale(found)
    said = f"{cell['mean'] * factor:.{digits}f} +- {cell['ci95'] * factor:.{digits}f}"
    return f"**{said}**" if cell["tied_with_the_best"] else said


def scale(found: dict[str, Any]) -> tuple[float, int]:
    """Return by what a column is multiplied, and how many digits it is worth."""
    largest = max(abs(cell["mean"]) for cell in found["rules"].values())
    if not found["higher_is_better"]:
        return 1.0, 3
    return (100.0, 1) if largest <= 1 else (1.0, 1)


def differences(columns: dict[str, Any], rules: tuple[str, ...] = ("ours", "ours, dormant")) -> str:
    """Return the paired differences of our rules to the controls, better ones positive."""
    lines = ["| problem | rule | minus nothing | minus random units |", "| --- | --- | --- | --- |"]
    for name, found in columns.items():
        factor, digits = scale(found)
        sign = 1 if found["higher_is_better"] else -1
        for rule in rules:
            said = [
                f"{sign * gap['mean'] * factor:+.{digits}f} +- {gap['ci95'] * factor:.{digits}f}"
                if (gap := found["rules"].get(rule, {}).get(f"minus {control}"))
                else "-"
                for control in CONTROLS
            ]
            lines.append(f"| {name} | {rule} | {' | '.join(said)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=Path, help="folder of the jobs; else the committed results")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    columns = gathered(options.jobs) if options.jobs else json.loads(RESULTS.read_text())["columns"]
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"columns": columns}, indent=1) + "\n")
    print(markdown(columns), differences(columns), sep="\n\n")
    return columns


if __name__ == "__main__":
    main()
