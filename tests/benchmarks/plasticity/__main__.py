"""Run the table of plasticity: every rule on every problem under SGD and Adam.

Run with (some two hours of one core in all; jobs that are done already are not run again)::

    python -m tests.benchmarks.plasticity --processes 16 --output logs/plasticity

and write the table from what there is with ``python -m tests.benchmarks.plasticity.table``.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.benchmarks.plasticity.rules import RULES
from tests.benchmarks.plasticity.tuning import ALL, OPTIMIZERS, jobs, worked


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.plasticity", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("logs/plasticity"))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--share", type=float, default=1.0, help="of the tasks, for a trial")
    parser.add_argument("--problems", nargs="+", choices=list(ALL))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--rules", nargs="+", choices=list(RULES))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = jobs(options.seeds, options.share, options.problems, options.rules)
    due = [
        job
        for job in wanted
        if job.optimizer in options.optimizers
        and not (options.output / f"{job.name}.json").exists()
    ]
    start = time.perf_counter()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(worked, job, options.output) for job in due]
        for number, done in enumerate(as_completed(running), 1):
            passed = time.perf_counter() - start
            print(f"{passed:6.0f} s {number}/{len(due)} {done.result()}", flush=True)


if __name__ == "__main__":
    main()
