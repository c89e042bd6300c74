"""A window of mean magnitudes that fails is a warning, on all processes alike; training goes on."""

from __future__ import annotations

import traceback
import warnings
from functools import partial
from typing import Any

from torch import Tensor

from lightning_deadunits.distributed import Processes
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.training.observers import Magnitudes, Watch
from lightning_deadunits.reinit.training.windows import Window


class GuardedWindow(Window):
    """A window by which dormancy is judged, until a process fails to measure.

    Args:
        config: The options.
        watch: What the callback watches.
    """

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        make = partial(Magnitudes, watch=watch, tau=config.tau)
        super().__init__(config.every_n_train_steps, make)
        self._failure: str | None = None
        self._ended = False

    def begin(self, model: Any) -> None:
        """Start observing a batch, unless that failed before."""
        if self._failure is None and not self._ended:
            try:
                super().begin(model)
            except Exception as error:
                self._give_up(error)

    def end(self) -> None:
        """Stop observing a batch."""
        try:
            super().end()
        except Exception as error:
            self._give_up(error)

    def verdict(self, processes: Processes) -> dict[str, Tensor]:
        """Return which units of each layer are due, none once any process failed; start anew."""
        if self._ended:
            return {}
        failures = [text for text in processes.gather(self._failure) if text]
        if failures:
            self._ended = True
            warnings.warn(
                f"Dead units are re-initialised no longer, for measuring failed; training goes on. "
                f"Please report this.\n{failures[0]}",
                stacklevel=2,
            )
            return {}
        observer = self.observer
        due = observer.verdict(processes) if isinstance(observer, Magnitudes) else {}
        self.restart()
        return due

    def _give_up(self, error: Exception) -> None:
        """Measure no longer, and take down why: the other processes are told at the verdict."""
        self._failure = "".join(traceback.format_exception(error))
        self.detach()
