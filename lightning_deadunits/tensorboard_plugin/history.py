"""The life of a layer's units: who is dead, since when, who came back and by what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_deadunits.tensorboard_plugin.series import Series

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# The words of the terminal; a unit's state is an index into this.
STATES = (
    "not seen",
    "alive",
    "recovered",
    "alive again after re-initialisation",
    "born dead",
    "dead",
    "died again after re-initialisation",
)


@dataclass(frozen=True)
class History:
    """Verdicts over training on one layer.

    A unit is *dead* at a step if its rate is at or above the threshold, *alive* if it is below, and
    neither if the rate is NaN (it was not seen). A step without a verdict interrupts no run of
    being dead: absence of evidence is not a firing unit. A re-initialisation does: it follows the
    validation of its step, and what was before is no longer the unit's.

    Attributes:
        rates: The zero-activation rates, float32 ``(S, U)`` with ``S >= 1``.
        dead_threshold: A unit with ``zero_rate >= dead_threshold`` is dead.
        marks: 1 where a unit was re-initialised, by step; None if none was.
    """

    rates: Series
    dead_threshold: float
    marks: Series | None = None

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
    def fresh_from(self) -> Ints:
        """Row of the first verdict after each unit's last re-initialisation, ``(U,)``; 0 if none.

        A re-initialisation after the latest verdict has none yet, and does not count.
        """
        first = np.zeros(self.rates.values.shape[1], dtype=np.int64)
        if self.marks is None:
            return first
        after = np.searchsorted(self.rates.steps, self.marks.steps, side="right")
        for row, marked in zip(after, self.marks.values > 0, strict=True):
            if row < len(self.rates.steps):
                units = np.flatnonzero(marked)
                first[units[units < first.size]] = row
        return first

    @cached_property
    def reinitialised(self) -> Bools:
        """Which unit was re-initialised before the latest verdict, ``(U,)``."""
        return self.fresh_from > 0

    @cached_property
    def dead_since(self) -> Ints:
        """Row of the first step of each unit's current run of being dead, -1 if not dead now."""
        since = np.full(self.dead_now.size, -1)
        units = np.flatnonzero(self.dead_now)  # few, most often: a layer may have a million units
        first = np.maximum(self.last_alive[units] + 1, self.fresh_from[units])
        rows = np.arange(len(self.rates.steps))[:, None]
        since[units] = (self.dead[:, units] & (rows >= first)).argmax(axis=0)
        return since

    @cached_property
    def born_dead(self) -> Bools:
        """Dead now, alive at no step, never re-initialised, ``(U,)``."""
        return self.dead_now & (self.last_alive < 0) & ~self.reinitialised

    @cached_property
    def died(self) -> Bools:
        """Dead now, alive once, never re-initialised, ``(U,)``."""
        return self.dead_now & (self.last_alive >= 0) & ~self.reinitialised

    @cached_property
    def died_again(self) -> Bools:
        """Dead now although it was re-initialised, ``(U,)``."""
        return self.dead_now & self.reinitialised

    @cached_property
    def recovered(self) -> Bools:
        """Alive now, dead once since it was last re-initialised if it ever was, ``(U,)``."""
        was_dead = self.dead
        if self.reinitialised.any():
            rows = np.arange(len(self.rates.steps))[:, None]
            was_dead = was_dead & (rows >= self.fresh_from)
        return np.asarray(self.alive[-1] & was_dead.any(axis=0))

    @cached_property
    def states(self) -> NDArray[np.uint8]:
        """What is known of each unit, as indices into ``STATES``, ``(U,)``."""
        states = np.zeros(self.dead_now.size, dtype=np.uint8)
        for word, units in (
            ("alive", self.alive[-1]),
            ("alive again after re-initialisation", self.alive[-1] & self.reinitialised),
            ("recovered", self.recovered),
            ("born dead", self.born_dead),
            ("dead", self.died),
            ("died again after re-initialisation", self.died_again),
        ):
            states[units] = STATES.index(word)
        return states

    @cached_property
    def num_dead(self) -> Ints:
        """How many units are dead at each step, ``(S,)``."""
        return np.asarray(self.dead.sum(axis=1), dtype=np.int64)

    @cached_property
    def saw_something(self) -> Bools:
        """At which step any unit was seen, ``(S,)``."""
        return np.asarray((self.dead | self.alive).any(axis=1))

    @cached_property
    def dead_fraction(self) -> NDArray[np.float64]:
        """Share of the units dead at each step, ``(S,)``; NaN where no unit was seen."""
        units = np.where(self.saw_something, self.rates.widths, np.nan)
        return np.asarray(self.num_dead / units, dtype=np.float64)


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
