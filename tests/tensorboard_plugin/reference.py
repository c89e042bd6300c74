"""Slow, independent answers: one unit at a time, one step at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class UnitLife:
    dead: bool
    dead_since: int | None
    born_dead: bool
    died: bool
    revived: bool


def unit_life(steps: list[int], rates: list[float], threshold: float) -> UnitLife:
    """Walk through one unit's rates and remember what happened."""
    since: int | None = None
    ever_dead = ever_alive = False
    for step, rate in zip(steps, rates, strict=True):
        if math.isnan(rate):
            continue
        if rate >= threshold:
            ever_dead = True
            since = step if since is None else since
        else:
            ever_alive = True
            since = None
    last = rates[-1]
    dead = last >= threshold
    alive = last < threshold
    return UnitLife(
        dead=dead,
        dead_since=since if dead else None,
        born_dead=dead and not ever_alive,
        died=dead and ever_alive,
        revived=alive and ever_dead,
    )


def surviving_steps(written: list[int]) -> list[int]:
    """Indices of the events that are not overtaken: nothing later goes back to their step."""
    return [
        at for at, step in enumerate(written) if all(later > step for later in written[at + 1 :])
    ]
