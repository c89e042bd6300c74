"""What was joined and is cut apart again, and calls that a graph shows in another way than Python.

Each network is judged as it is and compiled; both say what the weights say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import find_dead_units
from lightning_deadunits.observation.compiled import COUNTS_IN_GRAPHS

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
BACKENDS = [None, pytest.param("eager", marks=pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason=""))]

Truth = dict[tuple[str, ...], list[int]]


class Two(nn.Module):
    """Two layers, of which each has one dead unit."""

    def __init__(self, run: Callable[[Two, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.run = nn.Linear(4, 6), nn.Linear(4, 6), run
        with torch.no_grad():
            for layer, dead in ((self.a, 1), (self.b, 4)):
                nn.init.constant_(layer.bias, 5.0)  # the others fire
                layer.bias[dead] = -99.0

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def judged(run: Callable[[Two, Tensor], Any], backend: str | None) -> Truth:
    """Return the dead units of every layer by what makes it; nothing may be in doubt."""
    torch._dynamo.reset()
    net: Any = Two(run)
    if backend is not None:
        net = torch.compile(net, backend=backend, fullgraph=True)
    report = find_dead_units(net, [X])
    assert not report.unjudged
    assert not any(own.axis_assumed or own.order_assumed for own in report.layers.values())
    found = {own.made_by: own.dead.tolist() for own in report.layers.values()}
    assert len(found) == len(report.layers)
    return found


def both_of(net: Two, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.a(x), net.b(x)


JOINED: dict[str, tuple[Any, Truth]] = {
    "one of each": (
        lambda net, x: [F.relu(p) for p in torch.cat(both_of(net, x), -1).chunk(2, -1)],
        {("a",): [1], ("b",): [4]},
    ),
    "a slice": (
        lambda net, x: F.relu(torch.cat(both_of(net, x), 1)[..., 6:]),
        {("b",): [4]},
    ),
    "a slice of one": (
        lambda net, x: F.relu(torch.cat(both_of(net, x), 1)[:, 8:11]),
        {("b",): [2]},
    ),
    "a unit": (
        lambda net, x: F.relu(torch.cat(both_of(net, x), 1)[:, 1]),
        {("a",): [0]},
    ),
    "some of three": (
        lambda net, x: F.relu(torch.cat([x, *both_of(net, x)], 1)[:, 4:]),
        {("a", "b"): [1, 10]},
    ),
    "moved between": (
        lambda net, x: F.relu(torch.cat(both_of(net, x), 1).t().unsqueeze(0)[0, :6].t()),
        {("a",): [1]},
    ),
    "rows": (
        lambda net, x: [F.relu(p) for p in torch.cat(both_of(net, x)).split(len(x))],
        {("a",): [1], ("b",): [4]},
    ),
    "a stack": (
        lambda net, x: [F.relu(p) for p in torch.stack(both_of(net, x), 1).unbind(1)],
        {("a",): [1], ("b",): [4]},
    ),
    "one of a stack": (
        lambda net, x: F.relu(torch.stack(both_of(net, x), 1)[:, -1]),
        {("b",): [4]},
    ),
    "a stack laid out": (
        lambda net, x: F.relu(torch.stack(both_of(net, x), 1).flatten(1)),
        {("a", "b"): [1, 10]},
    ),
    "a stack by cat": (
        lambda net, x: F.relu(torch.cat([p[:, None] for p in both_of(net, x)], 1).sum(1)),
        {("a", "b"): [1, 4]},
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", JOINED)
def test_a_part_of_what_was_joined_is_what_it_was(case: str, backend: str | None) -> None:
    if case == "rows" and backend is not None:
        pytest.skip("not judged: to know the rows would fix the number of samples")
    run, truth = JOINED[case]
    assert judged(run, backend) == truth


CHANGED: dict[str, Any] = {
    "added to": lambda net, x: (torch.cat(both_of(net, x), 1) + net.b.weight.sum())[:, :6],
    "normalised": lambda net, x: F.layer_norm(torch.cat(both_of(net, x), 1), (12,))[:, :6],
    "across": lambda net, x: torch.cat(both_of(net, x), 1)[:, 3:9],
    "every other": lambda net, x: torch.cat(both_of(net, x), 1)[:, ::2],
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_was_done_to_all_of_a_joint_is_not_forgotten(case: str) -> None:
    report = find_dead_units(Two(lambda net, x: F.relu(CHANGED[case](net, x))), [X])
    (layer,) = report.layers.values()
    assert set(layer.made_by) == {"a", "b"}


def test_what_is_written_into_a_joint_is_not_forgotten() -> None:
    def run(net: Two, x: Tensor) -> Tensor:
        joint = torch.cat(both_of(net, x), 1)
        joint[:, :3] = net.b(x)[:, :3]
        return F.relu(joint[:, :6])

    report = find_dead_units(Two(run), [X])
    assert report.unjudged or set(report["relu"].made_by) == {"a", "b"}


BESIDE: dict[str, Any] = {
    "units of a stack": lambda net, x: torch.stack(both_of(net, x), 1)[:, 0, :2],
    "in two steps": lambda net, x: torch.stack(both_of(net, x), 1)[..., :2][:, 0],
    "rows in another order": lambda net, x: torch.cat(both_of(net, x))[range(15, -1, -1)][:8],
    "units in another order": lambda net, x: torch.cat(both_of(net, x), 1)[:, [*range(6, 12), 0]],
    "sorted": lambda net, x: torch.cat(both_of(net, x)).sort(0)[0][:8],
    "shifted": lambda net, x: F.pad(torch.cat(both_of(net, x), 1), (6, -6))[:, 6:],
    "negated": lambda net, x: (-torch.cat(both_of(net, x), 1))[:, :6],
    "permuted": lambda net, x: torch.stack([h.view(-1, 2, 3) for h in both_of(net, x)], 1).mT[:, 0],
    "the greatest": lambda net, x: torch.stack([h.view(-1, 2, 3) for h in both_of(net, x)], 1).amax(
        -1
    )[:, 0],
    "transposed within": lambda net, x: torch.cat(
        [torch.cat(both_of(net, x), 1)[None], torch.cat(both_of(net, x), 1)[None]], 0
    ).transpose(1, 2)[0, :6],
}


@pytest.mark.parametrize("case", BESIDE)
def test_a_joint_that_was_changed_is_not_taken_for_what_it_was(case: str) -> None:
    """Either told, or other units than those of the layer alone, or made by both."""
    cut = BESIDE[case]
    report = find_dead_units(Two(lambda net, x: (F.relu(cut(net, x)), F.relu(net.a(x)))), [X])
    if report.unjudged:
        return
    alone = (F.relu(Two(lambda net, x: net.a(x))(X)) == 0).sum(0).tolist()
    (layer,) = (own for own in report.layers.values() if own.made_by == ("a",))
    assert layer.zeros.tolist() == alone


FLAWED: dict[str, Any] = {
    "padding joined once more": lambda net, x: torch.cat([F.pad(net.a(x), (0, 2)), net.b(x)], 1),
    "raw inputs joined once more": lambda net, x: torch.cat(
        [torch.cat([net.a(x), x], 1), net.b(x)], 1
    ),
    "one layer on two inputs": lambda net, x: torch.cat([net.a(x), net.a(-x)], 1),
    "a crop with inputs": lambda net, x: torch.cat([net.a(x), x, net.b(x)], 1)[:, :8],
    "a crop with padding": lambda net, x: F.pad(net.a(x), (2, 2))[:, 1:],
    "a crop of repeats": lambda net, x: net.a(x).repeat(1, 2)[:, :8],
}


@pytest.mark.parametrize("case", FLAWED)
def test_values_that_are_no_units_of_their_own_are_told(case: str) -> None:
    report = find_dead_units(Two(lambda net, x: F.relu(FLAWED[case](net, x))), [X])
    (reason,) = report.unjudged.values()
    assert "made by no weights" in reason or "several times" in reason


@pytest.mark.parametrize(
    "crop",
    [
        lambda net, x: F.pad(net.a(x), (2, 1))[:, 2:-1],
        lambda net, x: torch.cat([x, net.a(x), x], 1)[:, 4:-4],
        lambda net, x: torch.hstack([net.b(x), net.a(x)]).split(6, 1)[1],
        lambda net, x: torch.cat([net.b(x), torch.cat([x, net.a(x)], 1)], 1)[:, 6:][:, 4:],
    ],
    ids=["padding", "raw inputs", "hstack", "in two steps"],
)
def test_what_is_cropped_to_the_units_is_judged(crop: Any) -> None:
    assert judged(lambda net, x: F.relu(crop(net, x)), None) == {("a",): [1]}


@pytest.mark.parametrize(
    "write",
    [
        lambda h, g: h.view(len(h), 6).__setitem__(slice(None), g),
        lambda h, g: h.chunk(2, 1)[0].__setitem__(slice(None), g[:, :3]),
        lambda h, g: h[:4].__setitem__((slice(None), slice(None)), g[:4]),
    ],
    ids=["a view", "a chunk", "rows"],
)
def test_what_is_written_through_a_view_is_told(write: Any) -> None:
    def run(net: Two, x: Tensor) -> Tensor:
        hidden = net.a(x).clone()
        write(hidden, net.b(x))
        return F.relu(hidden)

    report = find_dead_units(Two(run), [X])
    assert report.unjudged or report["relu"].made_by == ("b",)


@pytest.mark.parametrize(
    ("other", "mixes"),
    [
        (lambda h: h.roll(1, 1), True),
        (lambda h: h.flip(1), True),
        (lambda h: h.view(-1, 3, 2).mT.reshape(-1, 6), True),
        (lambda h: h.roll(1, 0), False),
        (lambda h: h.flip(0), False),
        (lambda h: h + 0.0, False),
    ],
    ids=["rolled", "flipped", "shuffled", "rolled rows", "flipped rows", "added to"],
)
def test_rows_whose_units_stand_in_another_order_are_mixed(other: Any, mixes: bool) -> None:
    net = Two(lambda net, x: F.relu(torch.cat([h := net.a(x), other(h)])))
    report = find_dead_units(net, [X])
    assert bool(report.unjudged) is mixes
    if not mixes:
        assert report["relu"].dead.tolist() == [1]


def test_units_that_are_put_back_are_judged() -> None:
    def run(net: Two, x: Tensor) -> Tensor:
        joint = torch.cat(both_of(net, x), 1)
        joint[:, 6:] = F.dropout(joint[:, 6:], 0.0)
        return F.relu(joint)

    assert judged(run, None) == {("a", "b"): [1, 10]}


def test_a_joint_that_grows_does_not_slow_counting_down() -> None:
    def run(net: Two, x: Tensor) -> Tensor:
        hidden, rows = net.a(x[:1]), net.b(x[:1])
        for _ in range(300):
            hidden = torch.cat([hidden, net.a(x[:1])])
        for _ in range(16):
            rows = torch.cat([rows, rows])  # nested, it would double at each
        return F.relu(hidden[-8:]), F.relu(rows[:8])

    assert judged(run, None) == {("a",): [1], ("b",): [4]}


OVERWRITTEN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "zeros": lambda h, x: h.zero_(),
    "rows of zeros": lambda h, x: h[:2].zero_(),
    "a copy": lambda h, x: h.copy_(x[:, :1].expand(-1, 6)),
    "a sum of raw inputs": lambda h, x: torch.add(x[:, :1].expand(-1, 6), 1, out=h),
    "a constant": lambda h, x: h.fill_(1.0),
}


@pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason="there what is compiled runs eagerly meanwhile")
@pytest.mark.parametrize("case", OVERWRITTEN)
def test_units_that_are_written_over_in_a_graph(case: str) -> None:
    def run(net: Two, x: Tensor) -> Tensor:
        hidden = net.a(x).clone()
        OVERWRITTEN[case](hidden, x)
        return F.relu(net.b(x) + 0 * hidden)

    torch._dynamo.reset()
    net: Any = torch.compile(Two(run), backend="eager", fullgraph=True)
    with torch.no_grad():
        report = find_dead_units(net, [X])
    assert report["relu"].dead.tolist() == [4]


@pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason="there what is compiled runs eagerly meanwhile")
@pytest.mark.parametrize("both", [lambda net, x: net.b(x), lambda net, x: net.a(-x)])
def test_a_symbolic_number_of_samples_stays_symbolic(both: Any) -> None:
    def run(net: Two, x: Tensor) -> Any:
        return [F.relu(part) for part in torch.cat([net.a(x), both(net, x)]).chunk(2)]

    torch._dynamo.reset()
    net: Any = torch.compile(Two(run), backend="eager", fullgraph=True)
    batches = [torch.randn(size, 4) for size in (5, 7, 9)]
    for batch in batches:
        torch._dynamo.mark_dynamic(batch, 0)
    find_dead_units(net, batches)  # a number that is fixed is an error


IN_PLACE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "negated": lambda h, other: h.neg_(),
    "added": lambda h, other: h.add_(other),
    "copied": lambda h, other: h.copy_(other),
    "into another": lambda h, other: torch.add(h.clone(), other, out=h),
    "activated": lambda h, other: F.relu(h, inplace=True),
    "chained": lambda h, other: h.mul_(2).add_(other),
    "given an axis and freed of it": lambda h, other: h.unsqueeze_(1).squeeze_(1),
    "chained and negated": lambda h, other: h.add_(other).neg_().mul_(3),
}


@pytest.mark.skipif(not COUNTS_IN_GRAPHS, reason="there what is compiled runs eagerly meanwhile")
@pytest.mark.parametrize("case", IN_PLACE)
def test_what_a_statement_writes_is_known_in_a_graph(case: str) -> None:
    def run(net: Two, x: Tensor) -> Any:
        hidden, other = both_of(net, x)
        IN_PLACE[case](hidden, other)  # what it returns is thrown away
        return F.relu(hidden), F.relu(net.a(-x))

    reports = []
    for compiled in (False, True):
        torch._dynamo.reset()
        net: Any = Two(run)
        net = torch.compile(net, backend="eager", fullgraph=True) if compiled else net
        reports.append(find_dead_units(net, [X]))
    eager, traced = reports
    assert list(eager.layers) == list(traced.layers)
    assert len(eager.layers) == 2
    for mine, its in zip(eager.layers.values(), traced.layers.values(), strict=True):
        assert (mine.made_by, mine.zeros.tolist()) == (its.made_by, its.zeros.tolist())


def test_views_of_parts_change_nothing_of_a_tracedmodel() -> None:
    def run(net: Two, x: Tensor) -> Tensor:
        gate, value = net.a(x).chunk(2, 1)
        first, *_ = net.b(x).split([2, 4], 1)
        return (F.relu(gate) * value).sum() + first.unbind(0)[0].sum()

    gradients = []
    for counted in (False, True):
        torch._dynamo.reset()
        net = Two(run)
        compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
        if counted:
            find_dead_units(compiled, [X])
        compiled(X).backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    "choose",
    [torch.max, lambda a, b: a.max(b), torch.maximum, lambda a, b: torch.max(a, other=b)],
    ids=["max", "method", "maximum", "by name"],
)
def test_the_greater_of_two_is_made_by_both(choose: Any) -> None:
    assert judged(lambda net, x: (F.relu(choose(*both_of(net, x))), F.relu(net.a(x))), None) == {
        ("a", "b"): [],
        ("a",): [1],
    }


DIFFERENT: dict[str, list[Any]] = {
    "least and greatest": [
        lambda net, x: torch.minimum(*both_of(net, x)),
        lambda net, x: torch.maximum(*both_of(net, x)),
        lambda net, x: torch.min(net.a(x), net.b(x)),
    ],
    "of groups": [
        lambda net, x: net.a(x).view(-1, 3, 2).amax(-1),
        lambda net, x: net.a(x).view(-1, 3, 2).amin(-1),
        lambda net, x: net.a(x).view(-1, 2, 3).amax(1),
    ],
    "of a complex number": [
        lambda net, x: torch.complex(*both_of(net, x)).real,
        lambda net, x: torch.complex(*both_of(net, x)).imag,
    ],
    "signs in other orders": [
        lambda net, x: torch.cat([net.a(x), -net.a(x)], 1),
        lambda net, x: torch.cat([-net.a(x), net.a(x)], 1),
    ],
    "quotients": [
        lambda net, x: net.a(x) / net.b(x),
        lambda net, x: net.b(x) / net.a(x),
    ],
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_other_functions_of_the_same_units_are_other_layers(case: str) -> None:
    truth = []
    for turn, forward in enumerate(DIFFERENT[case]):
        values = forward(Two(forward), X).detach()
        if not (case == "least and greatest" and turn == 2):  # the same as the first
            truth.append((F.relu(values) == 0).sum(0).tolist())
    net = Two(lambda net, x: [F.relu(forward(net, x)) for forward in DIFFERENT[case]])
    report = find_dead_units(net, [X])
    assert not report.unjudged
    counted = [own.zeros.tolist() for own in report.layers.values()]
    if case == "least and greatest":
        truth[0] = [2 * count for count in truth[0]]
    assert sorted(counted) == sorted(truth)


@pytest.mark.parametrize(
    "parts",
    [
        lambda h: [h[:, :2], h[:, :4], h],  # Kusupati et al., "Matryoshka", 2022
        lambda h: [h, h[:, 4:]],
        lambda h: [h[:, 1:4], h[:, 3]],
    ],
    ids=["prefixes", "the whole", "one unit"],
)
def test_parts_that_overlap_are_no_layers_of_their_own(parts: Any) -> None:
    net = Two(lambda net, x: [F.relu(part) for part in parts(net.a(x))])
    report = find_dead_units(net, [X], layers=None)
    assert not report.layers
    assert all("parts that overlap" in reason for reason in report.unjudged.values())


CHOSEN: dict[str, tuple[Any, Any, bool]] = {
    "two lists with one unit in common": ([0, 1], [1, 2], True),
    "a list and a range": ([0, 5], slice(4, 6), True),
    "a list and all": ([0, 1], slice(None), True),
    "every second and every third": (slice(None, None, 2), slice(3, None, 3), True),
    "two lists": ([0, 2], [1, 3], False),
    "even and odd places": (slice(None, None, 2), slice(1, None, 2), False),
    "every second, and what is between": (slice(None, None, 2), [1, 3], False),
    "the same in another order": ([0, 5], [5, 0], False),
    "all in another order": ([5, 4, 3, 2, 1, 0], slice(None), False),
}


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["lists", "tensors"])
def test_a_unit_that_is_in_two_choices_is_told(case: str, as_tensor: bool) -> None:
    *choices, overlap = CHOSEN[case]
    if as_tensor:
        choices = [torch.tensor(it) if isinstance(it, list) else it for it in choices]
    net = Two(lambda net, x: [F.relu(net.a(x)[:, choice]) for choice in choices])
    report = find_dead_units(net, [X])
    assert (len(report.layers), len(report.unjudged)) == ((0, 2) if overlap else (2, 0))


def test_places_that_are_counted_from_the_end_are_those() -> None:
    def run(net: Two, x: Tensor) -> Any:
        return F.relu(net.a(x)[:, [-1, 1]]), F.relu(net.a(-x)[:, [5, 1]])

    (layer,) = find_dead_units(Two(run), [X]).layers.values()
    assert layer.observations == 2 * len(X)


@pytest.mark.parametrize("places", [[1, 1, 2], torch.tensor([1, 1, 2])], ids=["list", "tensor"])
def test_a_unit_that_is_chosen_twice_is_told(places: Any) -> None:
    report = find_dead_units(Two(lambda net, x: F.relu(net.a(x)[:, places])), [X])
    assert "several times" in report.unjudged["relu"]


def test_parts_that_do_not_overlap_are() -> None:
    net = Two(lambda net, x: [F.relu(net.a(x)[:, :2]), F.relu(net.a(x)[:, 2:4])])
    layers = find_dead_units(net, [X]).layers.values()
    assert [own.dead.tolist() for own in layers] == [[1], []]


class Conditional(nn.Module):
    """Filters of each sample's own, mixed from three: Yang et al., "CondConv", 2019."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gates = nn.Parameter(torch.randn(3, 5, 3, 3, 3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        samples, channels, *space = x.shape
        gates = self.gates(x.mean((2, 3))).softmax(1)
        filters = torch.mm(gates, self.weight.flatten(1)).view(-1, channels, 3, 3)
        made = F.conv2d(x.reshape(1, -1, *space), filters, padding=1, groups=samples)
        return F.relu(made.view(samples, 5, *space))


def test_filters_of_each_sample_are_one_layer_whatever_the_batch() -> None:
    net = Conditional()
    batches = [torch.randn(2, 3, 8, 8), torch.randn(1, 3, 8, 8)]
    (layer,) = find_dead_units(net, batches).layers.values()
    assert (layer.made_by, layer.observations) == (("weight",), 3 * 64)
    zeros = sum((net(batch) == 0).sum((0, 2, 3)) for batch in batches)
    assert layer.zeros.tolist() == zeros.tolist()  # type: ignore[union-attr]


class Recurrent(nn.Module):
    """Activates what a recurrent layer returns."""

    def __init__(self, kind: Any, layers: int, directions: int, run: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(4, 6, layers, bidirectional=directions == 2, batch_first=True)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        output, states = self.rnn(x)
        states = states if isinstance(states, tuple) else (states, None)
        return [F.relu(each) for each in self.run(output, *states)]


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (3, 1), (2, 2)])
def test_the_last_state_of_the_last_layer_is_what_it_returns(
    kind: Any, layers: int, directions: int
) -> None:
    ahead, back = (lambda o: o[..., :6]), (lambda o: o[..., 6:])
    if directions == 1:
        net = Recurrent(kind, layers, directions, lambda o, h, c: (o, h[-1]))
        sides: list[Any] = [lambda o: o]
    else:
        net = Recurrent(kind, layers, directions, lambda o, h, c: (ahead(o), back(o), h[-1], h[-2]))
        sides = [ahead, back]
    x = torch.randn(3, 5, 4)
    report = find_dead_units(net, [x])
    assert [own.observations for own in report.layers.values()] == [3 * 5 + 3] * directions
    output, states = net.rnn(x)
    hidden = states[0] if isinstance(states, tuple) else states
    for place, (side, own) in enumerate(zip(sides, report.layers.values(), strict=True)):
        zeros = (side(output) <= 0).sum((0, 1)) + (hidden[place - directions] <= 0).sum(0)
        assert own.zeros.tolist() == zeros.tolist()


@pytest.mark.parametrize("layers", [1, 2])
def test_cells_are_no_states(layers: int) -> None:
    net = Recurrent(nn.LSTM, layers, 1, lambda o, h, c: (h[-1], c[-1]))
    report = find_dead_units(net, [torch.randn(3, 5, 4)])
    assert [own.observations for own in report.layers.values()] == [3, 3]


def test_the_cell_of_a_recurrent_step_is_no_state() -> None:
    net = nn.Module()
    net.cell = nn.LSTMCell(4, 6)
    net.forward = lambda x: [F.relu(own) for own in net.cell(x)]
    report = find_dead_units(net, [torch.randn(3, 4)])
    assert [own.observations for own in report.layers.values()] == [3, 3]
