"""One line on how the units died, with the figures it rests on."""

from __future__ import annotations

from typing import NamedTuple

from lightning_deadunits.reporting.report import DeadUnitsReport

_TOGETHER = 0.5
"""Share of all deaths at one validation from which on units died together."""
_STEADY_VALIDATIONS = 3
_FEW = 2
_SHARE = 0.05
"""Neither two units nor a twentieth of all are enough to conclude from."""


class Deaths(NamedTuple):
    """How units died in the course of a training, in as much memory for a thousand validations.

    Attributes:
        died: How many units died that had been alive at the validation before.
        validations: At how many validations some died.
        first: Step of the first of these.
        last: Step of the last of these.
        most: Most that died at one validation.
        most_at: Step of that one.
        before_most: Step of the validation before that one, 0 if there was none.
        latest: Step of the latest validation.
    """

    died: int = 0
    validations: int = 0
    first: int = 0
    last: int = 0
    most: int = 0
    most_at: int = 0
    before_most: int = 0
    latest: int = 0

    def then(self, step: int, died: int) -> Deaths:
        """Return what is known after one more validation."""
        known = self._replace(latest=step)
        if not died:
            return known
        known = known._replace(
            died=self.died + died,
            validations=self.validations + 1,
            first=self.first if self.validations else step,
            last=step,
        )
        if died > self.most:
            known = known._replace(most=died, most_at=step, before_most=self.latest)
        return known


def diagnose(deaths: Deaths, report: DeadUnitsReport) -> str | None:
    """Say how the units that are dead now came to be so, None where too little is known.

    Args:
        deaths: How units died so far.
        report: The latest report, completed with the history.
    """
    born = sum(
        int(layer.born_dead.sum())
        for layer in report.layers.values()
        if layer.born_dead is not None
    )
    few = max(_FEW, _SHARE * report.num_units)
    if max(born, deaths.died) <= few or not report.num_dead:
        return None
    return _of_birth(born, report) if born >= deaths.died else _of_deaths(deaths)


def _of_birth(born: int, report: DeadUnitsReport) -> str:
    return (
        f"Born dead: {born} of the {report.num_dead} dead units were alive at no validation. "
        f"Look at the initialisation, the biases, the scale of the inputs and the first steps."
    )


def _of_deaths(deaths: Deaths) -> str | None:
    if deaths.most >= _TOGETHER * deaths.died and deaths.most > _FEW:
        return (
            f"Died together: {deaths.most} of {deaths.died} deaths between steps "
            f"{deaths.before_most} and {deaths.most_at}. One step was too large: look at the "
            f"learning rate there, warm it up, clip gradients."
        )
    if deaths.validations < _STEADY_VALIDATIONS:
        return None
    return (
        f"Dying steadily: {deaths.died} deaths at {deaths.validations} validations from step "
        f"{deaths.first} to {deaths.last}, at most {deaths.most} at once. Lower the learning rate "
        f"or weight decay."
    )
