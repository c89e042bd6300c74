"""A window that fails to count is a warning, on all processes alike; training goes on."""

from __future__ import annotations

import traceback
import warnings
from typing import Any

from torch import Tensor

from lightning_deadunits.distributed import Processes
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.training.observers import Watch
from lightning_deadunits.reinit.training.windows import Window


class GuardedWindow(Window):
    """A window that no process judges any longer once one of them failed to count.

    Args:
        config: The options.
        watch: What the callback watches.
    """

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        super().__init__(config, watch)
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
        """Return which units of each layer are due, none once any process failed."""
        if self._ended:
            return {}
        failures = [text for text in processes.gather(self._failure) if text]
        if failures:
            self._ended = True
            warnings.warn(
                f"Dead units are re-initialised no longer, for counting failed; training goes on. "
                f"Please report this.\n{failures[0]}",
                stacklevel=2,
            )
            return {}
        return super().verdict(processes)

    def _give_up(self, error: Exception) -> None:
        """Count no longer, and take down why: the other processes are told at the verdict."""
        self._failure = "".join(traceback.format_exception(error))
        self.detach()
