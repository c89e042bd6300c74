"""What a diagnosis rests on beside the verdicts: what was logged, how biases moved, the inputs.

Values only; who collects them from a Trainer is ``lightning/circumstances.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

MOST_WINDOWS = 512
"""From then on two neighbours become one."""


@dataclass(frozen=True)
class Window:
    """The training steps between one validation and the next.

    Attributes:
        start: Step of the validation before, 0 at the first one.
        end: Step of the validation that ends it.
        first_rate: Learning rate of its first optimizer step, the largest of all parameter groups;
            NaN if there was none.
        highest_rate: Highest learning rate of all its steps.
        last_rate: Learning rate of its last step.
        weight_decay: Largest weight decay of a parameter group.
        loss: Loss that was logged last, NaN if none was.
        loss_name: Name under which it was logged.
    """

    start: int
    end: int
    first_rate: float = math.nan
    highest_rate: float = math.nan
    last_rate: float = math.nan
    weight_decay: float = 0.0
    loss: float = math.nan
    loss_name: str = ""

    def joined(self, later: Window) -> Window:
        """Return this window and the next one as one."""
        return replace(
            later,
            start=self.start,
            first_rate=self.first_rate,
            highest_rate=max(self.highest_rate, later.highest_rate),
            weight_decay=max(self.weight_decay, later.weight_decay),
        )


@dataclass(frozen=True)
class Biases:
    """How the biases of a layer's units stand, in units of what usual inputs can make up for.

    One is the size that the weighted sum of a unit's inputs usually has: the norm of its weights
    when training began times the size of the inputs. A unit with a bias far below minus one seldom
    fires.

    Attributes:
        at_start: Biases when training began, float of shape ``(U,)``.
        now: Biases now, in the same units, float of shape ``(U,)``.
    """

    at_start: Tensor
    now: Tensor


@dataclass(frozen=True)
class Evidence:
    """All there is beside the verdicts of a validation.

    Attributes:
        windows: What was logged, by window, the earliest first.
        fired_before: Layer to which of its units fired before training began, in Lightning's sanity
            check, bool of shape ``(U,)``; without the layers that did not run there.
        biases: Layer to its biases, of layers whose units are made by a module that has one.
        input_shift: How many times the inputs' mean is larger than their spread, NaN if unknown.
        of: What it is called that each report is of, as in :class:`History`.
    """

    windows: Sequence[Window] = ()
    fired_before: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Biases] = field(default_factory=dict)
    input_shift: float = math.nan
    of: str = "validation"


def thinned(windows: list[Window]) -> list[Window]:
    """Join neighbours where there are very many windows."""
    if len(windows) <= MOST_WINDOWS:
        return windows
    odd = windows[:1] if len(windows) % 2 else []
    rest = windows[len(odd) :]
    return odd + [one.joined(two) for one, two in zip(rest[::2], rest[1::2], strict=True)]


def windows_state(windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Return windows as primitives."""
    return [asdict(window) for window in windows]
