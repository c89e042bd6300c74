"""Every process re-initialises the same, or none does, and a difference stops the training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.distributed import gather_objects
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.weight_slice import WeightSlice


class RanksDifferError(RuntimeError):
    """Processes have re-initialised units differently; training would go on with other weights."""


def agreed(trainer: Any, event: Event | None, problem: str | None) -> str | None:
    """Return any process's problem, the same on every process.

    Args:
        trainer: The Trainer.
        event: What this process has written, None if it failed.
        problem: Why it failed.

    Raises:
        RanksDifferError: If they have come to different weights.
    """
    if trainer.world_size == 1:
        return problem
    own = (problem, "" if event is None or problem else checksum(event))
    everyone = gather_objects(trainer, own)
    problems = [theirs for theirs, _ in everyone if theirs is not None]
    if problems:
        return str(problems[0])
    if len({digest for _, digest in everyone}) > 1:
        raise RanksDifferError(
            "Processes have re-initialised units differently: their weights differed before, "
            "or the model does not compute the same on each of them."
        )
    return None


def checksum(event: Event) -> str:
    """Return a digest of what was written, and of what was there before."""
    digest = hashlib.sha256(repr(event.report.reinitialised).encode())
    for edit in event.outcome.edits:
        for (weights, values), before in zip(edit.slices(), edit.before(), strict=True):
            if weights.parameter.requires_grad:
                for tensor in (weights.positions, values, before):
                    digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()


def edited(event: Event) -> list[WeightSlice]:
    """Return every element of the model that an event has written, but no gradients."""
    gradients = {id(w.parameter.grad) for w in event.touched if w.parameter.grad is not None}
    return [
        weights
        for edit in event.outcome.edits
        for weights, _ in edit.slices()
        if id(weights.parameter) not in gradients
    ]


@contextmanager
def same_buffers(trainer: Any, pl_module: Any) -> Iterator[list[WeightSlice]]:
    """Give every process the first one's buffers for a while, so that all decide alike.

    Running statistics are each process's own between two forward passes of DDP. What is put into
    the list that this yields stays.
    """
    keep: list[WeightSlice] = []
    if trainer.world_size == 1:
        yield keep
        return
    buffers = [b for b in pl_module.buffers() if b.is_floating_point() and b.numel()]
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        firsts = buffer.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.broadcast(firsts, 0)
        _set(buffer, firsts)
    try:
        yield keep
    finally:
        values = [weights.read(weights.parameter) for weights in keep]
        for buffer, value in zip(buffers, own, strict=True):
            _set(buffer, value)
        for weights, value in zip(keep, values, strict=True):
            weights.write_(weights.parameter, value)


def _set(buffer: Tensor, value: Tensor) -> None:
    if not torch.equal(buffer, value):  # an expanded one cannot be written to
        buffer.copy_(value)
