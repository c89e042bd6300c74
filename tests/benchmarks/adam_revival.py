"""Do units revived under Adam stay alive? What to do with the optimizer's memory of them.

A learner of 64 ReLU units in its second layer loses 24 of them at the start, learns for 3000 steps,
has its dead units re-initialised, and learns for 3000 more. Policies differ only in what becomes
of Adam's moments and step count. Reported: units dead on 4096 fresh inputs at the end, how many of
the revived are among them, and the validation loss relative to that before the revival, at the end
and on the way.

Run with::

    python -m tests.benchmarks.adam_revival --output tests/benchmarks/results/adam_revival.json
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_deadunits import reinit_dead_units
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory, reset_
from lightning_deadunits.reinit.weights import WeightSlice
from tests.benchmarks.result_file import mean_and_ci, write_results

KILLED, STEPS, BATCH, LOOK = 24, 3000, 128, 50


@dataclass(frozen=True)
class Learner:
    """A 16-64-64-4 ReLU network and its optimizer."""

    model: nn.Sequential
    optimizer: torch.optim.Adam

    @classmethod
    def new(cls) -> Learner:
        layers = (nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        model = nn.Sequential(*layers)
        with torch.no_grad():
            model[2].bias[:KILLED] = -50.0
        return cls(model, torch.optim.Adam(model.parameters(), lr=1e-3))

    def dead(self, inputs: Tensor) -> Tensor:
        """Indices of the second layer's units that fire on no input."""
        with torch.no_grad():
            return (self.model[:4](inputs) == 0).all(0).nonzero().squeeze(1)


class Policy(Protocol):
    """Gives some units of the learner's second layer a new life, or does not."""

    def __call__(self, learner: Learner, units: Tensor, seen: Tensor) -> None: ...


def slices(learner: Learner, units: Tensor) -> list[WeightSlice]:
    """What feeds the units, and what reads them."""
    hidden, out = learner.model[2], learner.model[4]
    rows = [WeightSlice.along(weight, {0: units}) for weight in (hidden.weight, hidden.bias)]
    return [*rows, WeightSlice.along(out.weight, {1: units})]


def revive(learner: Learner, units: Tensor) -> list[WeightSlice]:
    """Fresh incoming weights from the layer's own distribution, silent outgoing ones."""
    fresh = nn.Linear(64, 64)
    weight, bias, outgoing = slices(learner, units)
    weight.write_(weight.parameter, weight.read(fresh.weight))
    bias.write_(bias.parameter, bias.read(fresh.bias))
    outgoing.write_(outgoing.parameter, 0.0)
    return [weight, bias, outgoing]


def no_reset(learner: Learner, units: Tensor, seen: Tensor) -> None:
    """Leave dead units dead."""


def stale_moments(learner: Learner, units: Tensor, seen: Tensor) -> None:
    """Revive, and leave Adam's memory of the dead units in place."""
    revive(learner, units)


def zeroed_moments(learner: Learner, units: Tensor, seen: Tensor) -> None:
    """Revive, and zero the moments."""
    reset_([learner.optimizer], revive(learner, units))


def mean_moments(learner: Learner, units: Tensor, seen: Tensor) -> None:
    """Revive, and give the moments the mean of those of the other weights."""
    for weights in revive(learner, units):
        others = torch.ones(weights.parameter.numel(), dtype=torch.bool)
        others[weights.positions] = False
        state = learner.optimizer.state[weights.parameter]
        for tensor in (state["exp_avg"], state["exp_avg_sq"]):
            weights.write_(tensor, float(tensor.flatten()[others].mean()))


def whole_tensor_step(learner: Learner, units: Tensor, seen: Tensor) -> None:
    """Zero the moments, and let whole parameters count their steps from zero."""
    zeroed_moments(learner, units, seen)
    for weights in slices(learner, units):
        learner.optimizer.state[weights.parameter]["step"].zero_()


def per_unit_step(learner: Learner, units: Tensor, seen: Tensor) -> None:
    """Zero the moments, and let the fresh weights alone count from zero."""
    OptimizerMemory([learner.optimizer]).forget_(revive(learner, units))


def this_package(learner: Learner, units: Tensor, seen: Tensor) -> None:
    """Do what a user does: the same, and biases such that half of the example fires."""
    dead = {"3": units.tolist()}
    done = reinit_dead_units(learner.model, dead, seen[:8], optimizers=[learner.optimizer])
    if done.reinitialised != dead:
        raise RuntimeError(f"Expected all of {dead} to be re-initialised, but got: {done}")


POLICIES: dict[str, Policy] = {
    "no reset": no_reset,
    "stale moments": stale_moments,
    "zeroed moments": zeroed_moments,
    "mean moments": mean_moments,
    "whole-tensor step": whole_tensor_step,
    "per-unit step": per_unit_step,
    "reinit_dead_units": this_package,
}


@dataclass(frozen=True)
class Outcome:
    """One run: units dead at the revival and at the end, and the losses, relative to before."""

    dead_before: int
    dead_after: int
    died_again: int
    relative_loss: list[float]


def new_teacher() -> nn.Module:
    teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
    for parameter in teacher.parameters():
        parameter.requires_grad_(False).mul_(3)
    return teacher


def run(seed: int) -> dict[str, Outcome]:
    """Train once up to the revival, then on from there under every policy."""
    torch.manual_seed(seed)
    teacher, learner = new_teacher(), Learner.new()
    inputs = torch.randn(4096, 16)
    for _ in steps(learner, teacher, seed):
        pass
    # Model and optimizer in one copy: the optimizer knows its parameters by identity.
    return {
        name: go_on(policy, deepcopy(learner), teacher, inputs, seed)
        for name, policy in POLICIES.items()
    }


def go_on(
    policy: Policy, learner: Learner, teacher: nn.Module, inputs: Tensor, seed: int
) -> Outcome:
    before, units = validation_loss(learner, teacher, inputs), learner.dead(inputs)
    torch.manual_seed(seed + 1000)
    policy(learner, units, inputs)
    losses = [
        validation_loss(learner, teacher, inputs) / before
        for step in steps(learner, teacher, seed + 2000)
        if step % LOOK == 0
    ]
    dead = learner.dead(inputs)
    again = int(torch.isin(units, dead).sum())
    return Outcome(len(units), len(dead), again, losses)


def steps(learner: Learner, teacher: nn.Module, seed: int) -> Iterator[int]:
    """Train; yield the number of steps after each."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, STEPS + 1):
        x = torch.randn(BATCH, 16, generator=generator)
        learner.optimizer.zero_grad()
        nn.functional.mse_loss(learner.model(x), teacher(x)).backward()
        learner.optimizer.step()
        yield step


def validation_loss(learner: Learner, teacher: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.mse_loss(learner.model(inputs), teacher(inputs)))


def summary(outcomes: Iterable[Outcome]) -> dict[str, object]:
    runs = list(outcomes)
    return {
        "dead_before": mean_and_ci([r.dead_before for r in runs]),
        "dead_after": mean_and_ci([r.dead_after for r in runs]),
        "died_again": mean_and_ci([r.died_again for r in runs]),
        "relative_loss": mean_and_ci([r.relative_loss[-1] for r in runs]),
        "curve": [
            mean_and_ci(losses) for losses in zip(*(r.relative_loss for r in runs), strict=True)
        ],
    }


def _run(seed: int) -> dict[str, Outcome]:
    # By its full name: a spawned process knows nothing of what was run as a script.
    from tests.benchmarks import adam_revival

    torch.set_num_threads(1)
    return adam_revival.run(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(_run, range(arguments.seeds)))
    table = {name: summary(outcomes[name] for outcomes in runs) for name in POLICIES}
    for name, row in table.items():
        print(f"{name:20s}", {key: value for key, value in row.items() if key != "curve"})
    sizes = {"seeds": arguments.seeds, "steps": STEPS, "look": LOOK}
    write_results(arguments.output, **sizes, policies=table)


if __name__ == "__main__":
    main()
