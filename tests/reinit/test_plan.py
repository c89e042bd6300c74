"""What one process has planned, another writes bit for bit, or refuses and leaves all as it was."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.plan import Plan
from lightning_deadunits.reinit.recording import Tape
from tests.reinit.recording.stepping import record
from tests.zoo import kill

UNITS = {"relu.bn": [2], "relu.b": [1]}


class Normed(nn.Module):
    """Two hidden layers with a dead unit each, the first behind a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.bn = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)
        self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 3)
        kill(self.bn, 2)
        kill(self.b, 1)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.hidden(x))))


Step = Callable[[Normed, Tensor], Any]


def taped(model: Normed, seed: int = 1, step: Step = Normed.forward) -> list[Tape]:
    """Record a batch in evaluation and in training mode."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    return [record(model, step, model, x, training=training) for training in (False, True)]


def event_on(model: Normed, tapes: list[Tape]) -> Event:
    return Event(model, tapes, OptimizerMemory(), ReinitConfig())


def planned(model: Normed) -> tuple[Event, Plan]:
    """Plan on a model, and carry the plan through a checkpoint."""
    event = event_on(model, taped(model))
    event.operate_(UNITS)
    file = io.BytesIO()
    torch.save(vars(event.plan()), file)
    file.seek(0)
    return event, Plan(**torch.load(file, weights_only=True))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("has_tapes", [True, False])
def test_a_plan_writes_to_a_copy_what_was_written_to_the_model(has_tapes: bool) -> None:
    model = Normed()
    tapes = taped(model)
    other = copy.deepcopy(model)
    model_before = state(model)
    event = event_on(model, tapes)
    event.operate_(UNITS)
    plan = event.plan()
    assert event.report.reinitialised == plan.units == {k: UNITS[k] for k in plan.units}
    assert plan.units.keys() == UNITS.keys()
    follower = event_on(other, taped(other, seed=2) if has_tapes else [])
    other.load_state_dict(model_before)  # recording in training mode moves running statistics
    assert follower.follow_(plan) == ({}, [])
    assert is_same(state(other), state(model))
    assert not is_same(state(other), model_before)


def test_what_follows_a_plan_takes_it_back() -> None:
    model = Normed()
    other = copy.deepcopy(model)
    _, plan = planned(model)
    follower = event_on(other, taped(other))
    before = state(other)
    assert follower.follow_(plan) == ({}, [])
    follower.commit_()
    follower.undo_()
    assert is_same(state(other), before)


def test_a_plan_outlives_the_event_that_was_taken_back() -> None:
    model = Normed()
    event = event_on(model, taped(model))
    before = state(model)
    event.operate_(UNITS)
    done, plan = state(model), event.plan()
    event.undo_()
    assert is_same(state(model), before)
    assert event_on(model, []).follow_(plan) == ({}, [])
    assert is_same(state(model), done)


def test_gradients_of_what_is_written_are_cleared_on_both_sides() -> None:
    model = Normed()
    other = copy.deepcopy(model)
    for each in (model, other):
        for parameter in each.parameters():
            parameter.grad = torch.ones_like(parameter)
    _, plan = planned(model)
    assert event_on(other, taped(other)).follow_(plan) == ({}, [])
    for one, its in zip(model.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert its.grad is not None
        assert torch.equal(one.grad, its.grad)
    gradient = model.b.weight.grad
    assert gradient is not None
    assert bool((gradient[1] == 0).all())
    assert bool((gradient[0, :2] == 1).all())


def alive(model: Normed) -> None:
    with torch.no_grad():
        model.b.bias[1] = 100.0


def sums_up(model: Normed, x: Tensor) -> tuple[Tensor, Tensor]:
    return model(x), model.hidden(x).sum()


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        (alive, Normed.forward, "fires"),
        (lambda model: None, sums_up, "on another process the model's output"),
    ],
    ids=["a unit is alive there", "another output reads a unit there"],
)
def test_what_cannot_follow_says_why_and_changes_nothing(
    change: Any, step: Step, reason: str
) -> None:
    model = Normed()
    other = copy.deepcopy(model)
    change(other)
    _, plan = planned(model)
    follower = event_on(other, taped(other, step=step))
    before = state(other)
    refused, _ = follower.follow_(plan)
    assert refused
    assert all(reason in why for why in refused.values()), refused
    assert is_same(state(other), before)
    follower.undo_()
    assert is_same(state(other), before)
