"""Which of the user's passes are recorded for the next event.

Of a validation the first batch of each loader, of training one batch, and of both any batch that
runs modules which are on no tape yet. All are passes that run anyway. Tapes hold copies of their
batches, so they are recorded only while an event may be due, and dropped after it.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable

from torch import nn

from lightning_deadunits.reinit.recording import Recorder, Tape
from lightning_deadunits.reinit.training.coverage import Coverage, shows_more

_MOST_SEARCHES = 32
"""How many batches are recorded in the hope that they run what is on no tape, per event."""


class Tapes:
    """Records passes of one model.

    Args:
        model: The LightningModule.
        layers: Patterns of layers that the user has named.

    Attributes:
        evaluation: Recorded validation steps.
        training: Recorded training steps.
    """

    def __init__(self, model: nn.Module, layers: tuple[str, ...] | None) -> None:
        self.model = model
        self.evaluation: list[Tape] = []
        self.training: list[Tape] = []
        self._recorder = Recorder(model, layers, lambda: is_in_step(model))
        self._coverage = Coverage(model)
        self._recorded: set[int] = set()
        self._searches = 0
        self._begun: int | None = None
        self._failed = self._last = False

    @property
    def missing(self) -> list[str]:
        """Names of modules and parameters that were used and are on no tape."""
        return self._coverage.missing

    @property
    def incomplete(self) -> bool:
        """Whether the next training batches are to be recorded before anything is done."""
        wanted = not self.training or bool(self._coverage.missing_in_training)
        return wanted and self._searches < _MOST_SEARCHES and not self._failed

    def start_validation(self) -> None:
        """Drop the tapes of the last validation."""
        self.cancel()
        self.evaluation = []
        self._recorded &= {_TRAINING}
        self._coverage.start(self.training)

    def drop(self, *, evaluation: bool) -> None:
        """Drop the tapes of training, and perhaps those of validation, with their batches."""
        self.cancel()
        self.training, self._searches = [], 0
        self._recorded.discard(_TRAINING)
        if evaluation:
            self.evaluation, self._recorded = [], set()
        self._coverage.unwatch()
        self._coverage.forget()
        self._coverage.start(self.evaluation)

    def begin_training_batch(self, *, last: bool) -> None:
        """Record a training batch, if there is none or something is missing.

        Args:
            last: Whether it is the last one before a verdict on training batches. That is recorded
                in any case, and others are kept only for what it does not show: a training that is
                resumed in between has this one as well, and comes to the same weights.
        """
        self._last = last
        if last:
            self._recorded.discard(_TRAINING)
        self._begin(_TRAINING, wanted=True)

    def begin_validation_batch(self, loader: int, *, wanted: bool) -> None:
        """Record a batch of a validation loader, if there is none or something is missing.

        Args:
            loader: Number of the loader.
            wanted: Whether it may be the first one of its loader.
        """
        self._last = False
        self._begin(loader, wanted=wanted)

    def end_batch(self, *, training: bool) -> None:
        """Keep the tape, if one was begun and shows anything new; take note of what ran."""
        source, self._begun = self._begun, None
        if source is not None:
            self._safely(lambda: self._keep(source))
        elif training and self.training:
            self._safely(self._coverage.note_gradients)

    def cancel(self) -> None:
        """Forget a batch that was begun; harmless otherwise."""
        self._begun = None
        self._safely(self._recorder.cancel)

    def detach(self) -> None:
        """Leave nothing behind; harmless when there is nothing."""
        self.cancel()
        self._coverage.unwatch()

    def _begin(self, source: int, wanted: bool) -> None:
        if self._failed:
            return
        if source in self._recorded or not wanted:
            if not self.missing or self._searches >= _MOST_SEARCHES:
                return
            self._searches += 1
        self._begun = source
        self._safely(lambda: self._recorder.begin(training=source == _TRAINING))

    def _keep(self, source: int) -> None:
        tape, missing = self._recorder.end(), self.missing
        if tape is None:
            return
        first = source not in self._recorded
        self._recorded.add(source)
        self._coverage.note_tape(tape)
        if self._last:
            self.training = [tape, *(other for other in self.training if shows_more(other, tape))]
        elif first or len(self.missing) < len(missing):
            (self.training if tape.training else self.evaluation).append(tape)
        self._coverage.watch()

    def _safely(self, action: Callable[[], None]) -> None:
        """Recording that fails costs re-initialisation, and neither training nor monitoring."""
        try:
            action()
        except Exception as error:
            self._begun, self._failed = None, True
            trace = "".join(traceback.format_exception(error))
            warnings.warn(
                f"A batch could not be recorded, so that units will not be re-initialised; "
                f"training goes on. Please report this.\n{trace}",
                stacklevel=3,
            )


_TRAINING = -1
"""Stands for the training loader among the numbers of validation loaders."""


def is_in_step(model: nn.Module) -> bool:
    """Tell whether a LightningModule's step is running, rather than hooks before and after it.

    Lightning's own note of what it calls; without it everything between two hooks is recorded.
    """
    name = getattr(model, "_current_fx_name", None)
    return name is None or name.endswith("_step")
