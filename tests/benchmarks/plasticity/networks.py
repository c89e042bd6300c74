"""Many small ReLU networks that learn side by side, with gradients and optimizers written out.

All parameters of a lane lie in one row of one matrix, so that an optimizer's step is a handful of
calls whatever the number of layers; `Parameters` are the views into it, one pair per layer.
Optimizer memory has the same layout, so the same views reach the moments of a unit's weights.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Steps = Literal["kept", "unit", "tensor"]

BETAS, EPSILON, NORM_EPSILON = (0.9, 0.999), 1e-8, 1e-5


class Parameters(NamedTuple):
    """Views into rows of parameters: per layer weights ``(L, out, in)``, biases ``(L, 1, out)``.

    Layer norms add a scale and a shift of shape ``(L, 1, out)`` per hidden layer.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    scales: list[Tensor]
    shifts: list[Tensor]


def views(rows: Tensor, sizes: tuple[int, ...], layer_norm: bool) -> Parameters:
    """Cut rows of parameters of shape ``(L, P)`` into views, layer by layer."""
    lanes, place = len(rows), 0
    cut = Parameters([], [], [], [])

    def take(*shape: int) -> Tensor:
        nonlocal place
        count = math.prod(shape)
        place += count
        return rows[:, place - count : place].view(lanes, *shape)

    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        cut.weights.append(take(fan_out, fan_in))
        cut.biases.append(take(1, fan_out))
        if layer_norm and layer < len(sizes) - 2:
            cut.scales.append(take(1, fan_out))
            cut.shifts.append(take(1, fan_out))
    return cut


def count(sizes: tuple[int, ...], layer_norm: bool) -> int:
    """Return how many parameters a network has."""
    linear = sum(fan_out * (fan_in + 1) for fan_in, fan_out in pairwise(sizes))
    return linear + 2 * sum(sizes[1:-1]) * layer_norm


class Networks:
    """Networks of one architecture, one per lane.

    Args:
        sizes: Inputs, hidden units per layer, outputs.
        seeds: Seed of each lane; lanes of one seed start from the same weights.
        layer_norm: Whether the hidden layers are normalised before their ReLU.
    """

    def __init__(self, sizes: tuple[int, ...], seeds: list[int], layer_norm: bool = False) -> None:
        self.sizes, self.layer_norm = sizes, layer_norm
        self.rows = torch.zeros(len(seeds), count(sizes, layer_norm))
        self.gradients = torch.zeros_like(self.rows)
        self.own, self.gradient = self._views(self.rows), self._views(self.gradients)
        first = {seed: lane for lane, seed in reversed(list(enumerate(seeds)))}
        for lane, seed in enumerate(seeds):
            if first[seed] == lane:
                self._draw(lane, torch.Generator().manual_seed(10_000 + seed))
            else:
                self.rows[lane] = self.rows[first[seed]]
        self.inputs: list[Tensor] = []
        self._normed: list[tuple[Tensor, Tensor]] = []

    @property
    def lanes(self) -> int:
        return len(self.rows)

    @property
    def hidden(self) -> range:
        """Numbers of the hidden layers."""
        return range(len(self.sizes) - 2)

    def activations(self, layer: int) -> Tensor:
        """Return what a hidden layer gave at the last pass, shape ``(L, B, units)``."""
        return self.inputs[layer + 1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs of shape ``(L, B, out)`` for inputs of shape ``(L, B, in)``."""
        self.inputs, self._normed = [inputs], []
        for layer in self.hidden:
            before = self._linear(layer, self.inputs[-1])
            if self.layer_norm:
                before = self._norm(layer, before)
            self.inputs.append(before.clamp_(min=0))
        return self._linear(len(self.sizes) - 2, self.inputs[-1])

    def backward(self, back: Tensor) -> None:
        """Fill the gradients, given those at the outputs, shape ``(L, B, out)``."""
        for layer in reversed(range(len(self.sizes) - 1)):
            entering = self.inputs[layer]
            if back.shape[1] == 1:
                torch.mul(back.mT, entering, out=self.gradient.weights[layer])
                self.gradient.biases[layer].copy_(back)
            else:
                self.gradient.weights[layer].copy_(torch.bmm(back.mT, entering))
                torch.sum(back, 1, keepdim=True, out=self.gradient.biases[layer])
            if layer == 0:
                return
            back = torch.bmm(back, self.own.weights[layer]).mul_(entering > 0)
            if self.layer_norm:
                back = self._norm_backward(layer - 1, back)

    def bound(self, layer: int) -> float:
        """Largest weight of a layer at the start: Kaiming's for ReLU."""
        return math.sqrt(6 / self.sizes[layer])

    def _views(self, rows: Tensor) -> Parameters:
        return views(rows, self.sizes, self.layer_norm)

    def _draw(self, lane: int, generator: torch.Generator) -> None:
        for layer, weight in enumerate(self.own.weights):
            # A last layer is linear: without ReLU's gain, as the authors of the problems have it.
            gain = 1.0 if layer in self.hidden else math.sqrt(0.5)
            drawn = torch.rand(weight.shape[1:], generator=generator) * 2 - 1
            weight[lane] = drawn * self.bound(layer) * gain
        for scale in self.own.scales:
            scale[lane] = 1.0

    def _linear(self, layer: int, entering: Tensor) -> Tensor:
        return torch.baddbmm(self.own.biases[layer], entering, self.own.weights[layer].mT)

    def _norm(self, layer: int, before: Tensor) -> Tensor:
        variance, mean = torch.var_mean(before, -1, correction=0, keepdim=True)
        inverse = (variance + NORM_EPSILON).rsqrt()
        normed = (before - mean) * inverse
        self._normed.append((normed, inverse))
        return normed * self.own.scales[layer] + self.own.shifts[layer]

    def _norm_backward(self, layer: int, back: Tensor) -> Tensor:
        normed, inverse = self._normed[layer]
        torch.sum(back * normed, 1, keepdim=True, out=self.gradient.scales[layer])
        torch.sum(back, 1, keepdim=True, out=self.gradient.shifts[layer])
        back = back * self.own.scales[layer]
        centred = back - back.mean(-1, keepdim=True)
        return (centred - normed * (back * normed).mean(-1, keepdim=True)) * inverse


class Optimizer:
    """SGD or Adam for all lanes, with a learning rate each.

    Args:
        networks: Whose parameters are trained.
        rates: Learning rate of each lane, shape ``(L,)``.
        adam: Adam rather than plain SGD.
        steps: What becomes of Adam's step count where weights are drawn afresh: "kept"; counted
            anew by the fresh weights alone ("unit"); or by the whole of every tensor that has some
            ("tensor").
    """

    def __init__(self, networks: Networks, rates: Tensor, adam: bool, steps: Steps) -> None:
        self.networks, self.adam, self.steps = networks, adam, steps
        self._rates = -rates[:, None]
        rows = networks.rows
        self._moments = [torch.zeros_like(rows) for _ in range(2 * adam)]
        self._scratch = torch.empty_like(rows)
        # beta**t: a number where all weights have the same age, else one per weight.
        self._powers: list[Tensor] = [
            torch.ones_like(rows) if steps != "kept" else torch.ones(1, 1) for _ in range(2 * adam)
        ]
        self._views = [networks._views(moment) for moment in self._moments]
        if steps != "kept":
            self._power_views = [networks._views(power) for power in self._powers]

    def step(self) -> None:
        """Move all parameters once along their gradients."""
        rows, gradients = self.networks.rows, self.networks.gradients
        if not self.adam:
            rows.addcmul_(gradients, self._rates)
            return
        first, second = self._moments
        first.lerp_(gradients, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
        for power, beta in zip(self._powers, BETAS, strict=True):
            power.mul_(beta)
        known, known_square = (1 - power for power in self._powers)
        torch.div(second, known_square, out=self._scratch)
        self._scratch.sqrt_().add_(EPSILON)
        torch.div(first, self._scratch.mul_(known), out=self._scratch)
        rows.addcmul_(self._scratch, self._rates)

    def forget_(self, layer: int, lanes: Tensor, units: Tensor, outgoing: bool) -> None:
        """Forget what is remembered of the weights of some units of a hidden layer."""
        for memory in self._views if self.adam else ():
            memory.weights[layer][lanes, units] = 0.0
            memory.biases[layer][lanes, 0, units] = 0.0
            if outgoing:
                memory.weights[layer + 1][lanes, :, units] = 0.0
        for power in self._power_views if self.adam and self.steps != "kept" else ():
            whole = self.steps == "tensor"
            place = (lanes,) if whole else (lanes, units)
            power.weights[layer][place] = 1.0
            power.biases[layer][(lanes,) if whole else (lanes, 0, units)] = 1.0
            if outgoing:
                power.weights[layer + 1][(lanes,) if whole else (lanes, slice(None), units)] = 1.0


@dataclass
class Learner:
    """Networks, their optimizer, and how their units are drawn afresh.

    Args:
        networks: The lanes.
        optimizer: Trains them.
        generator: Draws fresh weights.
        past: The last 8 inputs, where a batch holds fewer; shape ``(L, 1, in)`` each.
    """

    networks: Networks
    optimizer: Optimizer
    generator: torch.Generator
    past: deque[Tensor] = field(default_factory=lambda: deque(maxlen=8))

    def predict(self, inputs: Tensor) -> Tensor:
        """Pass one training batch, and remember it if it is of one example."""
        if inputs.shape[1] == 1:
            self.past.append(inputs)
        return self.networks.forward(inputs)

    def reinit_(
        self,
        layer: int,
        chosen: Tensor,
        *,
        centred: bool = False,
        outgoing: bool = True,
    ) -> int:
        """Give chosen units of a hidden layer fresh incoming weights.

        Args:
            layer: Number of the hidden layer.
            chosen: The units, bool of shape ``(L, units)``.
            centred: Set the bias such that half of the last inputs (8 at most) make the unit
                fire, not to zero.
            outgoing: Set the outgoing weights to zero, too.

        Returns:
            How many units that were.
        """
        lanes, units = chosen.nonzero(as_tuple=True)
        if not len(lanes):
            return 0
        networks, own = self.networks, self.networks.own
        drawn = torch.rand((len(lanes), networks.sizes[layer]), generator=self.generator)
        fresh = (drawn * 2 - 1) * networks.bound(layer)
        own.weights[layer][lanes, units] = fresh
        own.biases[layer][lanes, 0, units] = self._biases(layer, lanes, fresh) if centred else 0.0
        if outgoing:
            own.weights[layer + 1][lanes, :, units] = 0.0
        self.optimizer.forget_(layer, lanes, units, outgoing)
        return len(lanes)

    def _biases(self, layer: int, lanes: Tensor, fresh: Tensor) -> Tensor:
        """Return biases that make half of the last inputs fire, shape ``(n,)``."""
        entering = self.recent(layer)[lanes]
        # The lower of two medians: that input gives exactly zero, and those above it fire.
        return -torch.bmm(entering, fresh[:, :, None]).squeeze(-1).median(1).values

    def recent(self, layer: int) -> Tensor:
        """Return up to 8 recent inputs of a layer, shape ``(L, n, in)``."""
        if layer == 0 and self.past:
            return torch.cat(list(self.past), dim=1)
        return self.networks.inputs[layer][:, -8:]
