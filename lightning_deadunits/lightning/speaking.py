"""What the callback says in the terminal: the report at the end, warnings as soon as they are due.

At the end of ``fit``, ``validate``, ``test`` and ``predict`` the table and the diagnosis, if
anything is dead or could not be judged, else one line. In between one warning when the dead
fraction jumps, one per layer that is wholly dead, one per layer that cannot be judged.
"""

from __future__ import annotations

import warnings
from typing import Any

from lightning_deadunits.lightning.terminal import announce, beside_progress_bar
from lightning_deadunits.reporting.course import Figures
from lightning_deadunits.reporting.figures import count, percent, plural
from lightning_deadunits.reporting.gaps import gaps, warn_of_cuts, warn_of_gaps
from lightning_deadunits.reporting.report import DeadUnitsReport

_JUMP = 0.1
"""Rise of the dead fraction between two validations that is worth a warning."""
_FIRST = 0.25
"""Dead fraction at the first validation that is: some units are born dead in many networks."""


class Speaker:
    """Says what is to be said, each once.

    Args:
        verbose: Whether to say the report at the end. Warnings come in any case.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self._told: set[str] = set()
        self._cut: set[str] = set()
        self._jumped = False
        self._before: DeadUnitsReport | Figures | None = None
        self._unsaid: DeadUnitsReport | None = None

    def note(self, trainer: Any, report: DeadUnitsReport) -> None:
        """Take a new report, and warn of what cannot wait for the end."""
        self._unsaid = report
        if trainer.is_global_zero:
            with beside_progress_bar(trainer):
                warn_of_gaps(report, self._told)
                known = len(self._cut)
                warn_of_cuts(report, self._cut)
                if report.step is not None and len(self._cut) == known:
                    self._warn_of_jump(report)
        if report.step is not None:
            self._before = report

    def resume(self, latest: Figures | None) -> None:
        """Take what the last validation found before this run was resumed."""
        self._before = latest

    def keep(self, report: DeadUnitsReport) -> None:
        """Take a report for the end, of which somebody else has warned."""
        self._unsaid = report

    def end(self, trainer: Any) -> None:
        """Say the last report, if that has not been done."""
        report, self._unsaid = self._unsaid, None
        if self.verbose and report is not None:
            announce(trainer, closing_words(report))

    def _warn_of_jump(self, report: DeadUnitsReport) -> None:
        before = self._before
        rise = report.dead_fraction - (0.0 if before is None else before.dead_fraction)
        if self._jumped or not rise >= (_FIRST if before is None else _JUMP):
            return
        self._jumped = True
        warnings.warn(jump(before, report), stacklevel=4)


def jump(before: DeadUnitsReport | Figures | None, after: DeadUnitsReport) -> str:
    """Say that many units died between two validations.

    Args:
        before: What the validation before has found, None at the first one.
        after: The report of the latest.
    """
    worst = max(after.layers.values(), key=lambda it: len(it.dead))
    most = f"most of them in {worst.name!r} ({count(len(worst.dead))} of {count(worst.num_units)})"
    now = percent(after.dead_fraction)
    assert after.step is not None
    if before is None or before.step is None:
        said = f"{now} of {plural(after.num_units, 'unit')} are dead at the first validation, step"
        return f"{said} {count(after.step)}, {most}. The report at the end tells more."
    return (
        f"The dead fraction rose from {percent(before.dead_fraction)} to {now} between steps "
        f"{count(before.step)} and {count(after.step)}; of {plural(after.num_dead, 'dead unit')} "
        f"{most}. This is said once; TensorBoard shows the rest."
    )


def closing_words(report: DeadUnitsReport) -> str:
    """Return the table with its remarks, or one line where nothing is dead nor doubtful."""
    if report.num_dead or gaps(report):
        return f"\n{report}\n"
    layers = plural(len(report.layers), "layer")
    return f"No unit is dead: {plural(report.num_units, 'unit')} in {layers}."
