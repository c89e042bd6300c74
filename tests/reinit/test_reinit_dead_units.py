"""The function that needs no Trainer: how often it runs the model, and what it says."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits import reinit_dead_units
from tests.zoo import kill


class Counted(nn.Module):
    """A network that counts its calls in each mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        kill(self.layers[0], 1)
        self.calls: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.training)
        return self.layers(x)


def test_the_model_runs_once_in_eval_and_once_in_training_mode() -> None:
    net = Counted()
    report = reinit_dead_units(net, {"layers.1": [1]}, torch.randn(8, 4), optimizers=None)
    assert report.reinitialised == {"layers.1": [1]}
    assert net.calls == [False, True]


def test_one_sample_is_enough() -> None:
    net, x = Counted(), torch.randn(1, 4)
    before = net(x)
    report = reinit_dead_units(net, {"layers.1": [1]}, x, optimizers=None)
    assert report.reinitialised == {"layers.1": [1]}
    assert torch.equal(net(x), before)


def test_it_warns_once_if_nothing_is_said_about_optimizers() -> None:
    with pytest.warns(
        UserWarning, match="what an optimizer remembers of the re-initialised weights"
    ) as told:
        reinit_dead_units(Counted(), {"layers.1": [1]}, torch.randn(8, 4))
    assert len(told) == 1


@pytest.mark.parametrize("given", [None, "the model's"])
def test_it_does_not_warn_if_optimizers_are_given_or_there_are_none(given: str | None) -> None:
    net = Counted()
    optimizers = None if given is None else [torch.optim.SGD(net.parameters(), lr=0.1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reinit_dead_units(net, {"layers.1": [1]}, torch.randn(8, 4), optimizers=optimizers)
