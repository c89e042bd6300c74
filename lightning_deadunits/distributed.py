"""What the processes of a Trainer do together, and at which step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def skips_validation(trainer: Any, pl_module: Any) -> str | None:
    """Return why a process may skip validation, for then the others would wait for its counts."""
    allowed = any(
        getattr(owner, "allow_zero_length_dataloader_with_multiple_devices", False)
        for owner in (pl_module, trainer.datamodule)
    )
    if not allowed or trainer.world_size == 1:
        return None
    return (
        "`allow_zero_length_dataloader_with_multiple_devices` is set, and a process with an empty "
        "dataloader skips validation: the others would wait for its counts. An iterable dataset "
        "that yields nothing does take part."
    )


def gather_objects(trainer: Any, value: object) -> list[Any]:
    """Return the value of every process, in the order of their ranks.

    Raises:
        NotImplementedError: If there are several processes that ``torch.distributed`` ignores.
    """
    if trainer.world_size == 1:
        return [value]
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise NotImplementedError(
            f"DeadUnitCallback sums counts over processes with torch.distributed, which the "
            f"strategy {type(trainer.strategy).__name__} does not use."
        )
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


@dataclass(frozen=True)
class Processes:
    """The processes of a Trainer, as those need them who know no Trainer."""

    trainer: Any
    pl_module: Any

    @property
    def device(self) -> torch.device:
        """The device on which the processes can sum."""
        device = self.pl_module.device
        assert isinstance(device, torch.device)
        return device

    def gather(self, value: object) -> list[Any]:
        """Return the value of every process, see :func:`gather_objects`."""
        return gather_objects(self.trainer, value)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        if self.trainer.world_size == 1:
            return tensor
        reduced = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced


def silence_advice(names: Iterable[str]) -> None:
    """Keep Lightning from advising ``sync_dist`` for values that all processes share already.

    Following it would cost one collective per scalar.
    """
    for family in dict.fromkeys(name.split("/")[0] for name in names):
        warnings.filterwarnings("ignore", message=rf".*self\.log\('{family}\b.*sync_dist")


def logged_step(trainer: Any) -> int:
    """Return the step at which Lightning logs the metrics of this validation.

    Not ``global_step``, which counts every optimizer's step: all curves must share one axis.
    Lightning has no public name for it.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)
