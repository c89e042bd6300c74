"""Weights that are computed before a unit: it is refused or revived, and no other one suffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_deadunits import reinit_dead_units
from tests.zoo import kill
from tests.zoo.snapshot import compared

COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by a hook": nn.utils.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.3),
    "pruned, bias too": lambda module: prune.random_unstructured(module, "bias", 0.3),
}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_never_ends_the_event(name: str, place: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()),
        nn.Linear(6, 2),
    )
    for index in (0, 2, 4):
        kill(net[index], 1)
    COMPUTED[name](net[place])
    x = torch.randn(8, 6)
    before = compared(net, x)
    report = reinit_dead_units(net, {"1": [1], "3": [1], "5": [1]}, x, optimizers=None)
    assert all(map(torch.equal, before, compared(net, x))), str(report)
    untouched = {0: "5", 2: None, 4: "1"}[place]
    if (
        untouched is not None
        and report.refused.get(untouched, {}).get(1) != "it fires on the recorded batch"
    ):
        assert report.reinitialised.get(untouched) == [1], str(report)
