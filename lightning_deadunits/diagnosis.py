"""One line on how the units died, with the figures it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_deadunits.report import DeadUnitsReport

_TOGETHER = 0.5
"""Share of all deaths at one validation from which on units died together."""
_STEADY_VALIDATIONS = 3
_FEW = 2
_SHARE = 0.05
"""Neither two units nor a twentieth of all are enough to conclude from."""


class Death(NamedTuple):
    """What one validation showed.

    Attributes:
        step: Training step of the validation.
        died: Units that are dead now and were alive at the validation before.
        born: Units that were dead when their layer was seen for the first time.
    """

    step: int
    died: int
    born: int


def diagnose(deaths: Sequence[Death], report: DeadUnitsReport) -> str | None:
    """Say how the units that are dead now came to be so, None where too little is known.

    Args:
        deaths: What every validation showed, in order.
        report: The latest report, completed with the history.
    """
    born = sum(
        int(layer.born_dead.sum())
        for layer in report.layers.values()
        if layer.born_dead is not None
    )
    died = sum(death.died for death in deaths)
    if max(born, died) <= max(_FEW, _SHARE * report.num_units) or not report.num_dead:
        return None
    return _of_birth(born, report) if born >= died else _of_deaths(deaths, died, report)


def _of_birth(born: int, report: DeadUnitsReport) -> str:
    return (
        f"Born dead: {born} of the {report.num_dead} dead units were alive at no validation. "
        f"Look at the initialisation, the biases, the scale of the inputs and the first steps."
    )


def _of_deaths(deaths: Sequence[Death], died: int, report: DeadUnitsReport) -> str | None:
    worst = max(range(len(deaths)), key=lambda index: deaths[index].died)
    step, most, _ = deaths[worst]
    if most >= _TOGETHER * died and most > _FEW:
        before = deaths[worst - 1].step if worst else 0
        return (
            f"Died together: {most} of {died} deaths between steps {before} and {step}. "
            f"One step was too large: look at the learning rate there, warm it up, clip gradients."
        )
    active = [death for death in deaths if death.died]
    if len(active) < _STEADY_VALIDATIONS:
        return None
    return (
        f"Dying steadily: {died} deaths at {len(active)} validations from step {active[0].step} "
        f"to {active[-1].step}, at most {most} at once. Lower the learning rate or weight decay."
    )
