"""Does the diagnosis name the cause that was planted, and say nothing where there is none?

``python -m tests.benchmarks.diagnosis --seeds 10 --output tests/benchmarks/results/diagnosis.json``
trains 20 kinds of networks and causes, each with so many seeds, and prints the table of the README.
The thresholds were chosen on seeds 0 to 2; ``--first-seed 100`` takes none of these.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from tests.benchmarks.planted_causes import CAUSES, NETS, Net, trained
from tests.benchmarks.result_file import write_results


def named(net: Net, cause: str, seeds: range) -> Counter[str]:
    """Return how often which cause was named."""
    with tempfile.TemporaryDirectory() as folder:
        reports = [trained(net, CAUSES[cause], seed, folder) for seed in seeds]
    return Counter(report.cause or "nothing" for report in reports)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Counter[str]]]:
    """Train, print the table and write the results.

    Args:
        arguments: Command line arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--causes", nargs="*", default=list(CAUSES), choices=list(CAUSES))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    print("| planted | the right one | " + " | ".join(NETS) + " |")
    print("| --- | --- |" + " --- |" * len(NETS))
    found: dict[str, dict[str, Counter[str]]] = {}
    for cause in options.causes:
        found[cause] = {net: named(net, cause, seeds) for net in NETS}
        right = CAUSES[cause].expected or "nothing"
        hits = [f"{found[cause][net][right]} of {options.seeds}" for net in NETS]
        print(f"| {cause} | {right} | " + " | ".join(hits) + " |", flush=True)
    write_results(options.output, seeds=options.seeds, first_seed=options.first_seed, named=found)
    return found


if __name__ == "__main__":
    main()
