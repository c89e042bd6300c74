"""What tracing found is kept while the architecture stands, and changes nothing but the cost."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.known_traces import KnownTraces
from lightning_deadunits.reinit.optimizers.memory import OptimizerMemory
from lightning_deadunits.reinit.report import ReinitReport
from lightning_deadunits.reinit.running.example import Example
from tests.zoo import kill


class Switchable(nn.Module):
    """A network whose second block reads the first one's units only if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.skip = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        after = torch.relu(self.b(hidden))
        return self.c(after + hidden if self.skip else after)


def networks() -> tuple[Switchable, Switchable]:
    torch.manual_seed(0)
    one, other = Switchable(), Switchable()
    other.load_state_dict(one.state_dict())
    return one, other


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def event(net: nn.Module, units: dict[str, list[int]], known: KnownTraces, step: int) -> Any:
    done = Event(Example(net, X, net), OptimizerMemory(), ReinitConfig(), step=step, known=known)
    done.operate_(units)
    done.commit_()
    return done.report


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_a_second_event_takes_less_passes_and_comes_to_the_same() -> None:
    one, other = networks()
    known, reports = KnownTraces(), list[tuple[ReinitReport, ReinitReport]]()
    for step in range(3):
        kill(one.a, 2, 5)
        kill(other.a, 2, 5)
        dead = {"relu": [2, 5]}
        reports.append((event(one, dead, known, step), event(other, dead, KnownTraces(), step)))
        assert same(one, other)
    assert all(report.reinitialised == dead for pair in reports for report in pair)
    # A recorded pass in either mode, one that settles and one that stresses; no search.
    assert [with_them.passes for with_them, _ in reports] == [reports[0][1].passes, 4, 4]


def test_another_path_is_traced_anew() -> None:
    one, other = networks()
    known = KnownTraces()
    kill(one.a, 2)
    kill(other.a, 2)
    event(one, {"relu": [2]}, known, 0)
    event(other, {"relu": [2]}, KnownTraces(), 0)
    for net in (one, other):
        net.skip = True  # so that the output layer reads the unit, too, with weights of live ones
        kill(net.a, 2)
    reports = event(one, {"relu": [2]}, known, 1), event(other, {"relu": [2]}, KnownTraces(), 1)
    assert reports[0].refused == reports[1].refused != {}
    assert same(one, other)


def test_units_that_share_weights_are_known_only_together() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.c(torch.relu(self.a(x)) + torch.relu(self.b(x)))
            return result

    net, known = Sum(), KnownTraces()
    kill(net.a, 3)
    kill(net.b, 3)
    both = event(net, {"relu": [3], "relu.b": [3]}, known, 0)
    assert both.reinitialised == {"relu": [3], "relu.b": [3]}
    # The other one lives, though on the example it is silent by a hair.
    kill(net.a, 3)
    with torch.no_grad():
        net.b.bias[3] -= net.b(X)[:, 3].max() + 0.01
        net.c.weight[:, 3] = 1.0
    anew = event(copy.deepcopy(net), {"relu": [3]}, KnownTraces(), 1)
    assert event(net, {"relu": [3]}, known, 1).refused == anew.refused != {}


def test_a_network_that_moved_its_weights_is_traced_anew() -> None:
    net, known = networks()[0], KnownTraces()
    kill(net.a, 2)
    first = event(net, {"relu": [2]}, known, 0)
    net.a.weight.data = net.a.weight.data.clone()
    kill(net.a, 2)
    second = event(net, {"relu": [2]}, known, 1)
    assert second.passes == first.passes
    assert second.reinitialised == {"relu": [2]}


def test_parameters_that_took_over_the_memory_of_others_are_traced_anew() -> None:
    net, known = networks()[0], KnownTraces()
    kill(net.a, 2)
    event(net, {"relu": [2]}, known, 0)
    net.load_state_dict(net.state_dict(), assign=True)
    kill(net.a, 2)
    assert event(net, {"relu": [2]}, known, 1).reinitialised == {"relu": [2]}
