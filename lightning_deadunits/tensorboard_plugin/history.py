"""The life of a layer's units: who is dead, since when, who came back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.series import Series

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """Verdicts over training on one layer.

    A unit is *dead* at a step if its rate is at or above the threshold, *alive* if it is below, and
    neither if the rate is NaN (it was not seen). A step without a verdict interrupts no run of
    being dead: absence of evidence is not a firing unit.

    Attributes:
        rates: The zero-activation rates, float32 ``(S, U)`` with ``S >= 1``.
        dead_threshold: A unit with ``zero_rate >= dead_threshold`` is dead.
    """

    rates: Series
    dead_threshold: float

    @cached_property
    def dead(self) -> Bools:
        """Which unit is dead at which step, ``(S, U)``."""
        return self.rates.values >= np.float32(self.dead_threshold)  # False for NaN

    @cached_property
    def alive(self) -> Bools:
        """Which unit is alive at which step, ``(S, U)``."""
        return self.rates.values < np.float32(self.dead_threshold)  # False for NaN

    @cached_property
    def dead_now(self) -> Bools:
        """Which unit is dead at the latest step, ``(U,)``."""
        return np.asarray(self.dead[-1])

    @cached_property
    def last_alive(self) -> Ints:
        """Row of the last step at which each unit was alive, -1 if never, ``(U,)``."""
        num_steps = len(self.rates.steps)
        from_end = self.alive[::-1].argmax(axis=0)
        return np.where(self.alive.any(axis=0), num_steps - 1 - from_end, -1)

    @cached_property
    def dead_since(self) -> Ints:
        """Row of the first step of each unit's current run of being dead, -1 if not dead now."""
        rows = np.arange(len(self.rates.steps))[:, None]
        run = self.dead & (rows > self.last_alive)
        return np.where(self.dead_now, run.argmax(axis=0), -1)

    @cached_property
    def born_dead(self) -> Bools:
        """Dead at the first step seen and never alive since, ``(U,)``."""
        return self.dead_now & (self.last_alive < 0)

    @cached_property
    def died(self) -> Bools:
        """Dead now, but alive once, ``(U,)``: with the born dead, all that are dead now."""
        return self.dead_now & (self.last_alive >= 0)

    @cached_property
    def revived(self) -> Bools:
        """Alive now, but dead once, ``(U,)``."""
        return np.asarray(self.alive[-1] & self.dead.any(axis=0))

    @cached_property
    def dead_fraction(self) -> NDArray[np.float64]:
        """Share of the units dead at each step, ``(S,)``; NaN where no unit was seen."""
        seen = (self.dead | self.alive).any(axis=1)
        units = np.where(seen, self.rates.widths, np.nan)
        return np.asarray(self.dead.sum(axis=1) / units, dtype=np.float64)


def current_marks(marks: Series, rates: Series) -> Series:
    """Drop the re-initialisations of a future that a resumed run left behind.

    Marks are rare, so the tag itself may hold nothing after the resume that would tell. The rates
    do: a rate of the same or an earlier step, written later, says that training came past again.
    """
    written_before = [
        not np.any((rates.steps <= step) & (rates.wall_times > wall_time))
        for step, wall_time in zip(marks.steps, marks.wall_times, strict=True)
    ]
    keep = np.array(written_before, dtype=bool)
    return Series(marks.steps[keep], marks.wall_times[keep], marks.values[keep], marks.widths[keep])
