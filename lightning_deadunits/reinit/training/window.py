"""A window of batches, observed one by one, after which units are judged.

A window that fails to count is a warning, on all processes alike, and training goes on.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_deadunits.distributed import Processes, gather_objects
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.training.observers import (
    Magnitudes,
    TrainingObserver,
    Watch,
    Zeros,
)


class Window:
    """Observes batches until there are as many as are asked for.

    No process judges any longer once one of them failed to count.

    Args:
        config: The options.
        watch: What the callback watches.
    """

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        self._config, self._watch = config, watch
        self._observer: TrainingObserver | None = None
        self._batches = 0
        self._saved: list[dict[str, Any]] = []
        self._failure: str | None = None
        self._ended = False

    @property
    def full(self) -> bool:
        """Whether as many batches were observed as are asked for."""
        return self._batches >= (self._config.every_n_train_steps or 1)

    def begin(self, model: Any) -> None:
        """Start observing a batch, unless that failed before."""
        if self._failure is None and not self._ended:
            self._safely(lambda: self._begin(model))

    def _begin(self, model: Any) -> None:
        if self._observer is None or self._observer.model is not model:
            self._observer = self._new(model)
            # What one process has seen is taken up by one, however many there are now.
            for saved in self._saved[model.global_rank :: model.trainer.world_size]:
                self._observer.load(saved, model.device)
            self._saved = []
        self._observer.attach()
        self._observer.begin()

    def _new(self, model: Any) -> TrainingObserver:
        if self._config.criterion == "dormant":
            return Magnitudes(model, self._watch, self._config.tau)
        return Zeros(model, self._watch)

    def end(self) -> None:
        """Stop observing a batch, which counts even if it could not be observed."""
        self._batches += 1
        self._safely(self._end)

    def _end(self) -> None:
        if self._observer is not None:
            self._observer.end()
            self._observer.detach()

    def verdict(self, processes: Processes) -> dict[str, Tensor]:
        """Return which units of each layer are due, by what all processes saw; start anew."""
        self._batches = 0
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
        if self._ended or self._observer is None:
            return {}
        due = self._observer.verdict(processes)
        self._observer.reset()
        return due

    def _safely(self, action: Callable[[], None]) -> None:
        """Take down why counting failed: the other processes are told at the verdict."""
        try:
            action()
        except Exception as error:
            self._failure = "".join(traceback.format_exception(error))
            self.detach()

    def detach(self) -> None:
        """Stop observing, whatever is going on."""
        if self._observer is not None:
            self._observer.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far, tensors and primitives only, per process."""
        saved = self._saved if self._observer is None else [self._observer.saved()]
        return {"batches": self._batches, "saved": saved}

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with what all processes have seen."""
        if self._observer is None:
            return state  # still the one that was loaded, which is complete
        everyone = gather_objects(trainer, state["saved"])
        return state | {"saved": [saved for theirs in everyone for saved in theirs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._batches = int(state["batches"])
        self._saved = list(state["saved"])
        self._observer = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the observer out of copies: it belongs to the modules of one process."""
        return {**self.__dict__, "_observer": None, "_saved": self.state_dict()["saved"]}
