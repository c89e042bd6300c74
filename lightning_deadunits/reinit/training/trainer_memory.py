"""What the optimizers of a Trainer remember, from checkpoint to checkpoint."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_deadunits.reinit.optimizers.memory import OptimizerMemory
from lightning_deadunits.reinit.optimizers.state import held_by


def optimizers_of(trainer: Any, pl_module: Any) -> list[Any]:
    """Return the Trainer's optimizers, and those that a module steps without it knowing."""
    own = [each for each in held_by(pl_module) if isinstance(each, Optimizer)]
    return list({id(each): each for each in (*trainer.optimizers, *own)}.values())


class TrainerMemory:
    """Follows the optimizers of a training: they are made late, and may be made anew."""

    def __init__(self) -> None:
        self._memory: OptimizerMemory | None = None
        self._optimizers: list[Any] = []
        self._names: dict[Tensor, str] = {}
        self._saved: list[Any] = []

    def resume(self, trainer: Any, pl_module: Any) -> None:
        """Go on with what a checkpoint holds, or what optimizers did that were replaced since."""
        replaced = self._memory and self._optimizers != optimizers_of(trainer, pl_module)
        if self._saved or replaced:
            try:
                self.of(trainer, pl_module)
            except (TypeError, ValueError) as error:
                warnings.warn(
                    f"Weights re-initialised before are stepped like all others from now on: "
                    f"{error}",
                    stacklevel=2,
                )

    def of(self, trainer: Any, pl_module: Any) -> OptimizerMemory:
        """Return the memory of the Trainer's present optimizers."""
        optimizers = optimizers_of(trainer, pl_module)
        if self._memory is None or self._optimizers != optimizers:
            saved, self._saved = self.state_dict(), []
            self._optimizers, self._memory = optimizers, OptimizerMemory(optimizers)
            if any(saved):
                parameters = dict(pl_module.named_parameters())
                self._memory.load_state_dict(saved, parameters)
                self._memory.drop_outdated()
        self._names = {p: name for name, p in pl_module.named_parameters()}
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
