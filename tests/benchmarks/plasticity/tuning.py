"""Give every rule the same number of settings to choose from, then run its choice on fresh seeds.

Nine settings per rule, problem and optimizer. A rule with something of its own to set gets three
learning rates times three settings of its own; one without gets nine learning rates between the
same ends. All are run on the seeds from 1000 on; the best mean score wins, and is run on the seeds
from 0 on, which no setting has seen. "random units" shares the settings of ours, and chooses its
own among them; it is run beside that lane of ours whose number of resets it copies.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.plasticity.control import Balancing, balance
from tests.benchmarks.plasticity.problems import PROBLEMS, Problem
from tests.benchmarks.plasticity.rules import RULES, made
from tests.benchmarks.plasticity.training import learn
from tests.benchmarks.result_file import machine

CONTROL = "balancing poles"
OPTIMIZERS = ("SGD", "Adam")
TUNED, FIRST_TUNED = 3, 1000

ALL: dict[str, Problem | Balancing] = {**PROBLEMS, CONTROL: Balancing()}

RATES: dict[tuple[str, str], tuple[float, float, float]] = {
    ("slowly-changing regression", "SGD"): (0.003, 0.01, 0.03),
    ("slowly-changing regression", "Adam"): (0.001, 0.003, 0.01),
    ("online permuted digits", "SGD"): (0.03, 0.1, 0.3),
    ("online permuted digits", "Adam"): (0.001, 0.003, 0.01),
    ("random labels", "SGD"): (0.03, 0.1, 0.3),
    ("random labels", "Adam"): (0.001, 0.003, 0.01),
    ("class-incremental digits", "SGD"): (0.03, 0.1, 0.3),
    ("class-incremental digits", "Adam"): (0.001, 0.003, 0.01),
    (CONTROL, "SGD"): (0.03, 0.1, 0.3),
    (CONTROL, "Adam"): (0.001, 0.003, 0.01),
}

_EVERY = ({"every": 20.0}, {"every": 100.0}, {"every": 500.0})
_DORMANT = (
    {"every": 100.0, "tau": 0.025},
    {"every": 100.0, "tau": 0.1},
    {"every": 1000.0, "tau": 0.1},
)
OWN: dict[str, tuple[dict[str, float], ...]] = {
    "random units": _EVERY,
    "ours": _EVERY,
    "ReDo": _DORMANT,
    "ReGraMa": _DORMANT,
    "ours, dormant": _DORMANT,
    "continual backprop": tuple({"rate": r, "maturity": 100.0} for r in (1e-5, 1e-4, 1e-3)),
    "Self-Normalized Resets": (
        {"eta": 1e-2, "floor": 20.0},
        {"eta": 1e-3, "floor": 50.0},
        {"eta": 1e-4, "floor": 100.0},
    ),
    "L2-Init": tuple({"strength": s} for s in (1e-5, 1e-4, 1e-3)),
}


_PRICE = {"random units": 1.7, "continual backprop": 1.9, "Self-Normalized Resets": 1.4}


@dataclass(frozen=True)
class Job:
    """One cell of the table: a rule on a problem under an optimizer.

    Args:
        problem: Name of the problem.
        optimizer: "SGD" or "Adam".
        rule: Name of the rule.
        seeds: How many seeds the chosen setting is run on.
        share: Share of the problem's tasks to run, for trials.
    """

    problem: str
    optimizer: str
    rule: str
    seeds: int
    share: float = 1.0

    @property
    def name(self) -> str:
        """A file name."""
        words = f"{self.problem} {self.optimizer} {self.rule}"
        return words.lower().replace(",", "").replace(" ", "_")

    @property
    def seconds(self) -> float:
        """Roughly how long it takes; only the order matters."""
        slow = {"slowly-changing regression": 160.0, CONTROL: 55.0}.get(self.problem, 35.0)
        return slow * _PRICE.get(self.rule, 1.0)

    def tasks(self) -> int:
        """How many tasks the chosen setting is run on."""
        tasks = ALL[self.problem].tasks
        # A million steps under SGD, as published; 400 000 under Adam, which is twice as slow here.
        slow = self.optimizer == "Adam" and self.problem == "slowly-changing regression"
        return max(2, round(tasks * self.share * (0.4 if slow else 1.0)))


def settings(job: Job) -> list[dict[str, float]]:
    """Return the nine settings that a job chooses from."""
    low, middle, high = RATES[job.problem, job.optimizer]
    if job.rule in OWN:
        return [{"rate": r} | own for r, own in _pairs((low, middle, high), OWN[job.rule])]
    rates = [low * (high / low) ** (i / 8) for i in range(9)]
    return [{"rate": float(f"{rate:.3g}")} for rate in rates]


def _pairs(
    rates: tuple[float, ...], own: tuple[dict[str, float], ...]
) -> list[tuple[float, dict[str, float]]]:
    # "rate" is the learning rate; continual backprop's own is kept apart.
    renamed = [{("share" if k == "rate" else k): v for k, v in one.items()} for one in own]
    return list(product(rates, renamed))


def run(job: Job, chosen: list[dict[str, float]], seeds: list[int], tasks: int) -> Outcome:
    """Train the lanes of some settings, every setting on every seed.

    Args:
        job: What is learnt, and by which rule.
        chosen: The settings.
        seeds: Consecutive seeds.
        tasks: How many tasks.
    """
    half = job.rule == "random units"
    lanes = [setting for setting in chosen for _ in seeds] * (1 + half)
    given = {key: [lane[key] for lane in lanes] for key in chosen[0]}
    rates = torch.tensor(given.pop("rate"))
    if "share" in given:
        given["rate"] = given.pop("share")
    rule, problem = made(job.rule, given), ALL[job.problem]
    adam = job.optimizer == "Adam"
    if isinstance(problem, Balancing):
        scores = balance(problem, rule, seeds, rates, adam, tasks)
    else:
        scores = learn(problem, rule, seeds, rates, adam, tasks)
    own = slice(len(lanes) // 2 if half else 0, None)
    shape = (len(chosen), len(seeds))
    return Outcome(scores[:, own].unflatten(1, shape), rule.resets[own].view(shape))


@dataclass(frozen=True)
class Outcome:
    """What came of some settings.

    Args:
        scores: Of every task, shape ``(tasks, settings, seeds)``.
        resets: Units re-initialised, shape ``(settings, seeds)``.
    """

    scores: Tensor
    resets: Tensor

    def final(self, last: int | None) -> Tensor:
        """Return the scores that count, shape ``(settings, seeds)``."""
        counted = self.scores if last is None else self.scores[-last:]
        # A lane that has diverged is worse than any other.
        return counted.mean(0)


def worth(final: Tensor, higher_is_better: bool) -> Tensor:
    """Return how good each setting is, the mean over seeds; diverged ones are worst."""
    signed = final if higher_is_better else -final
    return signed.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf).mean(1)


def tuned(job: Job) -> dict[str, Any]:
    """Choose a setting on some seeds, run it on others; return all that the table needs."""
    start, problem = time.perf_counter(), ALL[job.problem]
    candidates, tasks = settings(job), job.tasks()
    share = 0.2 if job.problem == "slowly-changing regression" else 0.5
    trial_tasks = max(2, round(tasks * share))
    last = None if problem.last is None else max(1, trial_tasks // 4)
    trial = run(job, candidates, [FIRST_TUNED + i for i in range(TUNED)], trial_tasks)
    trial_final = trial.final(last)
    best = int(worth(trial_final, problem.higher_is_better).argmax())
    outcome = run(job, [candidates[best]], list(range(job.seeds)), tasks)
    final = outcome.final(None if problem.last is None else max(1, round(tasks * 0.1)))
    return {
        "problem": job.problem,
        "optimizer": job.optimizer,
        "rule": job.rule,
        "setting": candidates[best],
        "tasks": tasks,
        "steps_per_task": problem.steps,
        "final": rounded(final[0]),
        "resets": outcome.resets[0].tolist(),
        "curve": rounded(outcome.scores[:, 0].mean(1)),
        "tuning": {
            "settings": candidates,
            "seeds": TUNED,
            "tasks": trial_tasks,
            "scores": rounded(trial_final.mean(1)),
        },
        "seconds": round(time.perf_counter() - start, 1),
    }


def worked(job: Job, folder: Path) -> str:
    """Run one job in a process of its own, and write its result."""
    torch.set_num_threads(1)
    result = {"machine": machine(), **tuned(job)}
    path = folder / f"{job.name}.json"
    # Written beside and renamed: a run that is cut off leaves no half file.
    path.with_suffix(".part").write_text(json.dumps(result) + "\n")
    path.with_suffix(".part").replace(path)
    return f"{job.name:70s} {result['seconds']:7.1f} s"


def rounded(values: Tensor) -> list[float]:
    """Return a row of figures with as many digits as are worth writing down."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def jobs(
    seeds: int,
    share: float = 1.0,
    problems: list[str] | None = None,
    rules: list[str] | None = None,
) -> list[Job]:
    """Return the cells of the table, those that take longest first."""
    chosen = product(problems or ALL, OPTIMIZERS, rules or RULES)
    cells = [Job(problem, optimizer, rule, seeds, share) for problem, optimizer, rule in chosen]
    return sorted(cells, key=lambda job: -job.seconds)
