"""Windows of training batches: counted, judged over all processes and logged like a validation.

For trainings without validation, and beside it. What is computed anew by activation checkpointing
during backward is not counted.

The names under which a window is logged are a validation's where there is none, so that whoever
monitors them need not know who gave the verdict; where there is one they begin with ``train/``.
The same holds for ``callback.report`` and ``callback.history``: a validation's wherever there is
one, for its data are the same every time and its model does not change while it is judged.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from lightning_deadunits.distributed import logged_step
from lightning_deadunits.lightning.failure_guard import Guard, guarded
from lightning_deadunits.lightning.logging import log_window, write_report
from lightning_deadunits.lightning.terminal import beside_progress_bar
from lightning_deadunits.lightning.together import check_selection, report_of_all
from lightning_deadunits.observation.sums import Seen
from lightning_deadunits.observation.tally import Agreement
from lightning_deadunits.reinit import ReinitConfig
from lightning_deadunits.reinit.training.windows import Watch, Window, Zeros
from lightning_deadunits.reporting.gaps import warn_of_cuts, warn_of_gaps
from lightning_deadunits.reporting.history import History
from lightning_deadunits.reporting.report import DeadUnitsReport

BESIDE = "train/"
"""What the names of logged values begin with where a validation gives verdicts, too."""


class TrainWindows:
    """Counts training batches, and gives a report when a window of them is full.

    Args:
        length: How many batches are a window.
        watch: What the callback watches.
        guard: Whether the callback's monitoring failed.
        reinit: Whose patterns are checked against what runs, where no validation does it.
        per_unit: Whether to write vectors of rates for TensorBoard's Dead Units tab.
        custom_scalars: Whether to lay out one chart with all layers, where no validation does.

    Attributes:
        report: That of the last window, None before the first one has ended.
        history: Since when units are dead, by the windows.
        prefix: What the names of logged values begin with.
    """

    def __init__(
        self,
        length: int,
        watch: Watch,
        guard: Guard,
        *,
        reinit: ReinitConfig | None,
        per_unit: bool,
        custom_scalars: bool,
    ) -> None:
        self.report: DeadUnitsReport | None = None
        self.history = History(of="window")
        self.prefix = ""
        self._watch, self._guard, self._reinit = watch, guard, reinit
        self._per_unit, self._custom_scalars = per_unit, custom_scalars
        self._window = Window(partial(Zeros, watch=watch))
        self._length, self._batches = length, 0
        self._agreement = Agreement()
        self._checked = False
        self._told: set[str] = set()
        self._cut: set[str] = set()

    def begin_fit(self, validates: bool) -> None:
        """Choose the names: a validation's belong to it."""
        self.prefix = BESIDE if validates else ""

    @property
    def full(self) -> bool:
        """Whether a window has as many batches as it takes."""
        return self._batches >= self._length

    @property
    def ends_next(self) -> bool:
        """Whether the batch that is counted, or comes next, is the last one of a window."""
        return self._batches + 1 == self._length

    @guarded
    def begin_batch(self, pl_module: Any) -> None:
        """Count what runs from now on."""
        self._window.begin(pl_module)

    def end_batch(self) -> None:
        """Count no longer; a batch that could not be counted is one all the same."""
        self._batches += 1
        self._end()

    @guarded
    def _end(self) -> None:
        self._window.end()

    def judge(self, trainer: Any, pl_module: Any) -> DeadUnitsReport | None:
        """Judge a full window by what all processes saw, log it and begin the next one.

        Returns:
            The report, the same on every process; None if monitoring failed.
        """
        watch = self._watch
        if not self._checked:
            self._checked = check_selection(
                trainer, self._window.observer, self._guard, watch.layers, watch.exclude,
                reinit=None if self.prefix else self._reinit,
            )  # fmt: skip
        report = report_of_all(
            trainer,
            pl_module,
            self._seen() or Seen(),
            self._guard,
            agreement=self._agreement,
            dead_threshold=watch.dead_threshold,
            atol=watch.atol,
            names=watch.names,
        )
        self._batches = 0
        self._restart()
        if report is not None:
            self._take_note(trainer, pl_module, report)
            report = self.report
        return report

    @guarded
    def _seen(self) -> Seen | None:
        observer = self._window.observer
        return None if observer is None else observer.seen()

    @guarded
    def _restart(self) -> None:
        self._window.restart()

    @guarded
    def _take_note(self, trainer: Any, pl_module: Any, report: DeadUnitsReport) -> None:
        step = logged_step(trainer)
        self.report = self.history.record(report, step)
        log_window(trainer, pl_module, self.report, self.prefix, step)
        layout = self._custom_scalars and not self.prefix
        write_report(trainer, self.report, self._per_unit, layout, step, self.prefix)
        if trainer.is_global_zero:
            with beside_progress_bar(trainer):
                warn_of_gaps(self.report, self._told)
                warn_of_cuts(self.report, self._cut)

    def end_fit(self) -> None:
        """Say so if training was too short for a window."""
        if self.report is None and self._batches and not self._guard.gave_up:
            warnings.warn(
                f"DeadUnitCallback judged no training batches: there were "
                f"{self._batches}, and a window takes {self._length}.",
                stacklevel=2,
            )

    def detach(self) -> None:
        """Count no longer, whatever is going on; harmless when nothing is."""
        self._window.detach()

    _let_go = detach

    def leave(self) -> None:
        """Keep nothing that belongs to the processes of this training."""
        self.detach()
        self._agreement = Agreement()

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        window = {"batches": self._batches, **self._window.state_dict()}
        return {"window": window, "history": self.history.state_dict()}

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> None:
        """Add to a state what other processes have counted."""
        self._window.complete_state(trainer, state["window"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self._batches = int(state["window"]["batches"])
        self._window.load_state_dict(state["window"])
        self.history.load_state_dict(state["history"])
