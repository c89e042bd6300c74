"""Records any code as a step and re-initialises units on the tape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.recording import Recorder, Tape
from lightning_deadunits.reinit.report import ReinitReport
from tests.zoo import kill


class Small(nn.Module):
    """Six hidden units, of which unit 2 is dead; ``hidden`` and ``head`` may be called apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        kill(self.a, 2)
        kill(self.b, 1)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x))

    def head(self, h: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def record(model: nn.Module, step: Callable[..., Any], *args: Any, training: bool = False) -> Tape:
    """Record a step; gradients are on in training, as they are there."""
    model.train(training)
    with torch.set_grad_enabled(training), Recorder(model).recording(training=training) as box:
        held = step(*args)
    del held
    assert box.tape is not None
    return box.tape


def revive(
    model: nn.Module, tapes: list[Tape], units: dict[str, list[int]], **options: Any
) -> ReinitReport:
    """Re-initialise units on tapes."""
    event = Event(model, tapes, OptimizerMemory(), ReinitConfig(**options))
    event.operate_(units)
    event.commit_()
    return event.report
