"""A new operation is taught in one place, and one that is unknown refuses units with its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from lightning_deadunits import reinit_dead_units
from lightning_deadunits.reinit.ops import registry
from lightning_deadunits.reinit.ops.linear import ABC, Letters, lettered
from lightning_deadunits.reinit.ops.operation import Described, Given
from lightning_deadunits.reinit.recording import functions
from tests.zoo import Net, kill


def scaled_linear(x: Tensor, weight: Tensor, bias: Tensor, gain: float) -> Tensor:
    """A function of someone's own, that torch function modes see, as those of torch."""
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(scaled_linear, (x, weight, bias), x, weight, bias, gain)
    return gain * (x @ weight.t()) + bias


def rule(given: Given) -> Described | None:
    x, weight, bias = given.bound("input", "weight", "bias")
    if not given.owns(weight) or given.owns(x):
        return None
    batch = ABC[: x.ndim - 1]
    return lettered(given, Letters(batch + "k", "ok", batch + "o"), x, weight, bias)


def network() -> nn.Module:
    torch.manual_seed(0)

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(scaled_linear(x, self.a.weight, self.a.bias, 2.0))
        return scaled_linear(hidden, self.b.weight, self.b.bias, 0.5)

    net = Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    kill(net.a, 3)
    return net


def test_the_example_of_the_architecture_page_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._DESCRIBERS, scaled_linear, rule)
    monkeypatch.setattr(functions, "DESCRIBED", {scaled_linear})
    net, x = network(), torch.randn(8, 4)
    before = net(x)
    report = reinit_dead_units(net, {"relu": [3]}, x, optimizers=None)
    assert report.reinitialised == {"relu": [3]}, str(report)
    assert report.made_by == {"relu": ["a.weight", "a.bias"]}
    assert report.read_by == {"relu": ["b.weight"]}
    assert torch.equal(net(x), before)
