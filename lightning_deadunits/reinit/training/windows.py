"""A window of batches, seen one by one by an observer, after which somebody judges what it saw.

The callback has one of training batches, for its report; re-initialisation has another one where
counts of zeros are not enough to judge by (dormancy).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_deadunits.distributed import gather_objects
from lightning_deadunits.reinit.training.observers import TrainingObserver


class Window:
    """Observes batches until there are as many as are asked for.

    Args:
        length: How many batches; None for a window that ends when somebody says so.
        make: Makes the observer of a model.

    Attributes:
        batches: How many batches began and ended since the window began.
        observer: What observes them, None before the first one of this process.
    """

    def __init__(self, length: int | None, make: Callable[[Any], TrainingObserver]) -> None:
        self.length, self._make = length, make
        self.batches = 0
        self.observer: TrainingObserver | None = None
        self._saved: list[dict[str, Any]] = []

    @property
    def full(self) -> bool:
        """Whether as many batches were observed as are asked for."""
        return self.length is not None and self.batches >= self.length

    def begin(self, model: Any) -> None:
        """Start observing a batch."""
        if self.observer is None or self.observer.model is not model:
            self.observer = self._make(model)
            # What one process has seen is taken up by one, however many there are now.
            for saved in self._saved[model.global_rank :: model.trainer.world_size]:
                self.observer.load(saved, model.device)
            self._saved = []
        self.observer.attach()
        self.observer.begin()

    def end(self) -> None:
        """Stop observing a batch, which counts even if it could not be observed."""
        self.batches += 1
        if self.observer is not None:
            self.observer.end()
            self.observer.detach()

    def restart(self) -> None:
        """Begin the next window."""
        self.batches = 0
        if self.observer is not None:
            self.observer.reset()

    def detach(self) -> None:
        """Stop observing, whatever is going on; a batch that did not end is not counted."""
        if self.observer is not None:
            self.observer.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far, tensors and primitives only, per process."""
        saved = self._saved if self.observer is None else [self.observer.saved()]
        return {"batches": self.batches, "saved": saved}

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with what all processes have seen."""
        if self.observer is None:
            return state  # still the one that was loaded, which is complete
        everyone = gather_objects(trainer, state["saved"])
        return state | {"saved": [saved for theirs in everyone for saved in theirs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.batches = int(state["batches"])
        self._saved = list(state["saved"])
        self.observer = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the observer out of copies: it belongs to the modules of one process."""
        return {**self.__dict__, "observer": None, "_saved": self.state_dict()["saved"]}
