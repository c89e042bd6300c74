"""Reviver: re-initialises dead units in the course of a training, for the callback."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.processes import device_of, gather_objects, sum_tensors
from lightning_deadunits.reinit.averages import copies_of, edit_copies_
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.keepsake import (
    MOST_SAMPLES,
    Keepsake,
    first_samples,
    mapped_tensors,
    plain,
)
from lightning_deadunits.reinit.lightning_step import step_of
from lightning_deadunits.reinit.optimizer_memory import OptimizerMemory
from lightning_deadunits.reinit.passes import Example
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reinit.revive import Event
from lightning_deadunits.reinit.schedule import Schedule
from lightning_deadunits.reinit.weight_slice import WeightSlice
from lightning_deadunits.reinit.windows import Window, dormant_units
from lightning_deadunits.report import DeadUnitsReport

_SCORED = 64
"""Samples that dormancy is measured on."""


class RanksDifferError(RuntimeError):
    """Processes have re-initialised units differently; training would go on with other weights."""


class Reviver:
    """Decides at validation, or every so many training batches, and acts before the next batch.

    A checkpoint that is written at validation so holds the weights that were evaluated.

    Args:
        config: The options.

    Attributes:
        events: What was done so far.
    """

    def __init__(self, config: ReinitConfig) -> None:
        self.config = config
        self.events: list[ReinitReport] = []
        self._schedule = Schedule(config)
        self._pending: Units = {}
        self._measure = False
        # A score is a mean: it takes more samples than tracing does.
        self._example = Keepsake(_SCORED if config.criterion == "dormant" else MOST_SAMPLES)
        self._stale = False
        self._window = Window(config)
        self._memory: OptimizerMemory | None = None
        self._optimizers: list[Any] = []
        self._names: dict[Tensor, str] = {}
        self._corrections: list[Any] = []

    @property
    def needs_example(self) -> bool:
        """Whether :meth:`remember_batch` is to be called with validation batches."""
        return self.config.every_n_train_steps is None

    # --- deciding -----------------------------------------------------------------------------

    def remember_batch(self, batch: Any) -> None:
        """Keep a few samples of a validation, on every process."""
        if self.needs_example:
            if self._stale:
                self._example.clear()
                self._stale = False
            self._example.offer(batch)

    def after_validation(self, report: DeadUnitsReport, step: int) -> None:
        """Take the report of a validation, the same on every process."""
        dead = {}
        for name, layer in report.layers.items():
            if layer.observations:
                dead[name] = torch.zeros(layer.num_units, dtype=torch.bool)
                dead[name][layer.dead] = True
        self._tell_outcome(dead)
        if not self.needs_example:
            return
        self._stale = True
        if self.config.criterion == "dormant":
            self._measure = True
        else:
            self._pending = self._schedule.judge(dead)

    def _tell_outcome(self, dead: Mapping[str, Tensor]) -> None:
        """Say of the last event how many of its units live, at the first verdict after it."""
        if self.events and self.events[-1].alive is None and self.events[-1].reinitialised:
            self.events[-1].tell_outcome(dead)

    # --- acting -------------------------------------------------------------------------------

    def before_train_batch(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> ReinitReport | None:
        """Re-initialise what is due; then count, if training batches are what decides.

        Raises:
            RanksDifferError: If processes come to different weights.
        """
        self._resume(trainer, pl_module)
        event = None
        if self._pending or self._measure:
            event = self._act(trainer, pl_module)
        if not self.needs_example:
            if self._stale:
                self._example.clear()
                self._stale = False
            self._example.offer(batch)
            self._window.begin(pl_module)
        return event

    def after_train_batch(self, trainer: Any, pl_module: Any) -> None:
        """Stop counting; judge when the window is full."""
        if self.needs_example:
            return
        self._window.end()
        if self._window.full:
            dead = self._window.verdict(
                device_of(trainer, pl_module),
                lambda value: gather_objects(trainer, value),
                lambda tensor: sum_tensors(trainer, tensor),
            )
            self._tell_outcome(dead)
            self._pending = self._schedule.judge(dead)
            self._stale = True

    def _act(self, trainer: Any, pl_module: Any) -> ReinitReport | None:
        report, problem = self._attempt(trainer, pl_module)
        self._pending, self._measure = {}, False
        if problem is not None:
            warnings.warn(
                f"Dead units were not re-initialised at step {trainer.global_step}, all is as it "
                f"was: {problem}",
                stacklevel=2,
            )
        if report is not None:
            self.events.append(report)
        return report

    def _attempt(self, trainer: Any, pl_module: Any) -> tuple[ReinitReport | None, str | None]:
        """Re-initialise on every process alike; return why not, if so."""
        event = problem = None
        units: Units = {}
        try:
            batch = self._shared_batch(trainer, pl_module)
            units = self._units(self._example_of(trainer, pl_module, batch))
            example = self._example_of(trainer, pl_module, first_samples(batch))
            event = Event(
                example,
                self._memory_of(trainer),
                self.config,
                seed=self.config.seed,
                step=trainer.global_step,
            )
            with same_buffers(trainer, pl_module) as keep:
                event.operate_(units)
                keep += edited(event)
        except Exception as error:  # whatever the user's code raises on an example
            problem = f"{type(error).__name__}: {error}"
        problem = self._agreed(trainer, event, problem)
        if event is None or problem is not None:
            if event is not None:
                event.undo_()
            self._schedule.refused({name: dict.fromkeys(own, "") for name, own in units.items()})
            return None, problem
        if not (event.report.reinitialised or event.report.refused or event.report.planned):
            return None, None
        try:
            event.commit_()
        except Exception as error:  # an optimizer of the user's own
            return None, f"{type(error).__name__}: {error}"
        edit_copies_(copies_of(trainer, pl_module), edited(event))
        self._schedule.revived(event.report.reinitialised)
        self._schedule.refused(event.report.refused)
        return event.report, None

    def _units(self, example: Example) -> Units:
        if not self._measure:
            return self._pending
        return self._schedule.judge(dormant_units(example, self.config))

    def _shared_batch(self, trainer: Any, pl_module: Any) -> Any:
        """Return the first process's samples, on every process: all trace the same."""
        batch = self._example.batch
        if trainer.world_size > 1:
            batch = gather_objects(trainer, plain(batch))[0]
        if batch is None:
            raise ValueError("no batch was kept that it could be tried on")
        device = pl_module.device
        return mapped_tensors(batch, lambda tensor: tensor.to(device))

    def _example_of(self, trainer: Any, pl_module: Any, batch: Any) -> Example:
        return Example(pl_module, batch, step_of(trainer, pl_module, not self.needs_example))

    def _agreed(self, trainer: Any, event: Event | None, problem: str | None) -> str | None:
        """Return any process's problem; raise if they have come to different weights."""
        if trainer.world_size == 1:
            return problem
        own = (problem, "" if event is None else checksum(event))
        everyone = gather_objects(trainer, own)
        if any(theirs is not None for theirs, _ in everyone):
            return next(str(theirs) for theirs, _ in everyone if theirs is not None)
        if len({digest for _, digest in everyone}) > 1:
            if event is not None:
                event.undo_()
            raise RanksDifferError(
                "Processes have re-initialised units differently: their weights differed before, "
                "or the model does not compute the same on each of them."
            )
        return None

    # --- optimizers and state -----------------------------------------------------------------

    def _memory_of(self, trainer: Any) -> OptimizerMemory:
        if self._memory is None or self._optimizers != trainer.optimizers:
            self._optimizers = list(trainer.optimizers)
            self._memory = OptimizerMemory(self._optimizers)
        return self._memory

    def _resume(self, trainer: Any, pl_module: Any) -> None:
        """Bring back the step corrections of a checkpoint, now that there are optimizers."""
        if not self._names:
            self._names = {p: name for name, p in pl_module.named_parameters()}
        if self._corrections:
            parameters = {name: parameter for parameter, name in self._names.items()}
            self._memory_of(trainer).load_state_dict(self._corrections, parameters)
            self._corrections = []

    def detach(self) -> None:
        """Leave nothing behind on the model and the optimizers; harmless when there is nothing."""
        self._window.detach()
        if self._memory is not None:
            # A checkpoint may still be written after an exception.
            self._corrections = self._memory.state_dict(self._names)
            self._memory.detach()
        self._memory, self._optimizers, self._names = None, [], {}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        corrections = self._corrections
        if self._memory is not None:
            corrections = self._memory.state_dict(self._names)
        waiting = bool(self._pending) or self._measure
        return {
            "schedule": self._schedule.state_dict(),
            "pending": self._pending,
            "measure": self._measure,
            "example": plain(self._example.batch) if waiting or not self.needs_example else None,
            "window": self._window.state_dict(),
            "corrections": corrections,
            "last": None if not self.events else dict(self.events[-1].reinitialised),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self._schedule.load_state_dict(state["schedule"])
        self._pending, self._measure = dict(state["pending"]), bool(state["measure"])
        self._example.batch = state["example"]
        self._window.load_state_dict(state["window"])
        self._corrections = list(state["corrections"])
        self._memory = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave hooks and tensors of this training out of copies: they are for another one."""
        fresh: dict[str, Any] = {
            "_memory": None,
            "_optimizers": [],
            "_names": {},
            "_window": Window(self.config),
        }
        return {**self.__dict__, **fresh}


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
        torch.distributed.broadcast(buffer, 0)
    try:
        yield keep
    finally:
        values = [weights.read(weights.parameter) for weights in keep]
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)
        for weights, value in zip(keep, values, strict=True):
            weights.write_(weights.parameter, value)


def edited(event: Event) -> list[WeightSlice]:
    """Return every element of the model that an event has written, but no gradients."""
    gradients = {id(w.parameter.grad) for w in event.touched if w.parameter.grad is not None}
    return [
        weights
        for edit in event.outcome.edits
        for weights, _ in edit.slices()
        if id(weights.parameter) not in gradients
    ]


def checksum(event: Event) -> str:
    """Return a digest of what was written, and of what was there before."""
    digest = hashlib.sha256(repr(event.report.reinitialised).encode())
    for edit in event.outcome.edits:
        for (weights, values), before in zip(edit.slices(), edit.before(), strict=True):
            if weights.parameter.requires_grad:
                for tensor in (weights.positions, values, before):
                    digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()
