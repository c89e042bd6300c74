"""Does re-initialising units keep a network able to learn? Slowly-changing regression.

The learner has 20 inputs, 5 ReLU units and 1 output, and sees 1 000 000 examples once, one at a
time. Policies differ in which units are re-initialised, when and how. Reported: the squared error
before each update, in bins of 20 000 steps; "final" is the mean of the last 5 bins. All policies
see the same runs, so a difference between two is far surer than their intervals suggest: the
result file has it beside the interval, over all steps and at the end, against some of them.

Run with (a minute per policy and 100 runs on one core)::

    python -m tests.benchmarks.continual --output tests/benchmarks/results/continual.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.continual_learner import Policy, learn
from tests.benchmarks.continual_policies import POLICIES
from tests.benchmarks.result_file import mean_and_ci, write_results

LAST_BINS = 5
REFERENCES = ("plain SGD", "ReDo 0.1 every 1000", "callback every 100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    table: dict[str, dict[str, Any]] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    for name in arguments.policies:
        start, policy = time.perf_counter(), POLICIES[name]()
        errors = learn(policy, arguments.runs, arguments.steps)
        curves[name] = errors
        table[name] = summary(errors, policy) | against(errors, curves)
        table[name]["seconds"] = round(time.perf_counter() - start)
        shown = {k: v for k, v in table[name].items() if k != "curve"}
        print(f"{name:32s}", shown, flush=True)
        # After each policy: a run that is stopped keeps what it has.
        sizes = {"runs": arguments.runs, "steps": arguments.steps}
        write_results(arguments.output, **sizes, policies=table)


def summary(errors: NDArray[np.float64], policy: Policy) -> dict[str, Any]:
    """Final error, error over all steps, the curve over bins, and how much was re-initialised."""
    revived = getattr(policy, "revived", 0) / errors.shape[1]
    return {
        "final": mean_and_ci(errors[-LAST_BINS:].mean(0)),
        "all_steps": mean_and_ci(errors.mean(0)),
        "first_bin": mean_and_ci(errors[0]),
        "revived_per_run": round(revived, 1),
        "curve": [mean_and_ci(error) for error in errors],
    }


def against(errors: NDArray[np.float64], curves: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Differences to the reference policies, run by run: over all steps, and in the last bins."""
    found = {}
    for name in REFERENCES:
        if name in curves:
            difference = errors - curves[name]
            found[f"minus {name}"] = mean_and_ci(difference.mean(0))
            found[f"final minus {name}"] = mean_and_ci(difference[-LAST_BINS:].mean(0))
    return found


if __name__ == "__main__":
    main()
