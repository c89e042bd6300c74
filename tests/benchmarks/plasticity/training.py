"""Train all lanes of a job on a problem under a rule."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from tests.benchmarks.plasticity.networks import Learner, Networks, Optimizer
from tests.benchmarks.plasticity.problems import Problem
from tests.benchmarks.plasticity.rules import Rule


def new_learner(
    sizes: tuple[int, ...], rule: Rule, seeds: list[int], rates: Tensor, adam: bool
) -> Learner:
    """Return fresh networks, a lane per seed and setting, with all that a rule needs.

    Args:
        sizes: Inputs, hidden units per layer, outputs.
        rule: What will decide over their units.
        seeds: Seed of each lane.
        rates: Learning rate of each lane, shape ``(L,)``.
        adam: Adam rather than plain SGD.
    """
    networks = Networks(sizes, seeds, rule.layer_norm)
    optimizer = Optimizer(networks, rates, adam, rule.steps)
    learner = Learner(networks, optimizer, torch.Generator().manual_seed(0))
    rule.begin(learner)
    return learner


def learn(
    problem: Problem, rule: Rule, seeds: list[int], rates: Tensor, adam: bool, tasks: int
) -> Tensor:
    """Return the score of every task and lane, shape ``(tasks, L)``.

    Args:
        problem: What is learnt.
        rule: Decides over the units.
        seeds: The seeds; the lanes are these, once per setting.
        rates: Learning rate of each lane, shape ``(L,)``.
        adam: Adam rather than plain SGD.
        tasks: How many tasks to learn.
    """
    repeats = len(rates) // len(seeds)
    learner = new_learner(problem.sizes, rule, seeds * repeats, rates, adam)
    scores, step = [], 0
    for task in islice(problem.stream(seeds), tasks):
        total = torch.zeros(len(rates))
        for inputs, targets in zip(task.inputs, task.targets, strict=True):
            step += 1
            outputs = learner.predict(inputs.repeat(repeats, 1, 1))
            # repeat, not expand: lanes are written to and read from as if they had nothing shared.
            wanted = targets.repeat(repeats, *[1] * (targets.ndim - 1))
            gradient, score = judged(problem, outputs, wanted)
            total += score
            learner.networks.backward(gradient)
            rule.adjust(learner)
            learner.optimizer.step()
            rule.act(learner, step)
        total /= len(task.inputs)
        if task.held_out is not None:
            total = held_out_accuracy(learner, *task.held_out, repeats)
        scores.append(total)
    return torch.stack(scores)


def judged(problem: Problem, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss's gradient at the outputs and the score of each lane.

    Args:
        problem: Says which loss.
        outputs: Shape ``(L, B, out)``.
        targets: Classes ``(L, B)`` or values ``(L, B, 1)``.

    Returns:
        The gradient of the mean loss over the batch, shape ``(L, B, out)``; and per lane the
        accuracy, or the squared error, shape ``(L,)``.
    """
    batch = outputs.shape[1]
    if problem.loss == "values":
        error = outputs - targets
        return error * (2 / batch), error.square().mean((1, 2))
    score = (outputs.argmax(-1) == targets).float().mean(1)
    gradient = outputs.softmax(-1)
    gradient.scatter_add_(2, targets[:, :, None], torch.full_like(gradient[:, :, :1], -1.0))
    return gradient.div_(batch), score


def held_out_accuracy(learner: Learner, images: Tensor, classes: Tensor, repeats: int) -> Tensor:
    """Return each lane's accuracy on images of classes that have arrived, shape ``(L,)``."""
    outputs = learner.networks.forward(images.repeat(repeats, 1, 1))
    counts = (classes >= 0).repeat(repeats, 1)
    right = (outputs.argmax(-1) == classes.repeat(repeats, 1)) & counts
    return right.sum(1) / counts.sum(1)
