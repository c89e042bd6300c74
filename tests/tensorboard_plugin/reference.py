"""Slow, independent answers: one unit at a time, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class UnitLife:
    state: str
    dead: bool
    dead_since: int | None


def unit_life(
    steps: list[int], rates: list[float], threshold: float, marks: Sequence[int] = ()
) -> UnitLife:
    """Walk through one unit's rates and re-initialisations and remember what happened."""
    since: int | None = None
    was_dead = was_alive = reinitialised = False
    pending = sorted(marks)
    for step, rate in zip(steps, rates, strict=True):
        while pending and pending[0] < step:
            pending.pop(0)
            since, was_dead, reinitialised = None, False, True
        if math.isnan(rate):
            continue
        if rate >= threshold:
            was_dead = True
            since = step if since is None else since
        else:
            was_alive = True
            since = None
    last = rates[-1]
    if math.isnan(last):
        return UnitLife("not seen", False, None)
    if last >= threshold:
        if reinitialised:
            return UnitLife("died again after re-initialisation", True, since)
        return UnitLife("dead" if was_alive else "born dead", True, since)
    if was_dead:
        return UnitLife("recovered", False, None)
    if reinitialised:
        return UnitLife("alive again after re-initialisation", False, None)
    return UnitLife("alive", False, None)


def surviving_steps(written: list[int]) -> list[int]:
    """Indices of the events that are not overtaken: nothing later goes back to their step."""
    return [
        at for at, step in enumerate(written) if all(later > step for later in written[at + 1 :])
    ]
