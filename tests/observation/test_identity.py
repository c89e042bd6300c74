"""A unit is what its weights make: counts equal brute force where the order of calls is none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_deadunits import DeadUnitsReport, find_dead_units
from lightning_deadunits.observation.compiled import COUNTS_IN_GRAPHS
from lightning_deadunits.observation.hidden_writes import HIDES_WRITES
from tests.observation.kinds import KINDS, Kind, Noting, Truth, untold
from tests.observation.written import WRITTEN


def assert_equals(report: DeadUnitsReport, truth: Truth) -> None:
    told = {}
    for layer in report.layers.values():
        way = tuple(word for word in ("neg", "columns") if f"-{word}" in layer.name)
        told[(*layer.made_by, *way)] = layer
        assert not layer.axis_assumed
        assert not layer.order_assumed
    seen = {made_by for made_by, layer in told.items() if layer.observations}
    assert seen == set(truth)
    for made_by, (zeros, values) in truth.items():
        assert torch.equal(told[made_by].zeros, zeros), made_by
        assert values.tolist() == [told[made_by].observations] * told[made_by].num_units
    assert report.unjudged == {}
    assert report.num_units == sum(len(zeros) for zeros, _ in truth.values())
    assert report.num_dead == sum(int((zeros == seen).sum()) for zeros, seen in truth.values())


@pytest.mark.parametrize("kind", [*KINDS, *WRITTEN], ids=str)
def test_counts_are_those_of_the_weights(kind: Kind) -> None:
    net, batches = kind.build()
    report = find_dead_units(net, batches)
    assert_equals(report, net.truth)


@pytest.mark.parametrize("kind", [*KINDS, *WRITTEN], ids=str)
def test_neither_the_order_of_batches_nor_their_company_changes_a_count(kind: Kind) -> None:
    net, batches = kind.build()
    together = find_dead_units(net, batches)
    backwards = find_dead_units(net, batches[::-1])
    counts = [{n: own.zeros.tolist() for n, own in r.layers.items()} for r in (together, backwards)]
    assert counts[0] == counts[1]


REFUSED = {
    "critics by vmap": "within a compiled region",
    "experts by gathered weights": "within a compiled region",
    "a shared expert beside gathered ones": "within a compiled region",
    "a gated expert, gathered": "within a compiled region",
    "one weight stacked over samples": "within a compiled region",
    "gathered factors of a shared product": "within a compiled region",
}
# Dynamo does not show the axes.
ASSUMED = {"an index by an array", "samples split in two", "memory that is written over"}
COMPARED = {
    "comparisons with itself",
    *(str(kind) for kind in WRITTEN if str(kind).startswith("latents with a gate")),
}
SHOWN = pytest.mark.skipif(HIDES_WRITES, reason="named as not judged: test_hidden_writes.py")
COMPILED = [
    pytest.param(kind, marks=SHOWN if str(kind) in COMPARED else ())
    for kind in [*KINDS, *WRITTEN]
    if str(kind) not in {*REFUSED, *ASSUMED} and not str(kind).startswith("checkpoint")
]


@pytest.mark.parametrize("kind", COMPILED, ids=str)
def test_compiled_counts_are_those_of_the_weights(kind: Kind) -> None:
    torch._dynamo.reset()
    net, batches = kind.build()
    find_dead_units(net, batches)
    truth = untold(net.truth)
    net.notes = False
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(batches[0])
    assert_equals(find_dead_units(compiled, batches), truth)


@pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason="this torch counts compiled models eagerly")
@pytest.mark.parametrize("kind", [k for k in [*KINDS, *WRITTEN] if str(k) in REFUSED], ids=str)
def test_what_a_compiled_region_cannot_tell_is_told_and_nothing_is_miscounted(kind: Kind) -> None:
    torch._dynamo.reset()
    net, batches = kind.build()
    net.notes = False
    eager = find_dead_units(net, batches[:1])
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(batches[0])
    with pytest.warns(UserWarning, match=REFUSED[str(kind)]):
        report = find_dead_units(compiled, batches[:1])
    # Where Dynamo gave up and the region ran eagerly, it was counted beside the doubt.
    for name, layer in report.layers.items():
        assert torch.equal(layer.zeros, eager.layers[name].zeros)
        assert layer.observations == eager.layers[name].observations


def test_a_name_says_as_much_as_is_needed_and_leads_to_the_weights() -> None:
    names = {str(kind): list(find_dead_units(*kind.build()).layers) for kind in KINDS}
    assert names["experts behind one activation"] == ["act.up.0", "act.up.1", "act.up.2"]
    assert names["one encoder called twice"] == ["encoder.1"]
    assert names["concatenated ReLU"] == ["relu-neg", "relu"]
    assert names["residual blocks dropped at random"][:2] == [
        "relu.layers.1.bn1", "relu.layers.1.bn2",
    ]  # fmt: skip
    assert names["an unrolled recurrent cell"] == ["relu"]
    assert names["critics by bmm"] == ["relu"]


@pytest.mark.parametrize("kind", [*KINDS, *WRITTEN], ids=str)
def test_what_else_is_tracked_changes_no_name_and_no_count(kind: Kind) -> None:
    everything = find_dead_units(*kind.build())
    for name, layer in everything.layers.items():
        alone = find_dead_units(*kind.build(), layers=name).layers
        assert torch.equal(alone[name].zeros, layer.zeros)
        assert set(alone) <= set(everything.layers)


@pytest.mark.parametrize("chosen", ["first", "second"])
def test_a_layer_that_is_not_tracked_has_a_name_and_no_verdict(chosen: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
            self.first, self.second = nn.ReLU(), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed = self.second(torch.cat([self.a(x), self.b(x)]))
            return mixed.sum() + self.first(self.a(x)).sum()

    report = find_dead_units(Net(), [torch.randn(8, 4)], layers=chosen)
    assert list(report.layers) == ["first"] * (chosen == "first")
    assert list(report.unjudged) == ["second"] * (chosen == "second")


class Unknown(Noting):
    """Values that come from nowhere, activated twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) + self.act(1 - x)


def test_calls_that_nothing_tells_apart_but_their_order_are_told() -> None:
    with pytest.warns(UserWarning, match="axis 1 was assumed"):
        report = find_dead_units(Unknown(), [torch.randn(4, 6)])
    assert list(report.layers) == ["act", "act-2"]
    assert all(layer.order_assumed for layer in report.layers.values())
    assert all(layer.made_by == () for layer in report.layers.values())


class Relations(nn.Module):
    """Adds up messages along edges that are drawn anew in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.relations = nn.Linear(6, 6), nn.ModuleList(nn.Linear(6, 6) for _ in "abc")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.own(x)
        for relation in self.relations:
            source = torch.randint(len(x), (5,))
            out = out.index_add(0, torch.randint(len(x), (5,)), relation(x[source]))
        return F.relu(out)


@pytest.mark.parametrize("seed", range(4))
def test_a_tensor_at_the_address_of_one_that_is_gone_is_not_taken_for_it(seed: int) -> None:
    torch.manual_seed(seed)
    report = find_dead_units(Relations(), [torch.randn(4, 6) for _ in range(40)])
    assert [layer.observations for layer in report.layers.values()] == [160]


PRODUCTS = {
    "by @": lambda h, w: h @ w,
    "by mm": torch.mm,
    "by einsum": lambda h, w: torch.einsum("bi,io->bo", h, w),
    "by bmm with repeated weights": lambda h, w: torch.bmm(
        h[:, None], w.unsqueeze(0).repeat(len(h), 1, 1)
    )[:, 0],
}


@pytest.mark.parametrize("how", PRODUCTS)
def test_units_that_a_buffer_makes_are_not_those_of_the_layer_before(how: str) -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(6, 8), nn.ReLU()
            self.register_buffer("features", torch.randn(8, 8))
            self.features[:, 3] = 0.0
            with torch.no_grad():
                self.fc.weight[1], self.fc.bias[1] = 0.0, -1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(PRODUCTS[how](self.act(self.fc(x)), self.features))

    torch.manual_seed(0)
    report = find_dead_units(Random(), [torch.randn(64, 6)])
    assert [layer.dead.tolist() for layer in report.layers.values()] == [[1], [3]]
