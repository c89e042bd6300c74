"""The function that needs no Trainer: how often it runs the model, and what it says."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import find_dead_units, reinit_dead_units
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


class Domains(nn.Module):
    """A trunk, and an expert for each domain, of which an example runs one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)
        )
        with torch.no_grad():
            for layer in (self.trunk[0], *(expert[0] for expert in self.experts)):
                layer.bias[:2] = -100.0
                layer.bias[2:] = 100.0

    def forward(self, x: Tensor, domain: int) -> Tensor:
        return self.experts[domain](self.trunk(x))


def test_a_layer_of_the_report_that_the_example_does_not_run_costs_no_other() -> None:
    model, batches = Domains(), [(torch.randn(8, 6), domain) for domain in range(2)]
    report = find_dead_units(model, batches)
    done = reinit_dead_units(model, report, batches[0], optimizers=None)
    assert done.reinitialised == {"trunk.1": [0, 1], "experts.0.1": [0, 1]}
    reason = "its layer ran in none of the recorded passes"
    assert done.refused == {"experts.1.1": {0: reason, 1: reason}}
    assert done.notes == [
        "Note: the example did not use experts.1.0, experts.1.2. What reads re-initialised "
        "units there computes otherwise now."
    ]


def test_weights_that_are_used_part_by_part_are_used() -> None:
    model = nn.Module()
    model.a, model.w, model.o = nn.Linear(6, 8), nn.Parameter(torch.rand(2, 8, 8)), nn.Linear(8, 2)
    nn.init.constant_(model.a.bias[:2], -100.0)
    model.forward = lambda x: model.o((F.relu(model.a(x)) @ model.w[0]).tanh() @ model.w[1])
    done = reinit_dead_units(model, {"relu": [0, 1]}, torch.randn(8, 6), optimizers=None)
    assert done.reinitialised == {"relu": [0, 1]}
    assert not done.notes


class Buffered(nn.Module):
    """Writes its units into memory that a layer reads, perhaps by way of a view."""

    def __init__(self, write: Any) -> None:
        super().__init__()
        self.a, self.o, self.write = nn.Linear(6, 12), nn.Linear(12, 2), write
        self.kept: Any = None
        nn.init.constant_(self.a.bias[:3], -100.0)

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.zeros(len(x), 12)
        self.write(self, memory, F.relu(self.a(x)))
        return self.o(memory)


@pytest.mark.parametrize(
    "write",
    [
        lambda net, memory, h: memory[:, :12].copy_(h),
        lambda net, memory, h: memory[:, :6].add_(h[:, :6]).mul_(2),
        lambda net, memory, h: memory.view(-1).copy_(h.flatten()),
        lambda net, memory, h: memory.t()[:12].copy_(h.t()),
    ],
    ids=["a part", "twice", "flat", "transposed"],
)
def test_units_that_are_written_through_a_view_are_read_by_what_reads_the_memory(
    write: Any,
) -> None:
    model, x = Buffered(write), torch.randn(8, 6)
    before = model(x)
    done = reinit_dead_units(model, {"relu": [0, 1, 2]}, x, optimizers=None)
    assert done.reinitialised == {"relu": [0, 1, 2]}
    assert done.read_by == {"relu": ["o.weight"]}
    assert torch.equal(model(x), before)


def test_a_view_that_somebody_keeps_is_a_result() -> None:
    def write(net: Buffered, memory: Tensor, h: Tensor) -> None:
        net.kept = memory[:, :12].copy_(h)

    done = reinit_dead_units(Buffered(write), {"relu": [0]}, torch.randn(8, 6), optimizers=None)
    assert "without a layer in between" in done.refused["relu"][0]


def test_a_report_of_another_model_is_an_error() -> None:
    report = find_dead_units(Domains(), [(torch.randn(8, 6), 0)])
    with pytest.raises(ValueError, match="Layers that ran are: 1"):
        reinit_dead_units(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), report, torch.randn(8, 6)
        )


def test_a_report_is_understood_where_training_mode_runs_more_of_the_activation() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)
            with torch.no_grad():
                self.a.bias[:2] = -100.0

        def forward(self, x: Tensor) -> Any:
            out = self.o(F.relu(self.a(x)))
            return (out, F.relu(self.b(x))) if self.training else out

    model, x = Auxiliary(), torch.randn(64, 6)
    report = find_dead_units(model, [x])
    assert list(report.layers) == ["relu"]
    assert reinit_dead_units(model, report, x, optimizers=None).reinitialised == {"relu": [0, 1]}


def test_members_beside_a_shared_expert_are_refused_by_the_names_that_they_have() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.shared = nn.Parameter(torch.randn(3, 6, 5)), nn.Linear(6, 5)
            self.out = nn.Linear(5, 2)
            with torch.no_grad():
                self.shared.bias[1] = -100.0

        def forward(self, x: Tensor) -> Tensor:
            own = torch.bmm(x[:, None], self.w[torch.arange(len(x)) % 3])[:, 0]
            return self.out(torch.relu(own + self.shared(x)))

    model, x = Shared(), torch.randn(12, 6)
    report = find_dead_units(model, [x])
    refused = reinit_dead_units(model, report, x, optimizers=None).refused
    assert {name: list(own) for name, own in refused.items()} == {
        name: layer.dead.tolist() for name, layer in report.layers.items()
    }
    assert all("each row" in why for own in refused.values() for why in own.values())
