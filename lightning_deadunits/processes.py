"""What the processes of a Trainer do together, and at which step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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


def sum_tensors(trainer: Any, tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes."""
    if trainer.world_size == 1:
        return tensor
    reduced = trainer.strategy.reduce(tensor, reduce_op="sum")
    assert isinstance(reduced, Tensor)
    return reduced


def device_of(trainer: Any, pl_module: Any) -> torch.device:
    """Return the device on which the processes can sum."""
    device = pl_module.device
    assert isinstance(device, torch.device)
    return device


def logged_step(trainer: Any) -> int:
    """Return the step at which Lightning logs the metrics of this validation.

    Not ``global_step``, which counts every optimizer's step: all curves must share one axis.
    Lightning has no public name for it.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)
