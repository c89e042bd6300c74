"""Compiled equals eager: same counts, no graph break, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import find_dead_units
from lightning_deadunits.observation.compiled import COUNTS_IN_GRAPHS, room_for_graphs
from lightning_deadunits.observation.lineage.following import Lineage
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.sums import LayerCounts


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.relu(nn.functional.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) - 0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3 if i == 0 else 4, 4) for i in range(3)])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3))).clamp(min=0)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def batches(sizes: tuple[int, ...] = (4, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 10, 10, generator=generator) for size in sizes]


def build() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def epoch(observer: Observer, model: nn.Module, inputs: list[Tensor]) -> dict[str, LayerCounts]:
    observer.reset()
    with observer.watching(), torch.no_grad():
        for batch in inputs:
            with observer.one_pass():
                model(batch)
    return observer.counts


def assert_same(measured: dict[str, LayerCounts], truth: dict[str, LayerCounts]) -> None:
    assert list(measured) == list(truth)
    for name, count in truth.items():
        assert torch.equal(measured[name].zeros, count.zeros), name
        assert measured[name].observations == count.observations
        assert measured[name].unit_dim == count.unit_dim


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_model_counts_the_same_with_no_graph_break(backend: str) -> None:
    net, inputs = build(), batches()
    truth = epoch(Observer(net), net, inputs)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    with torch.no_grad():
        compiled(inputs[0])
    observer = Observer(compiled)
    for _ in range(3):
        assert_same(epoch(observer, compiled, inputs), truth)
        with torch.no_grad():
            compiled(inputs[0])
    assert not torch._dynamo.utils.counters["graph_break"]
    # One plain graph, one that counts; not one more per validation. Old versions count eagerly.
    graphs = 2 if COUNTS_IN_GRAPHS else 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_blocks_that_share_their_code_are_told_apart_beyond_dynamos_limit() -> None:
    net = nn.Sequential(*[Block(4, 4) for _ in range(4)]).eval()
    for block in net:
        block.compile(fullgraph=True, backend="eager")
    inputs = [torch.randn(2, 4, 12, 12)]
    plain = nn.Sequential(*[Block(4, 4) for _ in range(4)]).eval()
    plain.load_state_dict(net.state_dict())
    truth = epoch(Observer(plain), plain, inputs)
    limit = "recompile_limit" if COUNTS_IN_GRAPHS else "cache_size_limit"
    with torch._dynamo.config.patch({limit: 2}):
        observer = Observer(net)
        for _ in range(2):
            assert_same(epoch(observer, net, inputs), truth)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "a number minus it": lambda h: 1 - h,
    "a number over it": lambda h: 1 / (h * h + 1),
    "a number times it": lambda h: -2.0 * h + 1,
    "a power": lambda h: 2**h - h**2,
    "a rest": lambda h: h % 2 - h // 2,
    "unflattened": lambda h: h.unflatten(1, (2, 4)),
    "transposed": lambda h: h.transpose(0, 1),
    "masks": lambda h: h * ((h > 0) | (h < -1)),
    "absolute": lambda h: h.abs() - 1,
    "in place": lambda h: h.clone().sub_(1).mul_(2),
    "chosen": lambda h: h[..., :4],
}


@pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason="before torch 2.13 it runs eagerly")
@pytest.mark.parametrize("how", SPELLINGS)
def test_however_arithmetic_is_spelled_it_compiles_in_one_graph(how: str) -> None:
    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(SPELLINGS[how](self.fc(x)))

    net, batches = Spelled().eval(), [torch.randn(8, 6)]
    truth = find_dead_units(net, batches)
    report = find_dead_units(torch.compile(net, fullgraph=True, backend="eager"), batches)
    assert list(report.layers) == list(truth.layers)
    for mine, its in zip(report.layers.values(), truth.layers.values(), strict=True):
        assert torch.equal(mine.zeros, its.zeros)
        assert mine.axis_assumed is its.axis_assumed is False


def test_a_second_instance_of_a_compiled_class_is_seen() -> None:
    inputs = batches()
    first, second = build(), build()
    nn.init.constant_(second.blocks[0].bn.bias[:2], -50)
    with torch.no_grad():
        second.blocks[0].bn.bias[:2] = -50
    for net in (first, second):
        truth = epoch(Observer(net), net, inputs)
        compiled = torch.compile(net, backend="eager")
        compiled(inputs[0])
        assert_same(epoch(Observer(compiled), compiled, inputs), truth)


def test_an_inner_compiled_module_and_varying_shapes() -> None:
    net, inputs = build(), batches((4, 2, 3, 4))
    truth = epoch(Observer(net), net, inputs)
    net.blocks[1] = torch.compile(net.blocks[1], backend="eager")  # type: ignore[assignment]
    assert_same(epoch(Observer(net), net, inputs), truth)


@pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason="there what is compiled runs eagerly meanwhile")
@pytest.mark.parametrize("place", ["follow", "follow_parts"])
def test_what_nobody_foresaw_costs_no_graph(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def fails(*args: Any) -> Any:
        raise IndexError("nobody foresaw this")

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.fc(x).unsqueeze_(1).squeeze(1).chunk(2, 1)
            return F.relu(one + other)

    monkeypatch.setattr(Lineage, place, fails)
    torch._dynamo.reset()
    net: Any = torch.compile(Halves(), backend="eager", fullgraph=True)
    x = torch.randn(5, 4)
    with torch.no_grad():
        report = find_dead_units(net, [x])
        zeros = (net(x) == 0).sum(0)
    assert report["relu"].zeros.tolist() == zeros.tolist()


def test_names_are_free_of_the_wrapper() -> None:
    report = find_dead_units(torch.compile(build(), backend="eager"), batches())
    assert next(iter(report.layers)) == "blocks.0.relu"


def test_a_graph_break_does_not_lose_a_count() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            torch._dynamo.graph_break()
            return torch.relu(self.b(x))

    net, inputs = Broken(), [torch.randn(3, 4)]
    truth = epoch(Observer(net), net, inputs)
    compiled = torch.compile(net, backend="eager")
    assert_same(epoch(Observer(compiled), compiled, inputs), truth)


@pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason="there what is compiled runs eagerly meanwhile")
def test_an_observed_batch_leaves_nothing_in_the_context_and_the_limits_as_they_were() -> None:
    config = torch._dynamo.config
    limits = (config.recompile_limit, config.accumulated_recompile_limit)
    for _ in range(2):
        with room_for_graphs(), room_for_graphs():
            assert config.recompile_limit > limits[0]
        assert (config.recompile_limit, config.accumulated_recompile_limit) == limits
    before = len(copy_context())
    for _ in range(10):
        with room_for_graphs():
            pass
    assert len(copy_context()) == before
