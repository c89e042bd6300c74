"""Optimizers inside of others are found, whatever the wrapper is and whatever it calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn, optim

from lightning_deadunits.reinit.optimizers.adam_steps import StepCorrection
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory, optimizers_inside
from lightning_deadunits.reinit.weights import WeightSlice


class Accelerated(optim.Optimizer):
    """Passes everything on, as ``accelerate.optimizer.AcceleratedOptimizer`` does."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer, self.scaler = optimizer, None

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class SAM(optim.Optimizer):
    """Climbs, and steps from there and back (Foret et al. 2021)."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {"rho": 0.0})
        self.base_optimizer, self.param_groups = optimizer, optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.detach().clone()
                with torch.no_grad():
                    p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step(closure)


class Lookahead:
    """Is no torch optimizer; pulls the weights to slow ones (Zhang et al. 2019)."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self._fast = optimizer

    def step(self) -> None:
        self._fast.step()


class Several:
    """Steps several optimizers."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        other = nn.Parameter(torch.ones(2))
        self.members = [optim.SGD([other], lr=0.1), optimizer]

    def step(self) -> None:
        for member in self.members:
            member.step()


WRAPPERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "Lightning's": LightningOptimizer,
    "accelerate's": Accelerated,
    "SAM": SAM,
    "Lookahead": Lookahead,
    "a list": Several,
    "a wrapped wrapper": lambda optimizer: Lookahead(Accelerated(optimizer)),
}


def stepped(wrap: Callable[[optim.Optimizer], Any]) -> tuple[Tensor, optim.Optimizer, Any]:
    weight = nn.Parameter(torch.zeros(4, 3))
    optimizer = optim.Adam([weight], lr=0.1)
    wrapper = wrap(optimizer)
    for _ in range(300):
        weight.grad = torch.ones_like(weight)
        (optimizer if isinstance(wrapper, LightningOptimizer) else wrapper).step()
    return weight, optimizer, wrapper


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_wrapped_forgets_and_counts_anew(name: str) -> None:
    weight, optimizer, wrapper = stepped(WRAPPERS[name])
    assert optimizer in optimizers_inside(wrapper)
    rows = WeightSlice.along(weight, {0: [2]})
    memory = OptimizerMemory([wrapper])
    assert memory.refusal(weight) is None
    rows.write_(weight, 5.0)
    memory.forget_([rows])
    assert bool((optimizer.state[weight]["exp_avg"][2] == 0).all())
    weight.grad = torch.ones_like(weight)
    (optimizer if isinstance(wrapper, LightningOptimizer) else wrapper).step()
    torch.testing.assert_close(weight.detach()[2], torch.full((3,), 4.9))  # one whole step


@pytest.mark.parametrize("name", WRAPPERS)
def test_forgetting_can_be_taken_back_bit_for_bit(name: str) -> None:
    weight, optimizer, wrapper = stepped(WRAPPERS[name])
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    OptimizerMemory([wrapper]).forget_([WeightSlice.along(weight, {0: [2]})])()
    assert all(torch.equal(before[key], v) for key, v in optimizer.state[weight].items())
    assert len(StepCorrection.of(optimizer).fresh) == 0
    assert not optimizer._optimizer_step_post_hooks


def test_copies_of_weights_restart_from_the_fresh_ones() -> None:
    weight, _, wrapper = stepped(SAM)
    rows = WeightSlice.along(weight, {0: [2]})
    rows.write_(weight, 5.0)
    OptimizerMemory([wrapper]).forget_([rows])
    assert wrapper.state[weight]["old_p"][2].tolist() == [5.0] * 3


def test_a_parameter_that_no_optimizer_has_is_refused_if_there_are_any() -> None:
    stranger = nn.Parameter(torch.zeros(2))
    assert "no optimizer has it" in str(OptimizerMemory([stepped(Lookahead)[2]]).refusal(stranger))
    assert OptimizerMemory([]).refusal(stranger) is None


@pytest.mark.parametrize("same", [True, False])
def test_corrections_resume_only_where_the_optimizer_counted_those_steps(same: bool) -> None:
    weight, optimizer, _ = stepped(Lookahead)
    memory = OptimizerMemory([optimizer])
    memory.forget_([WeightSlice.along(weight, {0: [2]})])
    saved = memory.state_dict({weight: "w"})
    again = optim.Adam([weight], lr=0.1)
    if same:
        again.load_state_dict(optimizer.state_dict())
    OptimizerMemory([again]).load_state_dict(saved, {"w": weight})
    assert bool(len(StepCorrection.of(again).fresh)) is same
