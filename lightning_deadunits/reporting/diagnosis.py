"""Why units are dead: one cause and what to do, or nothing where the figures do not tell.

Units that are dead now are sorted by when they died: before training (they did not fire in the
sanity check either), or in the window between two validations. Then, in this order:

1. Most were dead from the start: the **inputs** are shifted if their mean is several times their
   spread, most units of the first layer fire for nearly all of them or nearly none, and their
   biases do not explain it; else the **initialisation**.
2. Most died where the **learning rate** was several times what it was before.
3. The inputs are shifted, as above.
4. The **biases** of most fell, by an amount that those of the living seldom did.
5. Most died in one window: **together**, from an unknown cause.
6. They died in several windows: **steadily**.

A sentence holds what the cause rests on (numbers, steps, what was logged there) and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_deadunits.reporting.evidence import Biases, Evidence, Window
from lightning_deadunits.reporting.figures import count, magnitude, percent, plural
from lightning_deadunits.reporting.report import ALIVE, DeadUnitsReport, LayerReport

Cause = Literal[
    "initialisation", "shifted_inputs", "learning_rate", "falling_biases", "together", "steadily"
]

_FEW = 2
_SHARE = 0.1
_SHARE_OF_LAYER = 0.25
"""Two units, or less than a tenth of all and a quarter of each layer, are nothing to explain."""
_SHARE_UNEXPLAINED = 0.2
_SHARE_OF_LAYER_UNEXPLAINED = 0.5
"""Where no cause shows, more must be dead: a third of a wide last layer is in healthy trainings."""
_MOST = 0.5
_RISE = 3.0
"""Times by which the learning rate must rise to be a spike."""
_SHIFT = 3.0
"""Times by which the inputs' mean must exceed their spread. Images in [0, 1] are near 1."""
_FALL = 0.15
"""Fall of a bias, in units of what its inputs usually make up for; 0.02 in healthy trainings."""
_MORE_OFTEN = 0.25
"""By how much larger a share of the dead than of the living must have such a fall."""
_LOW = -2.0
"""A bias this low when training began explains by itself that a unit never fires."""
_ONE_SIDED = 0.15
"""A unit is one-sided if it fires, or does not, for less than this share of its inputs."""
_WINDOWS = 3


@dataclass(frozen=True)
class Diagnosis:
    """A cause with its figures and what to do.

    Attributes:
        cause: The cause in a word.
        text: What it rests on, and the advice.
    """

    cause: Cause
    text: str


def diagnose(report: DeadUnitsReport, evidence: Evidence) -> Diagnosis | None:
    """Say how the units that are dead now came to be so, None where too little is known.

    Args:
        report: The latest report, completed with the history.
        evidence: What is known beside it.
    """
    deaths = _Deaths(report, evidence)
    if not deaths.exceed(_SHARE, _SHARE_OF_LAYER):
        return None
    if deaths.from_start >= _MOST * deaths.total:
        return _shifted_inputs(deaths) or _initialisation(deaths)
    for judge in (_learning_rate, _shifted_inputs, _falling_biases):
        found = judge(deaths)
        if found is not None:
            return found
    if not deaths.exceed(_SHARE_UNEXPLAINED, _SHARE_OF_LAYER_UNEXPLAINED):
        return None
    return _together(deaths) or _steadily(deaths)


class _Deaths:
    """The dead units by when they died."""

    def __init__(self, report: DeadUnitsReport, evidence: Evidence) -> None:
        self.report, self.evidence = report, evidence
        self.layers = [
            it for it in report.layers.values() if it.observations and it.born_dead is not None
        ]
        self.starts = {it.name: _dead_from_start(it, evidence) for it in self.layers}
        self.from_start = sum(int(mask.sum()) for mask in self.starts.values())
        self.total = sum(len(it.dead) for it in self.layers)
        steps = [self._steps(it) for it in self.layers]
        self.died_at = torch.cat(steps) if steps else torch.zeros(0, dtype=torch.int64)
        self.windows = evidence.windows

    def _steps(self, layer: LayerReport) -> Tensor:
        """Return the step of the validation that first saw dead each of those that died."""
        since = layer.dead_since
        assert since is not None
        return since[(since != ALIVE) & ~self.starts[layer.name]]

    def exceed(self, share: float, of_layer: float) -> bool:
        """Tell whether so large a share of all units is dead, or of one layer's."""
        worst = max((it.dead_fraction for it in self.layers), default=0.0)
        of_all = self.total / self.report.num_units if self.total else 0.0
        return self.total > _FEW and (of_all >= share or worst >= of_layer)

    @property
    def died(self) -> int:
        """How many died in the course of training."""
        return len(self.died_at)

    def within(self, window: Window) -> int:
        """How many died in a window."""
        start = window.start or -1  # what the first validation saw dead died before it
        return int(((self.died_at > start) & (self.died_at <= window.end)).sum())

    @property
    def worst(self) -> Window:
        """The window in which most died."""
        return max(self.windows, key=self.within)

    @property
    def first_layer(self) -> LayerReport:
        """The layer that ran first."""
        return self.layers[0]


def _dead_from_start(layer: LayerReport, evidence: Evidence) -> Tensor:
    """Return which units were dead at every validation and before training, as far as is known."""
    assert layer.born_dead is not None
    fired = evidence.fired_before.get(layer.name)
    known = fired is not None and len(fired) == layer.num_units
    return layer.born_dead & ~fired if known and fired is not None else layer.born_dead


# --- dead from the start ------------------------------------------------------------------------


def _initialisation(deaths: _Deaths) -> Diagnosis:
    known = all(it.name in deaths.evidence.fired_before for it in deaths.layers if len(it.dead))
    first = deaths.windows[0].end
    when = (
        f"fired neither before training nor at any {deaths.evidence.of}"
        if known
        else f"fired at no {deaths.evidence.of}, the first of which was at step {count(first)}"
    )
    low = _share_of(deaths, lambda biases: biases.at_start <= _LOW, deaths.starts)
    biases = ""
    if low is not None and low >= _MOST:
        biases = f" The biases of {percent(low)} of them began far below zero."
    advice = "Look at the initial biases and weights"
    if not known:
        advice += ", and at the first steps"
    return Diagnosis(
        "initialisation",
        f"Dead from the start: {count(deaths.from_start)} of the {count(deaths.total)} dead units "
        f"{when}.{biases} {advice}.",
    )


def _shifted_inputs(deaths: _Deaths) -> Diagnosis | None:
    shift, layer = deaths.evidence.input_shift, deaths.first_layer
    rates = layer.zero_rate
    one_sided = (rates < _ONE_SIDED) | (rates > 1 - _ONE_SIDED)
    share = int(one_sided.sum()) / layer.num_units
    if not (shift >= _SHIFT and share >= _MOST):
        return None
    low = _share_of(deaths, lambda it: it.at_start <= _LOW, {layer.name: one_sided})
    if low is not None and low >= _MOST:
        return None
    return Diagnosis(
        "shifted_inputs",
        f"Shifted inputs: the mean of the inputs is {magnitude(shift)} times their spread (first "
        f"validation batch), and {percent(share)} of the units of the first layer, {layer.name!r}, "
        f"fire at over {percent(1 - _ONE_SIDED)} of all values or at less than "
        f"{percent(_ONE_SIDED)}. Subtract the mean of the training data and divide by its "
        f"standard deviation, or begin with a normalisation layer.",
    )


# --- died in training ---------------------------------------------------------------------------


def _learning_rate(deaths: _Deaths) -> Diagnosis | None:
    """Blame the learning rate if most died in windows in which it had risen."""
    for first, spell, before in _spells(deaths.windows):
        died = sum(map(deaths.within, spell))
        if died < _MOST * deaths.total:
            continue
        highest = max(window.highest_rate for window in spell)
        end = spell[-1].end
        return Diagnosis(
            "learning_rate",
            f"Learning rate: {count(died)} of the {count(deaths.total)} dead units died between "
            f"steps {count(first.start)} and {count(end)}, where the learning rate rose from "
            f"{magnitude(before)} to {magnitude(highest)}.{_loss(deaths, first.start, end)} Keep "
            f"it lower there, warm it up more slowly, or clip gradients.",
        )
    return None


def _spells(windows: Sequence[Window]) -> Iterable[tuple[Window, list[Window], float]]:
    """Yield spells of windows with a high rate: the first, all with the one after, rate before."""
    last = math.nan
    for index, window in enumerate(windows):
        before = last if not math.isnan(last) else window.first_rate
        usual = [it.highest_rate for it in windows if it is not window]
        if window.highest_rate >= _RISE * before and (
            index or not usual or window.highest_rate >= _RISE * sorted(usual)[len(usual) // 2]
        ):
            spell = [window]
            for later in windows[index + 1 :]:
                spell.append(later)
                if not later.highest_rate >= _RISE * before:
                    break
            yield window, spell, before
        last = window.last_rate if not math.isnan(window.last_rate) else last


def _falling_biases(deaths: _Deaths) -> Diagnosis | None:
    later = {it.name: it.dead_mask & ~deaths.starts[it.name] for it in deaths.layers}
    living = {it.name: ~it.dead_mask for it in deaths.layers}
    share, usual = (
        _share_of(deaths, lambda it: it.at_start - it.now >= _FALL, units)
        for units in (later, living)
    )
    if share is None or share < max(_MOST, (usual or 0.0) + _MORE_OFTEN):
        return None
    falls = [
        (biases.at_start - biases.now)[later[name]]
        for name, biases in deaths.evidence.biases.items()
        if name in later
    ]
    median = float(torch.cat(falls).median())
    return Diagnosis(
        "falling_biases",
        f"Falling biases: of the {count(deaths.died)} units that died {_when(deaths)}, "
        f"{percent(share)} have a bias that fell since training began, as {percent(usual or 0.0)} "
        f"of the living have, in the median by {magnitude(median)} times what usual inputs make "
        f"up for.{_rate(deaths)} Lower the learning rate, of the biases at least.",
    )


def _together(deaths: _Deaths) -> Diagnosis | None:
    worst = deaths.worst
    died = deaths.within(worst)
    if died <= _FEW or died < _MOST * deaths.total:
        return None
    return Diagnosis(
        "together",
        f"Died together: {count(died)} of the {count(deaths.total)} dead units died between steps "
        f"{count(worst.start)} and {count(worst.end)}."
        f"{_rate(deaths, worst)}{_loss(deaths, worst.start, worst.end)} What was logged does not "
        f"tell why: look at the gradients and the data there, try a lower learning rate or clipped "
        f"gradients.",
    )


def _steadily(deaths: _Deaths) -> Diagnosis | None:
    hit = [window for window in deaths.windows if deaths.within(window)]
    if len(hit) < _WINDOWS:
        return None
    most = max(map(deaths.within, hit))
    decay = max((window.weight_decay for window in deaths.windows), default=0.0)
    advice = "Lower the learning rate"
    if decay:
        advice += f" or the weight decay ({magnitude(decay)})"
    return Diagnosis(
        "steadily",
        f"Died steadily: {count(deaths.died)} of the {count(deaths.total)} dead units died at "
        f"{plural(len(hit), deaths.evidence.of)} from step {count(hit[0].end)} to "
        f"{count(hit[-1].end)}, at most {count(most)} at once.{_rate(deaths)} {advice}.",
    )


# --- figures ------------------------------------------------------------------------------------


def _share_of(
    deaths: _Deaths, condition: Callable[[Biases], Tensor], units: dict[str, Tensor]
) -> float | None:
    """Return for which share of some units a condition on their biases holds, None if unknown.

    Of units whose biases are not known it is not known: they count as if it did not hold.
    """
    total = sum(int(mask.sum()) for mask in units.values())
    held = 0
    for name, biases in deaths.evidence.biases.items():
        if name in units and len(units[name]) == len(biases.now):
            held += int((condition(biases) & units[name]).sum())
    known = any(name in units for name in deaths.evidence.biases)
    return held / total if known and total else None


def _when(deaths: _Deaths) -> str:
    """Say in which steps those died that died in training."""
    hit = [window for window in deaths.windows if deaths.within(window)]
    return f"between steps {count(hit[0].start)} and {count(hit[-1].end)}"


def _rate(deaths: _Deaths, window: Window | None = None) -> str:
    """Say what the learning rate was in a window, or in those in which units died."""
    windows = [window] if window else [it for it in deaths.windows if deaths.within(it)]
    rates = [it.highest_rate for it in windows if not math.isnan(it.highest_rate)]
    if not rates:
        return ""
    if magnitude(min(rates)) == magnitude(max(rates)):
        return f" The learning rate was {magnitude(max(rates))} there."
    return f" The learning rate was {magnitude(min(rates))} to {magnitude(max(rates))} there."


def _loss(deaths: _Deaths, start: int, end: int) -> str:
    """Say how the loss that was logged changed from one step to another."""
    before = next((it for it in deaths.windows if it.end == start), None)
    after = next((it for it in deaths.windows if it.end == end), None)
    if before is None or after is None or before.loss_name != after.loss_name:
        return ""
    if math.isnan(before.loss) or not after.loss_name:
        return ""
    losses = f"{magnitude(before.loss)} to {magnitude(after.loss)}"
    return f" {after.loss_name} went from {losses} meanwhile."
