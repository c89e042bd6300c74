"""The learner of slowly-changing regression, for many runs at once, and the seam for policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tests.benchmarks.slowly_changing import FAST, PERIOD, SLOW, Block, Floats, stream

INPUTS, UNITS, LEARNING_RATE, BIN = SLOW + FAST, 5, 0.01, 20_000


@dataclass
class Networks:
    """The learners of all runs, the run on the last axis.

    Args:
        weight: Incoming weights, shape ``(5, 20, R)``.
        bias: Biases of the units, shape ``(5, R)``.
        outgoing: Weights of the output, shape ``(5, R)``.
        offset: Bias of the output, shape ``(R,)``.
    """

    weight: Floats
    bias: Floats
    outgoing: Floats
    offset: Floats

    @classmethod
    def drawn(cls, generator: np.random.Generator, runs: int) -> Networks:
        """Kaiming-uniform weights and no biases, as the authors have it."""
        weight = fresh_weights(generator, UNITS * runs).reshape(UNITS, runs, INPUTS)
        outgoing = generator.uniform(-1, 1, (UNITS, runs)) * np.sqrt(3 / UNITS)
        return cls(
            np.ascontiguousarray(weight.transpose(0, 2, 1)),
            np.zeros((UNITS, runs), np.float32),
            outgoing.astype(np.float32),
            np.zeros(runs, np.float32),
        )

    def module(self, run: int) -> nn.Sequential:
        """Copy one run's network into a module."""
        module = nn.Sequential(nn.Linear(INPUTS, UNITS), nn.ReLU(), nn.Linear(UNITS, 1))
        self.fill_(module, run)
        return module

    def fill_(self, module: nn.Sequential, run: int) -> None:
        """Copy one run's network into a module that there is already."""
        arrays = (self.weight, self.bias, self.outgoing, self.offset)
        with torch.no_grad():
            for parameter, array in zip(module.parameters(), arrays, strict=True):
                parameter.copy_(torch.from_numpy(array[..., run].copy()).reshape(parameter.shape))

    def load_(self, run: int, module: nn.Sequential) -> None:
        """Copy a module back into one run's network."""
        arrays = (self.weight, self.bias, self.outgoing, self.offset)
        for parameter, array in zip(module.parameters(), arrays, strict=True):
            array[..., run] = parameter.detach().numpy().reshape(array[..., run].shape)


@dataclass(frozen=True)
class Window:
    """What the networks did since the policy was last asked.

    Args:
        steps: Training steps in the window.
        activity: Sum of each unit's activation over the window, shape ``(5, R)``.
        last: Activations at the last step, shape ``(5, R)``.
        inputs: The last inputs, up to 32, shape ``(n, 20, R)``.
    """

    steps: int
    activity: Floats
    last: Floats
    inputs: Floats


class Policy:
    """Decides every `every` steps what becomes of the units, and does it; 0 is never.

    The arrays of the networks are to be written in place. `Networks.module` and `Networks.load_`
    turn one run into an `nn.Sequential` and back, for policies that are written for modules.
    """

    every: int = 0

    def begin(self, networks: Networks) -> None:
        """Look at the networks before the first step."""

    def __call__(self, networks: Networks, window: Window) -> None:
        """Re-initialise what is due after a window."""


def fresh_weights(generator: np.random.Generator, units: int) -> Floats:
    """Kaiming-uniform incoming weights for ReLU, shape ``(units, 20)``."""
    drawn = generator.uniform(-1, 1, (units, INPUTS)) * np.sqrt(6 / INPUTS)
    return drawn.astype(np.float32)


@dataclass
class Training:
    """Steps all runs together by plain SGD on the squared error."""

    networks: Networks
    policy: Policy
    errors: list[NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._products = np.empty_like(self.networks.weight)
        self._activity = np.zeros_like(self.networks.bias)
        self.policy.begin(self.networks)

    def run(self, block: Block) -> None:
        """Learn one block; adds the squared errors summed over it, shape ``(R,)``."""
        inputs = np.concatenate([block.slow, block.fast[0]]).copy()
        total = np.zeros(block.target.shape[1])
        for i in range(PERIOD):
            inputs[SLOW:] = block.fast[i]
            activation, error = self._step(inputs, block.target[i])
            total += error * error
            self._activity += activation
            step = len(self.errors) * PERIOD + i + 1
            if self.policy.every and step % self.policy.every == 0:
                self._ask(block, i, activation)
        self.errors.append(total)

    def _step(self, inputs: Floats, target: Floats) -> tuple[Floats, Floats]:
        """Predict, then learn; gives the activations and the error before learning."""
        net, products = self.networks, self._products
        np.multiply(net.weight, inputs, out=products)
        activation = np.maximum(products.sum(1) + net.bias, 0)
        error = (net.outgoing * activation).sum(0) + net.offset - target
        step = np.float32(2 * LEARNING_RATE) * error
        back = net.outgoing * step * (activation > 0)
        net.outgoing -= activation * step
        net.offset -= step
        net.bias -= back
        net.weight -= np.multiply(back[:, None], inputs, out=products)
        return activation, error

    def _ask(self, block: Block, i: int, activation: Floats) -> None:
        first = max(0, i - 31)
        slow = np.broadcast_to(block.slow, (i + 1 - first, *block.slow.shape))
        inputs = np.concatenate([slow, block.fast[first : i + 1]], axis=1)
        window = Window(self.policy.every, self._activity, activation, inputs)
        self.policy(self.networks, window)
        self._activity = np.zeros_like(self._activity)


def learn(policy: Policy, runs: int, steps: int) -> NDArray[np.float64]:
    """Mean squared error of each bin and run, shape ``(steps / 20 000, runs)``."""
    if BIN % PERIOD or steps % BIN:
        raise ValueError(f"Expected `steps` to be a multiple of {BIN}, but got {steps}.")
    networks = Networks.drawn(np.random.default_rng(10_000), runs)
    training = Training(networks, policy)
    for block in islice(stream(range(runs)), steps // PERIOD):
        training.run(block)
    return np.reshape(training.errors, (steps // BIN, BIN // PERIOD, runs)).sum(1) / BIN
