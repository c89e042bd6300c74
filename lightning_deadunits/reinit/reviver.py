"""Reviver: re-initialises dead units in the course of a training, for the callback."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_deadunits.processes import device_of, gather_objects, sum_tensors
from lightning_deadunits.reinit.averages import copies_of, edit_copies_
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.edit import Edit
from lightning_deadunits.reinit.fitness import model_refusal
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

_Result = TypeVar("_Result")


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
        self._impossible = False
        self._window = Window(config)
        self._memory: OptimizerMemory | None = None
        self._optimizers: list[Any] = []
        self._names: dict[Tensor, str] = {}
        self._corrections: list[Any] = []

    @property
    def needs_example(self) -> bool:
        """Whether :meth:`remember_batch` is to be called with validation batches."""
        return self.config.every_n_train_steps is None

    def begin(self, trainer: Any) -> None:
        """Say once if nothing of this model can be re-initialised; then nothing else is done."""
        reason = model_refusal(trainer.model)
        self._impossible = reason is not None
        if self._impossible and trainer.is_global_zero:
            warnings.warn(
                f"Dead units are found and logged, but will not be re-initialised: {reason}.",
                stacklevel=2,
            )

    # --- deciding -----------------------------------------------------------------------------

    def remember_batch(self, batch: Any) -> None:
        """Keep a few samples of a validation, on every process."""
        if self.needs_example:
            self._keep(batch)

    def _keep(self, batch: Any) -> None:
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
        if not self.needs_example or self._impossible:
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
        if self._impossible:
            return None
        self._resume(trainer, pl_module)
        event = None
        if self._pending or self._measure:
            event = self._act(trainer, pl_module)
        if not self.needs_example:
            self._keep(batch)
            self._window.begin(pl_module, trainer.global_rank, trainer.world_size)
        return event

    def after_train_batch(self, trainer: Any, pl_module: Any) -> None:
        """Stop counting; judge when the window is full."""
        if self.needs_example or self._impossible:
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
        event, problem = self._attempt(trainer, pl_module)
        self._pending, self._measure = {}, False
        if problem is not None:
            warnings.warn(
                f"Dead units were not re-initialised at step {trainer.global_step}, all is as it "
                f"was: {problem}",
                stacklevel=2,
            )
        if event is None:
            return None
        report = event.report
        self._schedule.revived(report.reinitialised)
        self._schedule.refused(report.refused)
        if not (report.reinitialised or report.refused or report.planned):
            return None
        self.events.append(report)
        return report

    def _attempt(self, trainer: Any, pl_module: Any) -> tuple[Event | None, str | None]:
        """Re-initialise on every process alike; return why not, if so.

        A process that fails takes part in every exchange all the same: the others wait for it.
        """
        batch = self._shared_batch(trainer)
        with same_buffers(trainer, pl_module) as keep:
            units, problem = self._units(trainer, pl_module, batch)
            if problem is None:
                done, problem = attempted(lambda: self._operate_(trainer, pl_module, batch, units))
                problem = self._agreed(trainer, done, problem)
                if problem is None and done is not None:
                    keep += edited(done[0])
                    return done[0], None
        # Tried again, but ever more rarely, whatever the reason.
        self._schedule.refused({name: dict.fromkeys(own, "") for name, own in units.items()})
        return None, problem

    def _operate_(
        self, trainer: Any, pl_module: Any, batch: Any, units: Units
    ) -> tuple[Event, Edit]:
        """Re-initialise on this process: the model, the optimizers' memory, averaged copies."""
        event = Event(
            self._example_of(trainer, pl_module, first_samples(batch)),
            self._memory_of(trainer, pl_module),
            self.config,
            seed=self.config.seed,
            step=trainer.global_step,
        )
        try:
            event.operate_(units)
            event.commit_()
            return event, edit_copies_(copies_of(trainer, pl_module), edited(event))
        except BaseException:
            event.undo_()
            raise

    def _units(self, trainer: Any, pl_module: Any, batch: Any) -> tuple[Units, str | None]:
        """Return what is due, the same on every process, and why that cannot be told if so."""
        if not self._measure:
            return self._pending, None
        measured = attempted(
            lambda: dormant_units(self._example_of(trainer, pl_module, batch), self.config)
        )
        everyone = gather_objects(trainer, measured)
        problem = next((theirs for _, theirs in everyone if theirs is not None), None)
        if problem is not None:
            return {}, problem
        return self._schedule.judge(everyone[0][0]), None

    def _shared_batch(self, trainer: Any) -> Any:
        """Return the samples of the first process that has any: all trace the same."""
        if trainer.world_size == 1:
            return self._example.batch
        kept = gather_objects(trainer, plain(self._example.batch))
        return next((batch for batch in kept if batch is not None), None)

    def _example_of(self, trainer: Any, pl_module: Any, batch: Any) -> Example:
        if batch is None:
            raise ValueError("no batch was kept that it could be tried on")
        batch = mapped_tensors(batch, lambda tensor: tensor.to(pl_module.device))
        return Example(pl_module, batch, step_of(trainer, pl_module, not self.needs_example))

    def _agreed(
        self, trainer: Any, done: tuple[Event, Edit] | None, problem: str | None
    ) -> str | None:
        """Return any process's problem and take everything back; raise if weights differ."""
        own = (problem, "" if done is None else checksum(done[0]))
        everyone = gather_objects(trainer, own)
        problem = next((theirs for theirs, _ in everyone if theirs is not None), None)
        differ = len({digest for _, digest in everyone}) > 1
        if done is not None and (differ or problem is not None):
            event, copies = done
            copies.undo_()
            event.undo_()
        if differ and problem is None:
            raise RanksDifferError(
                "Processes have re-initialised units differently: their weights differed before, "
                "or the model does not compute the same on each of them."
            )
        return problem

    # --- optimizers and state -----------------------------------------------------------------

    def _memory_of(self, trainer: Any, pl_module: Any) -> OptimizerMemory:
        """Return what the optimizers of now remember, with the step corrections so far."""
        optimizers = optimizers_of(trainer, pl_module)
        self._names = {p: name for name, p in pl_module.named_parameters()}
        if self._memory is None or self._optimizers != optimizers:
            corrections = self._corrections if self._memory is None else self._saved()
            self._optimizers, self._memory = optimizers, OptimizerMemory(optimizers)
            self._corrections = []
            if corrections:
                parameters = {name: parameter for parameter, name in self._names.items()}
                self._memory.load_state_dict(corrections, parameters)
                self._memory.drop_outdated()
        return self._memory

    def _resume(self, trainer: Any, pl_module: Any) -> None:
        """Go on with the step corrections of a checkpoint, or of optimizers that were replaced."""
        replaced = self._memory and self._optimizers != optimizers_of(trainer, pl_module)
        if self._corrections or replaced:
            _, problem = attempted(lambda: self._memory_of(trainer, pl_module))
            if problem is not None:
                warnings.warn(
                    f"Weights re-initialised before are stepped like all others: {problem}",
                    stacklevel=2,
                )

    def _saved(self) -> list[Any]:
        return self._corrections if self._memory is None else self._memory.state_dict(self._names)

    def detach(self) -> None:
        """Leave nothing behind on the model and the optimizers; harmless when there is nothing."""
        self._window.detach()
        if self._memory is not None:
            # A checkpoint may still be written after an exception.
            self._corrections = self._saved()
            self._memory.detach()
        self._memory, self._optimizers, self._names = None, [], {}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        waiting = bool(self._pending) or self._measure
        return {
            "schedule": self._schedule.state_dict(),
            "pending": self._pending,
            "measure": self._measure,
            "example": plain(self._example.batch) if waiting or not self.needs_example else None,
            "stale": self._stale,
            "window": self._window.state_dict(),
            "corrections": self._saved(),
            "last": None if not self.events else dict(self.events[-1].reinitialised),
        }

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> None:
        """Add what other processes have counted: each goes on with its own."""
        if not self.needs_example and not self._window.untouched:
            state["window"]["ranks"] = gather_objects(trainer, state["window"]["ranks"][0])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self._schedule.load_state_dict(state["schedule"])
        self._pending, self._measure = dict(state["pending"]), bool(state["measure"])
        self._example.batch, self._stale = state["example"], bool(state["stale"])
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


def attempted(function: Callable[[], _Result]) -> tuple[_Result | None, str | None]:
    """Return what a function returns, or what it raises in words."""
    try:
        return function(), None
    except Exception as error:  # whatever the user's code raises on an example
        return None, f"{type(error).__name__}: {error}"


def optimizers_of(trainer: Any, pl_module: Any) -> list[Optimizer]:
    """Return the Trainer's optimizers, and those that a module steps without it knowing."""
    own = [value for value in vars(pl_module).values() if isinstance(value, Optimizer)]
    return list({id(each): each for each in (*trainer.optimizers, *own)}.values())


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
        if not torch.equal(firsts, buffer):  # an expanded one cannot be written to
            buffer.copy_(firsts)
    try:
        yield keep
    finally:
        values = [weights.read(weights.parameter) for weights in keep]
        for buffer, value in zip(buffers, own, strict=True):
            if not torch.equal(value, buffer):
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
