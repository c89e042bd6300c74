"""Small cases with known truth: what this package and its peers say.

``python -m tests.benchmarks.correctness`` prints a table for the README; ``--json`` writes it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.known_cases import CASES, Case, made, rank_of_two
from tests.benchmarks.peers import TOOLS, Tool, installed, versions
from tests.benchmarks.result_file import write_results
from tests.benchmarks.two_ranks import verdict_of_rank_0

TWO_RANKS = "two DDP ranks, 2 of 16 dead"


def ask(tool: type[Tool], case: Case) -> dict[str, Any]:
    """Return what a tool says, or how it fails."""
    try:
        return scored(tool.judge(case.model, case.batches, case.channels_last), case.truth)
    except Exception as error:
        return {"error": type(error).__name__}


def ask_two_ranks(tool: type[Tool]) -> dict[str, Any]:
    """Return what a tool says on two ranks, or how it fails."""
    try:
        return scored(verdict_of_rank_0(tool), made(rank_of_two, 0).truth)
    except Exception as error:
        return {"error": type(error).__name__}


def scored(said: list[float], truth: tuple[float, ...]) -> dict[str, Any]:
    """Compare layer by layer, and in total where a tool has one figure for several calls."""
    whole = sum(truth) / len(truth)  # layers of one case have the same number of units
    return {
        "said": [round(value, 4) for value in said],
        "right": len(said) == len(truth) and all(map(_same, said, truth)),
        "right_in_total": bool(said) and _same(sum(said) / len(said), whole),
    }


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, abs_tol=1e-6)


def cell(answer: dict[str, Any] | None) -> str:
    """Return an answer as a cell of the table; bold where it is right."""
    if answer is None:
        return "not installed"
    if "error" in answer:
        return f"raises {answer['error']}"
    said = ", ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in answer["said"])
    if answer["right"]:
        return f"**{said}**"
    return f"{said} (right in total)" if answer["right_in_total"] else said or "sees nothing"


def table(cases: dict[str, dict[str, Any]]) -> str:
    """Return all answers as a table in markdown."""
    names = [f"{tool.package}" for tool in TOOLS]
    rows = ["| case | truth | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for name, case in cases.items():
        truth = ", ".join(f"{value:g}" for value in case["truth"])
        cells = [cell(case["answers"].get(package)) for package in names]
        rows.append(f"| {name} | {truth} | " + " | ".join(cells) + " |")
    right = [
        sum(bool(case["answers"].get(name, {}).get("right")) for case in cases.values())
        for name in names
    ]
    asked = {name for case in cases.values() for name in case["answers"]}
    scores = [
        f"{number} of {len(cases)}" if name in asked else "not installed"
        for name, number in zip(names, right, strict=True)
    ]
    rows.append("| right | | " + " | ".join(scores) + " |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Ask every tool about every case, print the table and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-process", action="store_true", help="leave the two ranks out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases: dict[str, dict[str, Any]] = {}
    for name, make in CASES.items():
        answers = {tool.package: ask(tool, made(make)) for tool in installed()}
        cases[name] = {"truth": made(make).truth, "answers": answers}
    if not options.one_process:
        answers = {tool.package: ask_two_ranks(tool) for tool in installed()}
        cases[TWO_RANKS] = {"truth": made(rank_of_two, 0).truth, "answers": answers}
    print(table(cases))
    says = {tool.package: tool.says for tool in TOOLS}
    write_results(options.json, versions=versions(), says=says, cases=cases)
    return cases


if __name__ == "__main__":
    main()
