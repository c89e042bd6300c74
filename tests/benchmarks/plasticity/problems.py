"""Streams that supervised learners see once, and whose rule changes while they learn.

A problem hands out *tasks*; a task is a list of batches for each seed. Nothing is told to the
learner when a task ends. Reported is what the learner gets right of each batch before it learns
from it (for the class-incremental problem: of held-out digits), averaged over the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tests.benchmarks.slowly_changing import PERIOD, stream

PIXELS, CLASSES, HELD_OUT = 64, 10, 397


class Task(NamedTuple):
    """What all seeds see until something changes.

    Args:
        inputs: Shape ``(T, S, B, in)``: step, seed, example.
        targets: Classes ``(T, S, B)``, or values ``(T, S, B, 1)``.
        held_out: Inputs ``(S, n, in)`` and classes ``(S, n)`` that the learner is tested on at the
            end of the task; classes of -1 do not count. None to score the batches themselves.
    """

    inputs: Tensor
    targets: Tensor
    held_out: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Problem:
    """A stream, and the learner that it is for.

    Args:
        sizes: Inputs, hidden units per layer, outputs.
        tasks: How many tasks there are.
        steps: Training steps per task.
        loss: Cross-entropy ("classes") or squared error ("values").
        last: The score is the mean over the last so many tasks; all by default.
    """

    sizes: tuple[int, ...]
    tasks: int
    steps: int
    loss: Literal["classes", "values"] = "classes"
    last: int | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.loss == "classes"

    def stream(self, seeds: list[int]) -> Iterator[Task]:
        """Yield the tasks of all seeds, side by side."""
        raise NotImplementedError


class SlowlyChanging(Problem):
    """Slowly-changing regression (Dohare et al. 2024), one example per step."""

    def stream(self, seeds: list[int]) -> Iterator[Task]:
        # The seeds of one process are consecutive: the stream takes a range.
        for block in stream(range(seeds[0], seeds[-1] + 1)):
            fast = torch.from_numpy(block.fast).permute(0, 2, 1)
            slow = torch.from_numpy(block.slow).T.expand(PERIOD, -1, -1)
            inputs = torch.cat([slow, fast], dim=2)[:, :, None]
            yield Task(inputs, torch.from_numpy(block.target)[:, :, None, None])


class PermutedDigits(Problem):
    """Online Permuted Digits: each task has an order of pixels of its own.

    After Online Permuted MNIST of Dohare et al. 2024: every image is seen once per task, in random
    order, and what counts is the accuracy before learning from it.
    """

    batch = 16

    def stream(self, seeds: list[int]) -> Iterator[Task]:
        generators = [np.random.default_rng(seed) for seed in seeds]
        images, classes = digits()
        while True:
            runs = [self._run(generator, images, classes) for generator in generators]
            yield stacked(runs)

    def _run(
        self, generator: np.random.Generator, images: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        pixels = generator.permutation(PIXELS)
        order = generator.permutation(len(images))[: self.steps * self.batch]
        chosen = images[order][:, pixels].reshape(self.steps, self.batch, PIXELS)
        return chosen, classes[order].reshape(self.steps, self.batch)


class RandomLabels(Problem):
    """Random labels: each task gives the same digits classes drawn at random, to be memorised.

    After Random Label MNIST of Kumar et al. 2023 ("Maintaining plasticity in continual learning
    via regenerative regularization"): few images, many epochs, the accuracy over the whole task.
    """

    batch, images = 16, 160

    def stream(self, seeds: list[int]) -> Iterator[Task]:
        generators = [np.random.default_rng(seed) for seed in seeds]
        everything, _ = digits()
        own = [everything[g.permutation(len(everything))[: self.images]] for g in generators]
        while True:
            runs = [self._run(g, images) for g, images in zip(generators, own, strict=True)]
            yield stacked(runs)

    def _run(self, generator: np.random.Generator, images: Tensor) -> tuple[Tensor, Tensor]:
        classes = torch.from_numpy(generator.integers(0, CLASSES, self.images))
        epochs = self.steps * self.batch // self.images
        order = np.concatenate([generator.permutation(self.images) for _ in range(epochs)])
        chosen = images[order].reshape(self.steps, self.batch, PIXELS)
        return chosen, classes[order].reshape(self.steps, self.batch)


class ClassIncremental(Problem):
    """Classes arrive two at a time; once all ten are there, everything starts over.

    After class-incremental CIFAR-100 of Dohare et al. 2024: the learner trains on all classes that
    have arrived, and is tested on held-out images of these. A task here is what lies between two
    arrivals. Five of them are a round; every round has an order of pixels and of classes of its
    own, without which ten classes would be too few to lose any plasticity.
    """

    batch = 16

    def stream(self, seeds: list[int]) -> Iterator[Task]:
        generators = [np.random.default_rng(seed) for seed in seeds]
        while True:
            rounds = [
                (generator.permutation(PIXELS), generator.permutation(CLASSES))
                for generator in generators
            ]
            for arrived in range(2, CLASSES + 1, 2):
                runs = [
                    self._run(generator, pixels, classes[:arrived])
                    for generator, (pixels, classes) in zip(generators, rounds, strict=True)
                ]
                trained = stacked([run[:2] for run in runs])
                tests = [torch.stack(part) for part in zip(*(run[2:] for run in runs), strict=True)]
                yield trained._replace(held_out=(tests[0], tests[1]))

    def _run(
        self, generator: np.random.Generator, pixels: np.ndarray, arrived: np.ndarray
    ) -> tuple[Tensor, ...]:
        images, classes = digits()
        images = images[:, pixels]
        known = torch.isin(classes, torch.from_numpy(arrived))
        trained = known[HELD_OUT:].nonzero().squeeze(1) + HELD_OUT
        order = trained[generator.integers(0, len(trained), self.steps * self.batch)]
        shape = (self.steps, self.batch)
        tested = torch.where(known[:HELD_OUT], classes[:HELD_OUT], -1)
        return (
            images[order].reshape(*shape, PIXELS),
            classes[order].reshape(shape),
            images[:HELD_OUT],
            tested,
        )


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1797 digits, shape ``(n, 64)`` in [0, 1], shuffled, and classes."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.tensor(found.data[order] / 16, dtype=torch.float32)
    return images, torch.tensor(found.target[order])


def stacked(runs: list[tuple[Tensor, ...]]) -> Task:
    """Put the batches of all seeds side by side, the seed on the second axis."""
    inputs, targets = (torch.stack(part, dim=1) for part in zip(*runs, strict=True))
    return Task(inputs, targets)


PROBLEMS: dict[str, Problem] = {
    "slowly-changing regression": SlowlyChanging((20, 5, 1), 100, PERIOD, "values", 10),
    "online permuted digits": PermutedDigits((PIXELS, 32, 32, CLASSES), 200, 112),
    "random labels": RandomLabels((PIXELS, 32, 32, CLASSES), 50, 400),
    "class-incremental digits": ClassIncremental((PIXELS, 32, 32, CLASSES), 200, 100),
}
