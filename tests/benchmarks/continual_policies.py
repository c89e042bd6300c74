"""Which units are re-initialised, when and how: this package's rules beside published ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_deadunits import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.revive import record_both
from lightning_deadunits.reinit.surgery.initialisation import initial_scales
from lightning_deadunits.reinit.training.schedule import Schedule
from tests.benchmarks.continual_learner import INPUTS, Networks, Policy, Window, fresh_weights
from tests.benchmarks.slowly_changing import Floats


@dataclass
class Callback(Policy):
    """What `DeadUnitCallback(reinit=ReinitConfig(every_n_train_steps=...))` does: its own code.

    Units are judged by the callback's schedule and re-initialised by its events, one network at a
    time, on 8 recent inputs as the callback keeps them. Only the counting of a window is the
    learner's, for all runs at once.

    Args:
        every: Steps of a window.
    """

    every: int
    revived: int = 0

    def __post_init__(self) -> None:
        self._config = ReinitConfig(every_n_train_steps=self.every)
        self._windows = 0

    def begin(self, networks: Networks) -> None:
        runs = range(networks.bias.shape[1])
        self._schedules = [Schedule(self._config) for _ in runs]
        self._modules = [networks.module(run) for run in runs]
        self._scales = [initial_scales(module.named_parameters()) for module in self._modules]

    def __call__(self, networks: Networks, window: Window) -> None:
        self._windows += 1
        for run, dead in enumerate(torch.from_numpy(window.activity.T == 0)):
            due = self._schedules[run].judge({"1": dead})
            if due:
                example = torch.from_numpy(window.inputs[-8:, :, run].copy())
                networks.load_(run, self._revived(run, networks, due, example))

    def _revived(
        self, run: int, networks: Networks, due: dict[str, list[int]], example: torch.Tensor
    ) -> nn.Sequential:
        module = self._modules[run]
        networks.fill_(module, run)
        event = Event(
            module,
            record_both(module, example),
            OptimizerMemory(),
            replace(self._config, seed=run),
            step=self._windows * self.every,
            scales=self._scales[run],
        )
        event.operate_(due)
        self._schedules[run].note(event.report)
        self.revived += event.report.num_reinitialised
        return module


@dataclass
class Scheduled(Policy):
    """Every so many steps, re-initialises the units that were dead, or dormant, ever since.

    Args:
        every: Steps between two looks, and that a look goes back.
        dormant_below: None for dead units, whose re-initialisation costs nothing. Otherwise ReDo
            (Sokar et al. 2023, "The dormant neuron phenomenon in deep reinforcement learning"):
            mean activation over the layer's mean at most this.
        bias: "zero"; "own", as `nn.Linear` draws it; "centred", such that half of the recent inputs
            make the unit fire; or "spread", such that a share of them does that is drawn from 0.05
            to 0.95.
        scale: Incoming weights relative to those at the start; `nn.Linear` itself draws them
            6**-0.5 times as large.
        seed: Of the generator of fresh weights.
    """

    every: int
    dormant_below: float | None = None
    bias: Literal["zero", "own", "centred", "spread"] = "zero"
    scale: float = 1.0
    seed: int = 0
    revived: int = 0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def __call__(self, networks: Networks, window: Window) -> None:
        if self.dormant_below is None:
            chosen = window.activity == 0
        else:
            chosen = window.activity <= self.dormant_below * window.activity.mean(0)
        units, runs = np.nonzero(chosen)
        fresh = fresh_weights(self._generator, len(units)) * np.float32(self.scale)
        networks.weight[units, :, runs] = fresh
        networks.bias[units, runs] = self._biases(fresh, window.inputs[:, :, runs])
        networks.outgoing[units, runs] = 0.0
        self.revived += len(units)

    def _biases(self, fresh: Floats, inputs: Floats) -> Floats:
        """Biases of fresh units, shape ``(n,)``; inputs of shape ``(steps, 20, n)``."""
        if self.bias in ("centred", "spread"):
            products = np.einsum("uj,tju->tu", fresh, inputs)
            if self.bias == "centred":
                return -np.median(products, axis=0)
            shares = self._generator.uniform(0.05, 0.95, len(fresh))
            chosen = [np.quantile(*pair) for pair in zip(products.T, shares, strict=True)]
            return -np.array(chosen, np.float32)
        drawn = self._generator.uniform(-1, 1, len(fresh)) * INPUTS**-0.5
        return (drawn * (self.bias == "own")).astype(np.float32)


# The authors start from Kaiming's bound sqrt(6 / 20), nn.Linear draws from sqrt(1 / 20).
_LINEAR = 6**-0.5


@dataclass
class ContinualBackprop(Policy):
    """Replaces at every step a small share of the mature units, those of least utility.

    Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632:768, equations
    1 to 6 and the released configuration for this problem.

    Args:
        rate: Share of the mature units replaced per step.
        maturity: Steps for which a new unit is safe.
        decay: Of the running averages of utility and activation.
        seed: Of the generator of fresh weights and of who is replaced when.
    """

    rate: float = 1e-4
    maturity: int = 100
    decay: float = 0.99
    seed: int = 0
    every: int = 1
    revived: int = 0
    _state: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def __call__(self, networks: Networks, window: Window) -> None:
        if not self._state:
            names = ("age", "utility", "mean")
            self._state = {name: np.zeros_like(networks.bias) for name in names}
        mean, utility = self._average(networks, window.last)
        eligible = self._state["age"] > self.maturity
        drawn = self._generator.random(eligible.shape[1])
        for run in np.nonzero(drawn < self.rate * eligible.sum(0))[0]:
            unit = int(np.where(eligible[:, run], utility[:, run], np.inf).argmin())
            self._replace(networks, unit, run, mean[unit, run])

    def _average(
        self, networks: Networks, last: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Bias-corrected running means of activation and of adaptable contribution."""
        state = self._state
        state["age"] += 1
        known = 1 - np.float32(self.decay) ** state["age"]
        state["mean"] += np.float32(1 - self.decay) * (last - state["mean"])
        mean = state["mean"] / known
        ease = np.abs(networks.weight).mean(1)
        contribution = np.abs(networks.outgoing) * np.abs(last - mean) / ease
        state["utility"] += np.float32(1 - self.decay) * (contribution - state["utility"])
        return mean, state["utility"] / known

    def _replace(self, networks: Networks, unit: int, run: int, mean: np.float32) -> None:
        networks.weight[unit, :, run] = fresh_weights(self._generator, 1)[0]
        networks.bias[unit, run] = 0.0
        # What the unit gave on average goes into the output's bias.
        networks.offset[run] += networks.outgoing[unit, run] * mean
        networks.outgoing[unit, run] = 0.0
        for array in self._state.values():
            array[unit, run] = 0.0
        self.revived += 1


POLICIES: dict[str, Callable[[], Policy]] = {
    "plain SGD": Policy,
    "continual backprop": ContinualBackprop,
    **{f"callback every {n}": (lambda n=n: Callback(n)) for n in (50, 100, 200, 1000)},
    "ReDo 0.1 every 1000": lambda: Scheduled(1000, dormant_below=0.1),
    "ReDo 0.1 every 500": lambda: Scheduled(500, dormant_below=0.1),
    **{f"dead every {n}": (lambda n=n: Scheduled(n)) for n in (50, 100, 200, 500, 1000, 20_000)},
    **{
        f"dead every {n}, centred": (lambda n=n: Scheduled(n, bias="centred"))
        for n in (50, 100, 200, 500, 1000)
    },
    "dead every 100, as nn.Linear": lambda: Scheduled(100, bias="own", scale=_LINEAR),
    "dead every 100, as nn.Linear, centred": lambda: Scheduled(100, bias="centred", scale=_LINEAR),
    "dead every 100, spread": lambda: Scheduled(100, bias="spread"),
    **{
        f"dead every 100, centred, x{scale}": (
            lambda scale=scale: Scheduled(100, bias="centred", scale=scale)
        )
        for scale in (1.5, 2.0)
    },
    **{
        f"ReDo {tau} every {n}, centred": (
            lambda tau=tau, n=n: Scheduled(n, dormant_below=tau, bias="centred")
        )
        for tau, n in ((0.1, 500), (0.1, 200), (0.05, 200), (0.02, 100))
    },
}
