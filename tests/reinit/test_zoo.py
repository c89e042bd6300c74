"""Function-preserving or refused: every network of the zoo, both sides counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_deadunits import find_dead_units, reinit_dead_units
from tests.zoo import CASES, Case, seeded
from tests.zoo.snapshot import compared, frozen_state, outputs, same


def made(case: Case) -> tuple[nn.Module, Any, torch.optim.Optimizer]:
    """Build a network, train it for a few steps, and return it with an example."""
    seeded()
    model, example = case.build(), case.example()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        sum(t.float().pow(2).mean() for t in outputs(model, example, training=True)).backward()
        optimizer.step()
    return model, example, optimizer


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_units_of_the_zoo_are_dead(case: Case) -> None:
    model, example, _ = made(case)
    report = find_dead_units(model, [example])
    for layer, units in case.units.items():
        assert set(units) <= set(report.layers[layer].dead.tolist())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_can_be_revived_is_and_the_function_stays(case: Case) -> None:
    model, example, optimizer = made(case)
    before = compared(model, example)
    report = reinit_dead_units(model, case.units, example, optimizers=[optimizer])
    after = compared(model, example)
    assert report.reinitialised == case.accepted, str(report)
    assert {k: sorted(v) for k, v in report.refused.items()} == case.refused, str(report)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("case", [c for c in CASES if c.refused], ids=str)
def test_what_is_refused_is_left_untouched(case: Case) -> None:
    model, example, optimizer = made(case)
    before = frozen_state(model, optimizer)
    report = reinit_dead_units(model, case.refused, example, optimizers=[optimizer])
    assert report.reinitialised == {}
    assert all(reason for reasons in report.refused.values() for reason in reasons.values())
    assert same(before, frozen_state(model, optimizer))


@pytest.mark.parametrize("case", [c for c in CASES if c.accepted], ids=str)
def test_a_revived_unit_fires(case: Case) -> None:
    model, example, optimizer = made(case)
    reinit_dead_units(model, case.accepted, example, optimizers=[optimizer])
    report = find_dead_units(model, [example])
    for layer, units in case.accepted.items():
        assert not set(units) & set(report.layers[layer].dead.tolist()), layer


def test_most_of_the_zoo_is_revived_and_some_of_it_refused() -> None:
    accepted = sum(len(units) for case in CASES for units in case.accepted.values())
    refused = sum(len(units) for case in CASES for units in case.refused.values())
    assert len(CASES) >= 90
    assert accepted >= 150
    assert refused >= 30


@pytest.mark.parametrize("samples", [2, 3, 62, 63, 64, 67, 128])
def test_an_example_may_have_any_number_of_samples(samples: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].bias[[1, 4]] = -100
        net[2].bias[[0, 5]] = -100
    example = torch.randn(samples, 6)
    before = net(example)
    done = reinit_dead_units(net, {"1": [1, 4], "3": [0, 5]}, example)
    assert done.reinitialised == {"1": [1, 4], "3": [0, 5]}
    assert torch.equal(net(example), before)
