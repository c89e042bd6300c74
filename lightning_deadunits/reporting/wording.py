"""What is said of a unit and of a layer's units: the same words in table, tab and data frame.

A unit is in one of these states at a validation:

- **alive**: its zero rate is below the threshold, and it never was dead before;
- **recovered**: alive, was dead at a validation before, and nobody re-initialised it since then;
- **alive again after re-initialisation**: alive, and not seen dead since it was re-initialised;
- **born dead**: dead, alive at no validation so far, never re-initialised;
- **dead since a step**: dead, was alive at a validation before; the step is that of the first
  validation of the present run of being dead;
- **died again after re-initialisation**: dead, and was re-initialised before, whether or not a
  validation saw it alive in between. It is never called born dead.

Needs neither torch nor the rest of the package: the tab says the same in ``text.js``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from lightning_deadunits.reporting.figures import count, percent, plural

State = Literal[
    "alive",
    "recovered",
    "alive again after re-initialisation",
    "born dead",
    "dead",
    "died again after re-initialisation",
    "not seen",
]

STEPS_SHOWN = 3
"""How many steps are told at which units died, before the rest is summed up."""


def state_of(
    *, seen: bool = True, dead: bool, was_alive: bool, was_dead: bool, reinitialised: bool
) -> State:
    """Name what is known of one unit at the latest validation.

    Args:
        seen: Whether it saw a value.
        dead: Whether it is dead.
        was_alive: Whether any validation saw it alive.
        was_dead: Whether an earlier validation saw it dead, since it was last re-initialised if it
            ever was.
        reinitialised: Whether it was re-initialised before this validation.

    Example:
        >>> state_of(dead=True, was_alive=False, was_dead=True, reinitialised=True)
        'died again after re-initialisation'
    """
    if not seen:
        return "not seen"
    if dead and reinitialised:
        return "died again after re-initialisation"
    if dead:
        return "dead" if was_alive else "born dead"
    if was_dead:
        return "recovered"
    return "alive again after re-initialisation" if reinitialised else "alive"


def dead_since(born: int, again: int, steps: Sequence[int], shown: int = STEPS_SHOWN) -> str:
    """Say since when a layer's dead units are dead, the earliest first.

    Args:
        born: How many were born dead.
        again: How many died again after re-initialisation.
        steps: Step since which each of the others is dead.
        shown: How many of these steps to name; where there is little room, fewer, or none but the
            first (``5 from step 214 on``).

    Example:
        >>> dead_since(1, 2, [257, 214, 257, 300, 386, 429])
        '1 born dead, 1 at step 214, 2 at step 257, 1 at step 300, 2 later, 2 died again'
    """
    parts = [f"{count(born)} born dead"] if born else []
    dates = sorted(Counter(steps).items())
    parts += [f"{count(units)} at step {count(step)}" for step, units in dates[:shown]]
    if later := sum(units for _, units in dates[shown:]):
        parts.append(
            f"{count(later)} " + ("later" if shown else f"from step {count(dates[0][0])} on")
        )
    if again:
        parts.append(f"{count(again)} died again")
    return ", ".join(parts)


def verdict(dead: int, units: int, layers: int) -> str:
    """Say how many units are dead, in one line.

    Example:
        >>> verdict(78, 224, 3)
        '78 of 224 units are dead (34.8%), in 3 layers'
    """
    share = f" ({percent(dead / units)})" if units else ""
    return f"{count(dead)} of {plural(units, 'unit')} are dead{share}, in {plural(layers, 'layer')}"


def wholly_dead(layer: str) -> str:
    """Say what it means that every unit of a layer is dead."""
    return f"Wholly dead: nothing gets through {layer!r}, the network is cut there."
