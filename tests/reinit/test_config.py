"""Options are checked, and can be set from a command line."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, ReinitConfig, reinit_dead_units
from tests.zoo import kill

WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "patience": (0, ValueError, "`patience` to be an int >= 1, but got 0"),
    "grace_period": (-1, ValueError, "`grace_period` to be an int >= 0, but got -1"),
    "attempts": (1.5, TypeError, "`attempts` to be an int >= 1, but got 1.5"),
    "every_n_train_steps": (0, ValueError, "`every_n_train_steps` to be an int >= 1, but got 0"),
    "max_per_unit": (0, ValueError, "`max_per_unit` to be an int >= 1, but got 0"),
    "max_per_event": (2.5, ValueError, "a whole number, or a fraction below 1"),
    "criterion": (
        "sparse",
        ValueError,
        "be one of 'dead', 'dormant', but got 'sparse'",
    ),
    "tau": (0.0, ValueError, "`tau` to be a number > 0, but got 0.0"),
    "tolerance": (-1.0, ValueError, "`tolerance` to be a number >= 0, but got -1.0"),
    "init": ("no.such.function", ValueError, "the import path of a function"),
    "layers": ([], ValueError, "`layers` to be non-empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_out_of_range_is_an_error(name: str) -> None:
    value, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        ReinitConfig(**{name: value})


def test_an_option_that_would_not_be_heeded_is_told() -> None:
    with pytest.warns(UserWarning, match="Give `criterion='dormant'` to have it heeded"):
        ReinitConfig(tau=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReinitConfig(tau=0.1, criterion="dormant")
        ReinitConfig()


def test_everything_is_set_from_the_command_line() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(DeadUnitCallback, "callback")
    parsed = parser.parse_args(
        ["--callback.reinit.patience=3", "--callback.reinit.init=tests.reinit.test_config.doubled"]
    )
    callback = parser.instantiate(parsed).callback
    assert callback.reinit == ReinitConfig(patience=3, init="tests.reinit.test_config.doubled")
    parsed = parser.parse_args(["--callback.reinit=true"])
    assert parser.instantiate(parsed).callback.reinit == ReinitConfig()


def test_a_window_of_training_batches_is_evidence_enough_unless_said_otherwise() -> None:
    at_validation, in_training = ReinitConfig(), ReinitConfig(every_n_train_steps=100)
    assert (at_validation.patience, at_validation.grace_period) == (2, 2)
    assert (in_training.patience, in_training.grace_period) == (1, 0)
    given = ReinitConfig(every_n_train_steps=100, patience=3, grace_period=1)
    assert (given.patience, given.grace_period) == (3, 1)


def test_the_cap_is_a_number_or_a_fraction() -> None:
    assert ReinitConfig().limit(10) == 10
    assert ReinitConfig(max_per_event=3).limit(10) == 3
    assert ReinitConfig(max_per_event=0.25).limit(10) == 2
    assert ReinitConfig(max_per_event=0.01).limit(10) == 1


def doubled(fresh: Tensor, live: Tensor, generator: torch.Generator) -> Tensor:
    return live[: len(fresh)] * 2


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    kill(net[0], 3)
    return net, torch.randn(16, 12)


def test_a_function_sets_the_incoming_weights() -> None:
    net, x = network()
    reinit_dead_units(net, {"1": [3]}, x, config=ReinitConfig(init=doubled))
    assert torch.equal(net[0].weight[3], net[0].weight[0] * 2)


def test_matched_weights_have_the_norm_of_live_ones() -> None:
    net, x = network()
    with torch.no_grad():
        net[0].weight.mul_(5)
    reinit_dead_units(net, {"1": [3]}, x, config=ReinitConfig(init="matched"))
    norms = net[0].weight.norm(dim=1)
    assert torch.isclose(norms[3], norms[[0, 1, 2, 4, 5, 6, 7]].median())


def test_layers_that_are_left_out_are_left_alone() -> None:
    net, x = network()
    for config in (ReinitConfig(exclude="1"), ReinitConfig(layers=["other*"])):
        report = reinit_dead_units(net, {"1": [3]}, x, config=config)
        assert report.reinitialised == {}
        assert str(report) == "Nothing to re-initialise."


def test_a_dormant_unit_that_is_refused_costs_no_other() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(16, 12)
            self.d = nn.Linear(12, 3)
            with torch.no_grad():
                self.a.bias[[1, 3]] = -100
                self.b.weight[5], self.b.bias[5] = 0, 0.01  # dormant, in a sum with one that fires
                self.c.weight[5], self.c.bias[5] = 0, 1

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.a(x))
            return self.d(F.relu(self.b(hidden)) + F.relu(self.c(hidden)))

    net, x, config = Net(), torch.randn(32, 8), ReinitConfig(criterion="dormant")
    before = net(x)
    units = {"relu.a": [1, 3], "relu.b": [5]}
    report = reinit_dead_units(net, units, x, optimizers=None, config=config)
    assert report.reinitialised == {"relu.a": [1, 3]}
    assert list(report.refused) == ["relu.b"]
    assert torch.equal(net(x), before)


def test_a_dormant_unit_is_silenced_although_it_still_speaks() -> None:
    net, x = network()
    with torch.no_grad():
        net[0].weight[5] *= 1e-4
        net[0].bias[5] = 1e-5
    assert "it fires on the recorded batch" in reinit_dead_units(net, {"1": [5]}, x).refused["1"][5]
    config = ReinitConfig(criterion="dormant")
    assert reinit_dead_units(net, {"1": [5]}, x, config=config).reinitialised == {"1": [5]}


def test_a_report_speaks_plainly() -> None:
    net, x = network()
    report = reinit_dead_units(net, {"1": [0, 3]}, x)
    assert str(report).splitlines() == [
        "Re-initialised 1 unit.",
        "  1: unit 3",
        "    fresh: 0.weight, 0.bias",
        "    silenced: 2.weight",
        "Refused 1 unit.",
        "  1: unit 0: it fires on the recorded batch",
    ]
