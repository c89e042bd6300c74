"""Slowly-changing regression: a stream whose inputs drift, so that a learner must keep learning.

Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632:768, in the released
configuration. Of 20 binary inputs, 15 are drawn anew every 10 000 steps and 5 at every step. The
target is a random network of 100 linear threshold units with weights and biases of +-1.

All runs (one per seed) are arrays side by side, the run on the last axis: a step of the learner is
then a dozen NumPy calls for all runs together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

SLOW, FAST, PERIOD, TARGET_UNITS = 15, 5, 10_000, 100


@dataclass(frozen=True)
class Block:
    """The 10 000 steps between two draws of the slow inputs.

    Args:
        slow: Slow inputs of each run, shape ``(15, R)``.
        fast: Fast inputs of each step and run, shape ``(10_000, 5, R)``.
        target: What is to be predicted, shape ``(10_000, R)``.
    """

    slow: Floats
    fast: Floats
    target: Floats


def stream(seeds: range) -> Iterator[Block]:
    """Yield blocks without end, each run from a generator of its own seed."""
    generators = [np.random.default_rng(seed) for seed in seeds]
    targets = [_Target.drawn(generator) for generator in generators]
    while True:
        runs = [target.block(g) for target, g in zip(targets, generators, strict=True)]
        slow, fast, target = (np.stack(parts, axis=-1) for parts in zip(*runs, strict=True))
        yield Block(slow, fast, target)


# Five fast bits make 32 inputs per block: the target is computed for these, not for every step.
_CODES = np.array([[code >> bit & 1 for bit in range(FAST)] for code in range(2**FAST)], np.float32)


@dataclass(frozen=True)
class _Target:
    """The network that makes the targets of one run."""

    weight: Floats
    bias: Floats
    threshold: Floats
    outgoing: Floats
    offset: np.float32

    @classmethod
    def drawn(cls, generator: np.random.Generator) -> _Target:
        signs = generator.integers(0, 2, (TARGET_UNITS, SLOW + FAST + 2)) * 2.0 - 1.0
        weight, bias, outgoing = signs[:, :-2], signs[:, -2], signs[:, -1]
        # The number of negative weights, as the authors' code has it: it adds the bias, which is
        # half a weight off. With it the published errors come out, without it (0.93 against 0.66
        # in the first bin) they do not.
        negative = (SLOW + FAST - weight.sum(1) + bias) / 2
        threshold = 0.7 * (SLOW + FAST + 1) - negative
        offset = generator.integers(0, 2) * 2.0 - 1.0
        arrays = (a.astype(np.float32) for a in (weight, bias, threshold, outgoing))
        return cls(*arrays, np.float32(offset))

    def block(self, generator: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        slow = generator.integers(0, 2, SLOW).astype(np.float32)
        codes = generator.integers(0, 2**FAST, PERIOD)
        inputs = np.concatenate([np.tile(slow, (len(_CODES), 1)), _CODES], axis=1)
        fires = inputs @ self.weight.T + self.bias > self.threshold
        outputs = fires.astype(np.float32) @ self.outgoing + self.offset
        return slow, _CODES[codes], outputs[codes]
