"""What the optimizers of a Trainer remember, from checkpoint to checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_deadunits.reinit.optimizer_memory import OptimizerMemory


class TrainerMemory:
    """Follows the optimizers of a training: they are made late, and may be made anew."""

    def __init__(self) -> None:
        self._memory: OptimizerMemory | None = None
        self._optimizers: list[Any] = []
        self._names: dict[Tensor, str] = {}
        self._saved: list[Any] = []

    def resume(self, trainer: Any, pl_module: Any) -> None:
        """Bring back what a checkpoint holds, now that there are optimizers."""
        if not self._names:
            self._names = {p: name for name, p in pl_module.named_parameters()}
        if self._saved:
            parameters = {name: parameter for parameter, name in self._names.items()}
            self.of(trainer).load_state_dict(self._saved, parameters)
            self._saved = []

    def of(self, trainer: Any) -> OptimizerMemory:
        """Return the memory of the Trainer's present optimizers."""
        if self._memory is None or self._optimizers != trainer.optimizers:
            self._optimizers = list(trainer.optimizers)
            self._memory = OptimizerMemory(self._optimizers)
        return self._memory

    def detach(self) -> None:
        """Leave nothing behind on the optimizers; harmless when there is nothing."""
        # A checkpoint may still be written after an exception.
        self._saved = self.state_dict()
        if self._memory is not None:
            self._memory.detach()
        self._memory, self._optimizers, self._names = None, [], {}

    def state_dict(self) -> list[Any]:
        """Return tensors and primitives only."""
        return self._saved if self._memory is None else self._memory.state_dict(self._names)

    def load_state_dict(self, state: list[Any]) -> None:
        """Go on from :meth:`state_dict`, as soon as there are optimizers."""
        self._saved, self._memory = list(state), None
