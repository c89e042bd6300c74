"""A verdict does not depend on which other units are due."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits import reinit_dead_units
from lightning_deadunits.reinit.dataflow.passes import Passes
from lightning_deadunits.reinit.dataflow.trace import coupled_groups, trace
from lightning_deadunits.reinit.recording.layers import keys_of
from lightning_deadunits.reinit.revive import record_both
from tests.reinit.test_zoo import made
from tests.zoo import CASES, Case, Net, kill

Units = dict[str, list[int]]


def accepted(model: nn.Module, units: Units, example: Any) -> set[tuple[str, int]]:
    state = copy.deepcopy(model.state_dict())
    report = reinit_dead_units(model, units, example, optimizers=None)
    model.load_state_dict(state)
    return {(name, unit) for name, own in report.reinitialised.items() for unit in own}


def coupled(model: nn.Module, units: Units, example: Any) -> list[list[tuple[str, int]]]:
    tapes = record_both(model, example)
    passes = Passes(model, tapes, keys_of(tapes, units))
    passes.record({})
    found = trace(passes, [(name, unit) for name, own in units.items() for unit in own])
    groups = coupled_groups(found.units | found.lost)
    inside = {unit for group in groups for unit in group}
    return groups + [[(n, u)] for n, own in units.items() for u in own if (n, u) not in inside]


def by_layer(group: list[tuple[str, int]]) -> Units:
    found: Units = {}
    for name, unit in group:
        found.setdefault(name, []).append(unit)
    return found


def check(model: nn.Module, units: Units, example: Any) -> None:
    together = accepted(model, units, example)
    for group in coupled(model, units, example):
        alone = accepted(model, by_layer(group), example)
        assert alone == together & set(group), group
        assert not alone or alone == set(group)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_units_of_the_zoo_are_accepted_together_as_they_are_alone(case: Case) -> None:
    model, example, _ = made(case)
    check(model, case.units, example)


class Block(nn.Module):
    """A pre-activation block with a separable convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.last = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pointwise(self.depthwise(self.act1(self.norm1(x))))
        return x + self.last(self.act2(self.norm2(inner)))


def deep(blocks: int = 8, width: int = 12) -> tuple[nn.Module, Units, Units]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        *(Block(width) for _ in range(blocks)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )
    inner, residual = {}, {}
    for index in range(1, blocks + 1):
        kill(net[index].norm2, *range(5))
        kill(net[index].norm1, *range(5, 12))
        inner[f"{index}.act2"] = list(range(5))
        residual[f"{index}.act1"] = list(range(5, 12))
    return net, inner, residual


def test_units_between_layers_are_revived_beside_many_of_a_long_residual_sum() -> None:
    net, inner, residual = deep()
    example = torch.randn(8, 3, 6, 6)
    alone = accepted(net, inner, example)
    assert alone == {(name, unit) for name, own in inner.items() for unit in own}
    together = accepted(net, inner | residual, example)
    assert alone <= together
    assert accepted(net, residual, example) == together - alone


def random_net(seed: int) -> tuple[nn.Module, Units]:
    """A few layers that are chained, summed and concatenated at random, some units dead."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    torch.manual_seed(seed)
    width = 8
    kinds = [draw(0, 4) for _ in range(6)]
    layers = {
        f"l{i}": nn.Linear(2 * width if k == 2 else width, width) for i, k in enumerate(kinds)
    }
    sources = [draw(0, i + 1) for i in range(6)]

    def forward(self: Any, x: Tensor) -> Tensor:
        values = [x]
        for i, kind in enumerate(kinds):
            before, other = values[-1], values[sources[i]]
            if kind == 1 and i:
                before = before + other
            if kind == 2:
                before = torch.cat([before, other], 1)
            values.append(torch.relu(getattr(self, f"l{i}")(before)))
        return self.out(values[-1])

    net = Net(forward, **layers, out=nn.Linear(width, 3))
    units = {}
    for i in range(6):
        dead = sorted({draw(0, width) for _ in range(3)})
        kill(layers[f"l{i}"], *dead)
        units[f"relu.l{i}"] = dead
    return net, units


@pytest.mark.parametrize("seed", range(12))
def test_units_of_random_networks_are_accepted_together_as_they_are_alone(seed: int) -> None:
    net, units = random_net(seed)
    check(net, units, torch.randn(8, 8))


class TwiceRectified(nn.Module):
    """Chollet, "Xception", 2017: a block rectifies what the one before has rectified.

    Args:
        pooled: Whether it is pooled in between, and nothing else reads it.
    """

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooled = pooled
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second = nn.ReLU(), nn.ReLU()
        self.next, self.skip = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            self.norm.bias[[1, 4]] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.norm(self.conv(x)))
        if self.pooled:
            return self.next(self.second(nn.functional.max_pool2d(x, 2)))
        return self.next(self.second(x)) + self.skip(x)


@pytest.mark.parametrize("pooled", [False, True])
def test_units_that_are_rectified_twice_are_one_group(pooled: bool) -> None:
    x, both = torch.randn(8, 3, 8, 8), {"first": [1, 4], "second": [1, 4]}
    for units in ({"first": [1, 4]}, both):
        model = TwiceRectified(pooled)
        before = [copy.deepcopy(model).train(mode)(x) for mode in (False, True)]
        report = reinit_dead_units(model, units, x, optimizers=None)
        assert report.reinitialised == units
        for mode, out in zip((False, True), before, strict=True):
            assert torch.equal(copy.deepcopy(model).train(mode)(x), out)
        assert (model.first(model.norm(model.conv(x)))[:, 1] > 0).any()


def test_the_steps_of_an_unrolled_cell_are_not_told_apart_one_by_one() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.keep = nn.Linear(6, 32), nn.Linear(32, 32, bias=False)
            self.out = nn.Linear(32, 3)
            with torch.no_grad():
                self.read.bias[:16] = -100.0

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 32)
            for step in x.unbind(1):
                h = torch.relu(self.read(step) + self.keep(h))
            return self.out(h)

    passes = {}
    for steps in (5, 40):
        units = {"relu": list(range(16))}
        report = reinit_dead_units(Cell(), units, torch.randn(8, steps, 6), optimizers=None)
        assert report.num_reinitialised == 16
        passes[steps] = report.passes
    assert passes[40] < 2 * passes[5]


def test_a_refused_unit_hides_no_side_effect_of_another_one() -> None:
    class TwoBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.norm, self.out = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            self.shown, self.hidden = nn.ReLU(), nn.ReLU()
            with torch.no_grad():
                self.fc.bias[0], self.norm.bias[0] = -100.0, -100.0

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            made = self.fc(x)
            return self.shown(made), self.out(self.hidden(self.norm(made)))

    for units in ({"hidden": [0]}, {"hidden": [0], "shown": [0]}):
        report = reinit_dead_units(TwoBranches(), units, torch.randn(8, 6), optimizers=None)
        assert report.reinitialised == {"hidden": [0]}, str(report)
