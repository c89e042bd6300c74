"""A control task: an actor-critic balances poles whose world changes while it learns.

The dynamics are those of CartPole (Barto, Sutton & Anderson 1983, "Neuronlike adaptive elements
that can solve difficult learning control problems"). In each task the four observations come in
another order and with other signs, and the pole has another length. Advantage actor-critic on a
trunk that policy and value share: 8 steps in each of 4 worlds make one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.benchmarks.plasticity.networks import Learner
from tests.benchmarks.plasticity.rules import Rule
from tests.benchmarks.plasticity.training import new_learner

WORLDS, HORIZON, LONGEST = 4, 8, 200
DISCOUNT, ENTROPY, VALUE = 0.97, 0.01, 0.5
GRAVITY, CART, POLE, FORCE, TICK = 9.8, 1.0, 0.1, 10.0, 0.02
EDGE, TILT = 2.4, 12 * math.pi / 180


@dataclass(frozen=True)
class Balancing:
    """The control problem; scores are steps per episode, at most 200.

    Args:
        sizes: Observations, hidden units per layer; two actions and a value.
        tasks: How many worlds follow one another.
        steps: Updates per task.
    """

    sizes: tuple[int, ...] = (4, 32, 32, 3)
    tasks: int = 30
    steps: int = 300
    last: int | None = None
    higher_is_better: bool = True


@dataclass
class Worlds:
    """The carts of all lanes, shape ``(L, 4 worlds)`` each, and how they are observed.

    Args:
        seeds: One generator per seed; lanes of a seed get the same random numbers.
        repeats: Lanes per seed.
        steps: Updates per task: random numbers are drawn for a task at once.
    """

    seeds: list[int]
    repeats: int
    steps: int

    def __post_init__(self) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self.state = self._uniform(WORLDS, 4) * 0.1 - 0.05
        self.age = torch.zeros(self.state.shape[:2])
        self.change()

    def change(self) -> None:
        """Draw another order, other signs and another length of the pole, per seed."""
        orders = [torch.randperm(4, generator=g) for g in self._generators]
        self._order = torch.stack(orders).repeat(self.repeats, 1)[:, None].expand_as(self.state)
        self._signs = (self._uniform(4) > 0.5).float()[:, None] * 2 - 1
        self._length = 0.25 + 0.75 * self._uniform(1)
        # Of each step: a number that decides the action, and the state of a new episode.
        drawn = self._uniform(self.steps * HORIZON, WORLDS, 5).transpose(0, 1)
        self._chances = iter(drawn.contiguous())

    def _uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1) per seed, shape ``(L, *shape)``."""
        drawn = torch.stack([torch.rand(shape, generator=g) for g in self._generators])
        return drawn.repeat(self.repeats, *[1] * len(shape))

    def observe(self) -> Tensor:
        """Return what the learners see, shape ``(L, 4 worlds, 4)``, of about unit size."""
        scaled = self.state / torch.tensor([EDGE, 3.0, TILT, 3.0])
        return scaled.gather(2, self._order) * self._signs

    def act(self, right: Tensor) -> Tensor:
        """Return actions, 1 with the given probability, shape ``(L, 4 worlds)``."""
        chance = next(self._chances)
        self._fresh = chance[..., 1:] * 0.1 - 0.05
        return (chance[..., 0] < right).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Push every cart; return which poles fell, and which episodes lasted long enough."""
        self.state = moved(self.state, action, self._length)
        self.age += 1
        position, tilt = self.state[..., 0], self.state[..., 2]
        fell = (position.abs() > EDGE) | (tilt.abs() > TILT)
        return fell, (self.age >= LONGEST) & ~fell

    def restart_(self, ended: Tensor) -> None:
        """Begin new episodes where one has ended."""
        self.state = torch.where(ended[..., None], self._fresh, self.state)
        self.age = self.age.masked_fill(ended, 0.0)


def moved(state: Tensor, action: Tensor, length: Tensor) -> Tensor:
    """Return states a tick later, by Euler's method.

    Args:
        state: Position, speed, tilt and its speed, shape ``(..., 4)``.
        action: 1 pushes right, 0 left.
        length: Half the length of the pole.
    """
    position, speed, tilt, turning = state.unbind(-1)
    force = (action * 2 - 1) * FORCE
    sine, cosine = tilt.sin(), tilt.cos()
    common = (force + POLE * length * turning.square() * sine) / (CART + POLE)
    falling = (GRAVITY * sine - cosine * common) / (
        length * (4 / 3 - POLE * cosine.square() / (CART + POLE))
    )
    pushed = common - POLE * length * falling * cosine / (CART + POLE)
    parts = [
        position + TICK * speed,
        speed + TICK * pushed,
        tilt + TICK * turning,
        turning + TICK * falling,
    ]
    return torch.stack(parts, -1)


def balance(
    problem: Balancing, rule: Rule, seeds: list[int], rates: Tensor, adam: bool, tasks: int
) -> Tensor:
    """Return steps per episode of every task and lane, shape ``(tasks, L)``."""
    repeats = len(rates) // len(seeds)
    learner = new_learner(problem.sizes, rule, seeds * repeats, rates, adam)
    worlds, scores = Worlds(seeds, repeats, problem.steps), []
    for task in range(tasks):
        if task:
            worlds.change()
        ended = torch.zeros(len(rates))
        for update in range(problem.steps):
            ended += learn_once(learner, worlds, rule)
            rule.act(learner, task * problem.steps + update + 1)
        scores.append(problem.steps * HORIZON * WORLDS / (ended + WORLDS))
    return torch.stack(scores)


def learn_once(learner: Learner, worlds: Worlds, rule: Rule) -> Tensor:
    """Play 8 steps and learn from them; return how many episodes ended in each lane."""
    seen, actions, falls, breaks, after = [], [], [], [], []
    for _ in range(HORIZON):
        seen.append(worlds.observe())
        logits = learner.networks.forward(seen[-1])[..., :2]
        right = (logits[..., 1] - logits[..., 0]).sigmoid()
        actions.append(worlds.act(right))
        fell, long = worlds.step(actions[-1])
        after.append(worlds.observe())
        falls.append(fell)
        breaks.append(fell | long)
        worlds.restart_(breaks[-1])
    values = learner.networks.forward(torch.cat(after, 1))[..., 2].unflatten(1, (HORIZON, -1))
    outputs = learner.predict(torch.cat(seen, 1))
    fell, broke = torch.stack(falls, 1), torch.stack(breaks, 1)
    wanted = returns(fell.float(), broke, values).flatten(1)
    learner.networks.backward(gradient(outputs, torch.cat(actions, 1), wanted))
    rule.adjust(learner)
    learner.optimizer.step()
    return broke.sum((1, 2))


def returns(fell: Tensor, broke: Tensor, values: Tensor) -> Tensor:
    """Discounted returns: -1 for a fall, and the value of what follows a batch or a break.

    Args:
        fell: Whether the pole fell at a step, 0 or 1, shape ``(L, 8, worlds)``.
        broke: Whether the episode ended at a step, by a fall or by its length, same shape.
        values: Of the state that a step led to, before any new episode, same shape.
    """
    following, found = values[:, -1], []
    for t in reversed(range(fell.shape[1])):
        following = torch.where(broke[:, t], values[:, t], following)
        following = DISCOUNT * following * (1 - fell[:, t]) - fell[:, t]
        found.append(following)
    return torch.stack(found[::-1], 1)


def gradient(outputs: Tensor, actions: Tensor, wanted: Tensor) -> Tensor:
    """Gradient of the actor-critic's loss at the outputs.

    The loss is ``-advantage * log p(action) - 0.01 entropy + 0.5 (value - return)^2``, averaged
    over the batch; the advantage is taken as given.

    Args:
        outputs: Two logits and a value, shape ``(L, B, 3)``.
        actions: 0 or 1, shape ``(L, B)``.
        wanted: Returns, shape ``(L, B)``.
    """
    logs, value = outputs[..., :2].log_softmax(-1), outputs[..., 2]
    chances = logs.exp()
    advantage = (wanted - value)[..., None]
    taken = torch.stack([1 - actions, actions], -1)
    entropy = -(chances * logs).sum(-1, keepdim=True)
    back = advantage * (chances - taken) + ENTROPY * chances * (logs + entropy)
    error = 2 * VALUE * (value - wanted)
    return torch.cat([back, error[..., None]], -1) / outputs.shape[1]
