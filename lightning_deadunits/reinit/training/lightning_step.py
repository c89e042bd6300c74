"""Runs a LightningModule's own step on an example, without a trace in logs or the Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def step_of(trainer: Any, pl_module: Any, on_training_batches: bool) -> Callable[[Any], Any]:
    """Return what runs the module on a batch, as the Trainer would.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        on_training_batches: Whether batches are those of training rather than validation.
    """
    name = _step_name(pl_module, on_training_batches)

    def run(batch: Any) -> Any:
        logged: list[Any] = []
        context = trainer.precision_plugin.val_step_context
        with _quiet(trainer, pl_module, logged), context():
            if name is None:
                return pl_module(batch), logged
            step = getattr(pl_module, name)
            return step(batch, *_indices(step)), logged

    return run


def _step_name(pl_module: Any, on_training_batches: bool) -> str | None:
    # With manual optimisation `training_step` trains.
    training = ["training_step"] if pl_module.automatic_optimization else []
    names = [*training, "validation_step"] if on_training_batches else ["validation_step"]
    return next((name for name in names if _overridden(pl_module, name)), None)


def _overridden(pl_module: Any, name: str) -> bool:
    """Tell whether the module's author wrote a step: Lightning's own default does nothing."""
    method = getattr(type(pl_module), name, None)
    home = getattr(method, "__module__", "")
    return method is not None and not home.startswith(("lightning.", "pytorch_lightning."))


def _indices(step: Callable[..., Any]) -> list[int]:
    """Return zeros for the indices of batch and dataloader, whatever the step calls them."""
    takes = inspect.signature(step).parameters.values()
    positional = [p for p in takes if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in takes):
        return [0]
    return [0] * min(2, len(positional) - 1)


@contextmanager
def _quiet(trainer: Any, pl_module: Any, logged: list[Any]) -> Iterator[None]:
    """Keep what is logged instead of logging it; the stage is validation for the time being."""

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        logged.append(value)

    def log_dict(values: Any, *args: Any, **kwargs: Any) -> None:
        logged.extend(values.values())

    loggers, stage = trainer.loggers, trainer.state.stage
    pl_module.__dict__.update(log=log, log_dict=log_dict)
    trainer.loggers = [_Nothing() for _ in loggers]
    if stage is not None:
        trainer.state.stage = type(stage)("validate")
    try:
        yield
    finally:
        trainer.loggers, trainer.state.stage = loggers, stage
        for name in ("log", "log_dict"):
            pl_module.__dict__.pop(name, None)


class _Nothing:
    """Takes every call and attribute, as a logger or what a logger holds."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __getitem__(self, index: Any) -> _Nothing:
        raise IndexError(index)
