"""Weights that are frozen, tied or shared are left: does what else makes a unit revive it?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import ReinitConfig, find_dead_units, reinit_dead_units
from tests.zoo import CASES, kill
from tests.zoo.left import StillNorm
from tests.zoo.parts import conv
from tests.zoo.snapshot import same


def network(first: nn.Module, norm: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """Return a network whose norm has gone through some batches, its unit 1 dead."""
    torch.manual_seed(0)
    net = nn.Sequential(first, norm, nn.ReLU(), conv(8, 4))
    for _ in range(20):
        net(torch.randn(16, 3, 6, 6) + 1)
    kill(norm, 1)
    return net, torch.randn(16, 3, 6, 6) + 1


def buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def test_statistics_of_weights_that_stay_are_those_they_were() -> None:
    net, example = network(conv(3, 8).requires_grad_(False), nn.BatchNorm2d(8))
    before, weight = buffers(net), net[0].weight.clone()
    report = reinit_dead_units(net, {"2": [1]}, example)
    assert report.reinitialised == {"2": [1]}
    assert report.made_by == {"2": ["1.weight", "1.bias"]}
    assert torch.equal(net[0].weight, weight)
    assert same(before, buffers(net))
    assert (net[1].weight[1], net[1].bias[1]) == (1, 0)


def test_statistics_of_fresh_weights_are_those_of_the_example() -> None:
    net, example = network(conv(3, 8), nn.BatchNorm2d(8).requires_grad_(False))
    with torch.no_grad():
        net[1].bias[1] = -0.5
        net[0].weight[1] = 0.0
        net[0].bias[1] = net[1].running_mean[1]
    report = reinit_dead_units(net, {"2": [1]}, example)
    assert report.made_by == {"2": ["0.weight", "0.bias"]}
    fresh = net[0](example)[:, 1]
    torch.testing.assert_close(net[1].running_mean[1], fresh.mean())
    torch.testing.assert_close(net[1].running_var[1], fresh.var())
    assert net[1].bias[1] == -0.5


@pytest.mark.parametrize("training", [False, True])
def test_a_bias_before_a_frozen_norm_has_half_of_what_it_returns_positive(training: bool) -> None:
    net, example = network(conv(3, 8), StillNorm(8))
    before = buffers(net)
    assert reinit_dead_units(net, {"2": [1]}, example).reinitialised == {"2": [1]}
    assert same(before, buffers(net))
    positive = net.train(training)[:3](example)[:, 1] > 0
    assert 0.49 < positive.float().mean() < 0.51


def test_the_reason_names_what_was_left() -> None:
    net, example = network(conv(3, 8), nn.BatchNorm2d(8).requires_grad_(False))
    report = reinit_dead_units(net, {"2": [1]}, example)
    reason = "1.weight is frozen, and what else makes it cannot make it fire"
    assert report.refused == {"2": {1: reason}}


def test_optimizers_remember_weights_that_stay() -> None:
    (case,) = (case for case in CASES if case.name == "one convolution, two norms")
    net, example = case.build(), case.example()
    optimizer = torch.optim.Adam(net.parameters())
    net(example).square().mean().backward()
    optimizer.step()
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in net.named_parameters()}
    reinit_dead_units(net, case.units, example, optimizers=[optimizer])
    changed = {
        name
        for name, p in net.named_parameters()
        if not torch.equal(optimizer.state[p]["exp_avg"], moments[name])
    }
    assert changed <= {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias", "b.weight", "c.weight"}


def test_a_dry_run_plans_them_too() -> None:
    net, example = network(conv(3, 8).requires_grad_(False), nn.BatchNorm2d(8))
    report = reinit_dead_units(net, {"2": [1]}, example, config=ReinitConfig(dry_run=True))
    assert report.planned == {"2": [1]}


class HeldDown(nn.Module):
    """A residual block whose shortcut, which others read, is far below zero at one unit."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.skip, self.second, self.gate = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(6, 8)
        self.out, self.others = nn.Linear(8, 2), nn.Linear(8, 2)
        with torch.no_grad():
            self.skip.bias[3] = shift
            self.second.weight[3] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(x)
        return self.out(F.relu(self.second(F.relu(skip)) + skip)) + self.others(skip.tanh())


@pytest.mark.parametrize("shift", [-3.0, -10.0])
def test_a_unit_that_a_shortcut_holds_down_is_lifted_until_it_fires(shift: float) -> None:
    torch.manual_seed(0)
    model, x = HeldDown(shift), torch.randn(64, 6)
    done = reinit_dead_units(model, {"relu.second": [3]}, x, optimizers=None)
    assert done.reinitialised == {"relu.second": [3]}
    assert not done.silent
    assert 3 not in find_dead_units(model, [x])["relu.second"].dead


def test_a_unit_that_nothing_lifts_is_told_and_keeps_a_bias_of_usual_size() -> None:
    torch.manual_seed(0)
    model, x = HeldDown(-1e4), torch.randn(64, 6)
    done = reinit_dead_units(model, {"relu.second": [3]}, x, optimizers=None)
    assert done.silent == {"relu.second": [3]}
    assert abs(float(model.second.bias[3])) < 5
