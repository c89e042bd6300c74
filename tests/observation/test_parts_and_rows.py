"""Parts of weights are other weights; rows of several layers are counted right or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import find_dead_units

X = torch.rand(8, 4)


class Net(nn.Module):
    """Weights, and what is done with them."""

    def __init__(self, function: Callable[..., Tensor], weights: Any) -> None:
        super().__init__()
        self.function, self.w = function, weights

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(self.w, *x)


def weights(*shape: int, dead: Any) -> nn.Parameter:
    """Weights whose units fire on all of X, but for some."""
    own = torch.rand(*shape)
    own[dead] = -1.0
    return nn.Parameter(own)


def rows(own: Tensor, x: Tensor, *parts: Tensor) -> Tensor:
    return sum((F.relu(F.linear(x, part)) for part in parts), torch.zeros(()))


def products(x: Tensor, *parts: Tensor) -> Tensor:
    return sum((F.relu(x @ part) for part in parts), torch.zeros(()))


ROWS, TABLE, STACK = (16, 4), (2, 2, 4, 6), (3, 4, 6)
PARTS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], Any, dict[str, int]]] = {
    "slices": (
        lambda w, x: rows(w, x, w[:8], w[-8:]), ROWS, slice(8), {"w.0_8": 8, "w.8_16": 0},
    ),
    "narrow": (
        lambda w, x: rows(w, x, w.narrow(0, 0, 8), torch.narrow(w, 0, 8, 8)),
        ROWS, slice(8), {"w.0_8": 8, "w.8_16": 0},
    ),
    "two numbers": (
        lambda w, x: products(x, w[0, 0], w[0, 1], w[1, 0]),
        TABLE, (0, 0), {"w.0.0": 6, "w.0.1": 0, "w.1.0": 0},
    ),
    "numbers and whole axes": (
        lambda w, x: products(x, w[0, :, :], w[1], w.select(0, 2)),
        STACK, 0, {"w.0": 6, "w.1": 0, "w.2": 0},
    ),
    "from the end": (
        lambda w, x: products(x, w[-1], w[2]), STACK, 0, {"w.2": 0},
    ),
    "columns are read, rows are made": (
        lambda w, x: F.relu(F.linear(x[:, :2], w.index_select(1, torch.tensor([1, 3])))),
        ROWS, slice(8), {"w": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", PARTS)
def test_a_part_of_weights_is_told_from_the_others(kind: str, compiled: bool) -> None:
    function, shape, dead, expected = PARTS[kind]
    model: Any = Net(function, weights(*shape, dead=dead))
    report = find_dead_units(torch.compile(model, backend="eager") if compiled else model, [X])
    assert not report.unjudged
    assert {layer.made_by: len(layer.dead) for layer in report.layers.values()} == {
        (name,): number for name, number in expected.items()
    }


@pytest.mark.parametrize("container", [nn.ParameterDict, nn.ParameterList])
def test_each_weight_of_a_container_makes_units_of_its_own(container: Any) -> None:
    own = [weights(4, 6, dead=(slice(None), unit)) for unit in range(3)]
    named = container(dict(zip("abc", own, strict=True)) if container is nn.ParameterDict else own)
    values: Callable[[Any], Any] = lambda w: w.values() if hasattr(w, "values") else w  # noqa: E731
    report = find_dead_units(Net(lambda w, x: products(x, *values(w)), named), [X])
    assert [layer.dead.tolist() for layer in report.layers.values()] == [[0], [1], [2]]


def two_layers() -> nn.ModuleList:
    """One whose units are all dead, and one whose units always fire."""
    layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
    for layer, bias in zip(layers, (-99.0, 99.0), strict=True):
        nn.init.constant_(layer.bias, bias)
    return layers


def written(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
    out = torch.zeros_like(a)
    out[first] = a[first]
    out[~first] = b[~first]
    return out


def put(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def put_rows(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
        out = torch.zeros_like(a)
        for rows, values in ((first, a), (~first, b)):
            places = rows.nonzero().squeeze(1)
            if name.startswith("scatter"):
                places = places[:, None].expand(-1, a.shape[1])
            if name == "index_put_":
                out.index_put_((places,), values[rows])
            elif name == "masked_scatter":
                out = out.masked_scatter(rows[:, None].expand_as(a), values[rows])
            else:
                out = getattr(out, name)(0, places, values[rows])
        return out

    return put_rows


TOGETHER: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cat over the batch": lambda a, b, first: torch.cat([a, b]),
    "vstack": lambda a, b, first: torch.vstack([a, b]),
    "stack": lambda a, b, first: torch.stack([a, b], 1),
    "where": lambda a, b, first: torch.where(first[:, None], a, b),
    "written": written,
    **{
        name: put(name)
        for name in (
            *("index_add_", "index_add", "index_copy_", "index_put_", "scatter", "scatter_add_"),
            "masked_scatter",
        )
    },
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_rows_of_several_layers_in_one_activation_are_not_judged(kind: str) -> None:
    def forward(layers: Any, x: Tensor) -> Tensor:
        return F.relu(TOGETHER[kind](layers[0](x), layers[1](x), torch.arange(len(x)) < 3))

    report = find_dead_units(Net(forward, two_layers()), [X])
    assert not report.layers
    assert "made by other weights" in report.unjudged["relu"]


def test_a_layer_whose_rows_are_mixed_in_some_batches_is_judged_by_none() -> None:
    def forward(layers: Any, x: Tensor) -> Tensor:
        first = x[:, 0] > 0.5
        out = torch.zeros(len(x), 6)
        for layer, rows in zip(layers, (first, ~first), strict=True):
            if rows.any():
                out[rows] = layer(x[rows])
        return F.relu(out)

    report = find_dead_units(
        Net(forward, two_layers()), [torch.eye(4), torch.ones(2, 4), torch.zeros(2, 4)]
    )
    assert not report.layers
    assert len(report.unjudged) == 3


def test_what_is_added_to_all_rows_of_a_layer_joins_it() -> None:
    def forward(layers: Any, x: Tensor) -> Tensor:
        rows = torch.arange(3)
        return F.relu(layers[1](x).index_add(0, rows, layers[0](x[rows])))

    report = find_dead_units(Net(forward, two_layers()), [X])
    assert [layer.num_units for layer in report.layers.values()] == [6]
    assert not report.unjudged


def test_units_of_several_layers_side_by_side_are_judged() -> None:
    def forward(layers: Any, x: Tensor) -> Tensor:
        return F.relu(torch.cat([layers[0](x), layers[1](x)], 1))

    (layer,) = find_dead_units(Net(forward, two_layers()), [X]).layers.values()
    assert layer.dead.tolist() == list(range(6))


def test_the_same_layer_on_two_inputs_side_by_side_is_judged() -> None:
    def forward(layers: Any, x: Tensor) -> Tensor:
        return F.relu(torch.cat([layers[0](x), layers[0](-x)]))

    (layer,) = find_dead_units(Net(forward, two_layers()), [X]).layers.values()
    assert (len(layer.dead), layer.observations) == (6, 16)


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted": lambda h: h[torch.tensor([5, 0, 1, 2, 3, 4])],
    "flipped": lambda h: h.flip(0),
    "cut": lambda h: h[:4],
    "transposed": lambda h: h.view(2, 3, 6).transpose(0, 1),
}


@pytest.mark.parametrize("kind", MOVED)
def test_rows_of_chosen_experts_that_are_moved_are_not_judged(kind: str) -> None:
    def forward(w: Tensor, x: Tensor, expert: Tensor) -> Tensor:
        return F.relu(MOVED[kind](torch.bmm(x[:, None], w[expert]).squeeze(1)))

    expert = torch.tensor([1, 0, 2, 2, 1, 0])
    report = find_dead_units(Net(forward, weights(*STACK, dead=0)), [(X[:6], expert)])
    assert not report.layers
    assert "made by other weights" in report.unjudged["relu"]


@pytest.mark.parametrize("back", [0, 3])
def test_experts_may_be_chosen_from_the_end(back: int) -> None:
    def forward(w: Tensor, x: Tensor, expert: Tensor) -> Tensor:
        return F.relu(torch.bmm(x[:, None], w[expert - back]).squeeze(1))

    expert = torch.tensor([1, 0, 2, 2, 1, 0])
    report = find_dead_units(Net(forward, weights(*STACK, dead=0)), [(X[:6], expert)])
    assert [len(layer.dead) for layer in report.layers.values()] == [6, 0, 0]
    assert [layer.observations for layer in report.layers.values()] == [2, 2, 2]


def test_a_weight_on_the_left_makes_rows_of_what_a_layer_made() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.w = nn.Linear(4, 6), weights(7, 3, dead=0)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.w @ self.embed(x).abs())

    (layer,) = find_dead_units(Mixer(), [torch.rand(5, 3, 4)]).layers.values()
    assert (layer.num_units, layer.unit_dim, layer.dead.tolist()) == (7, 1, [0])


def test_where_a_result_is_written_is_no_operand() -> None:
    def forward(w: Tensor, x: Tensor) -> Tensor:
        return F.relu(torch.mm(x, w, out=x.new_empty(len(x), 6)))

    with torch.no_grad():
        net = Net(forward, weights(4, 6, dead=(slice(None), 2)))
        (layer,) = find_dead_units(net, [X]).layers.values()
    assert (layer.unit_dim, layer.dead.tolist()) == (1, [2])


ORDERS: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, ...]], list[list[int]]]] = {
    "lists of places": (lambda w, x: ((x @ w)[:, [0, 2]], (x @ w)[:, [1, 3]]), [[0], []]),
    "tensors of places": (
        lambda w, x: ((x @ w)[..., torch.tensor([5, 0])], (x @ w)[:, torch.tensor([0, 5])]),
        [[1], [0]],
    ),
    "index_select": (
        lambda w, x: ((x @ w).index_select(1, torch.tensor([5, 0, 4, 3, 1, 2])), x @ w), [[1], [0]],
    ),
    "a mask": (lambda w, x: ((x @ w)[:, torch.arange(6) > 3], x @ w), [[], [0]]),
    "weights in another order": (
        lambda w, x: tuple(x @ torch.cat(cut, 1) for cut in (w.split(3, 1), w.split(3, 1)[::-1])),
        [[0], [3]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ORDERS)
def test_the_same_units_in_another_order_are_another_layer(kind: str) -> None:
    function, expected = ORDERS[kind]

    def forward(w: Tensor, x: Tensor) -> Tensor:
        one, other = function(w, x)
        return F.relu(one).sum() + F.relu(other).sum()

    report = find_dead_units(Net(forward, weights(4, 6, dead=(slice(None), 0))), [X, X])
    assert not report.unjudged
    assert [layer.dead.tolist() for layer in report.layers.values()] == expected
    assert [layer.observations for layer in report.layers.values()] == [16, 16]


def test_a_list_chooses_among_stacked_weights() -> None:
    def forward(w: Tensor, x: Tensor) -> Tensor:
        return F.relu(torch.einsum("bi,eio->beo", x, w[[2, 0]]))

    (layer,) = find_dead_units(Net(forward, weights(*STACK, dead=2)), [X]).layers.values()
    assert (layer.made_by, layer.dead.tolist()) == (("w.at2_0",), list(range(6)))


def test_a_weight_that_is_repeated_makes_its_units_once() -> None:
    def forward(w: Tensor, x: Tensor) -> Tensor:
        return F.relu(torch.bmm(x[:, None], w.unsqueeze(0).repeat(len(x), 1, 1)))

    net = Net(forward, weights(4, 6, dead=(slice(None), 2)))
    (layer,) = find_dead_units(net, [X]).layers.values()
    assert (layer.num_units, layer.observations, layer.dead.tolist()) == (6, 8, [2])


def test_members_that_share_a_product_and_scale_it_are_members() -> None:
    """BatchEnsemble (Wen, Tran & Ba, 2020): a shared weight, and a factor of each member's own."""

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = weights(4, 6, dead=(slice(None), 0))
            self.scale = nn.Parameter(torch.ones(3, 6))
            with torch.no_grad():
                self.scale[1] = -1.0

        def forward(self, x: Tensor) -> Tensor:
            return F.relu((x.view(3, -1, 4) @ self.shared) * self.scale[:, None])

    (layer,) = find_dead_units(Ensemble(), [torch.rand(6, 4)]).layers.values()
    assert (layer.num_units, layer.observations) == (18, 2)
    assert layer.dead.tolist() == [0, *range(7, 12), 12]


def test_parts_along_either_axis_are_other_units() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(3, 4), nn.ReLU()
            with torch.no_grad():
                self.fc.bias.copy_(torch.tensor([100.0, -100.0, 100.0, 100.0]))

        def forward(self, x: Tensor) -> Tensor:
            units = self.fc(x).view(-1, 2, 2)
            first = [self.act(half).sum() for half in (units[:, 0], units[:, :, 0])]
            return sum(first) + self.act(units.unbind(1)[1]).sum() + self.act(units.unbind(2)[1])

    layers = find_dead_units(Halves(), [torch.randn(4, 3)]).layers.values()
    assert [(own.num_units, own.observations) for own in layers] == [(2, 4)] * 4
    assert sorted(own.dead.tolist() for own in layers)[:2] == [[], []]
    assert sum(1 in own.dead.tolist() for own in layers) == 1  # unit 1 in the first row
    assert sum(0 in own.dead.tolist() for own in layers) == 1  # and in the second column


def test_units_that_are_joined_the_other_way_round_are_not_added_up() -> None:
    """Pairs of nodes, either way round."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.act = nn.Linear(3, 4), nn.Linear(3, 4), nn.ReLU()
            nn.init.constant_(self.one.bias, -100.0)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.one(x), self.other(x)
            forth, back = torch.cat([one, other], 1), torch.cat([other, one], 1)
            return self.act(forth) + self.act(back)

    net, x = Pairs(), torch.randn(9, 3)
    forth, back = find_dead_units(net, [x]).layers.values()
    zeros = (net.other(x) <= 0).sum(0).tolist()
    assert forth.zeros.tolist() == [9, 9, 9, 9, *zeros]
    assert back.zeros.tolist() == [*zeros, 9, 9, 9, 9]


@pytest.mark.parametrize(
    "how", ["index_add", "index_copy", "scatter", "gather", "setitem", "top-2"]
)
def test_rows_of_gathered_members_that_move_are_not_counted_for_others(how: str) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 6, 5))

        def forward(self, x: Tensor) -> Tensor:
            chosen, places = (x[:, 0] * 7).long().abs() % 3, torch.arange(len(x)).flip(0)
            made = torch.bmm(x[:, None], self.w[chosen])[:, 0]
            rows = places[:, None].expand_as(made)
            out = torch.zeros_like(made)
            if how == "index_add":
                out = out.index_add(0, places, made)
            elif how == "index_copy":
                out = out.index_copy(0, places, made)
            elif how == "scatter":
                out = out.scatter(0, rows, made)
            elif how == "gather":
                out = made.gather(0, rows)
            elif how == "setitem":
                out[places] = made
            else:
                out = made + torch.bmm(x[:, None], self.w[(chosen + 1) % 3])[:, 0]
            return F.relu(out)

    with pytest.warns(UserWarning, match="are made by other weights"):
        report = find_dead_units(Routed(), [torch.randn(9, 6)])
    assert list(report.unjudged) == ["relu"]
    assert not report.layers


def _copy_rows(h: Tensor, own: Tensor) -> None:
    h[:2].copy_(own[:2])


def _copy_units(h: Tensor, own: Tensor) -> None:
    h[:, :3].copy_(own[:, :3])


def _set_units(h: Tensor, own: Tensor) -> None:
    h[:, :3] = own[:, :3]


def _add_to_rows(h: Tensor, own: Tensor) -> None:
    h[:2].add_(own[:2])


def _add_to_units(h: Tensor, own: Tensor) -> None:
    h[:, :3] += own[:, :3]


class Overwritten(nn.Module):
    """Writes what one layer makes over a part of what another one makes."""

    def __init__(self, write: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.other, self.write = nn.Linear(4, 6), nn.Linear(4, 6), write

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x).clone()
        self.write(h, self.other(x))
        return F.relu(h)


@pytest.mark.parametrize(
    "write",
    [_copy_rows, _copy_units, _set_units, _add_to_rows, _add_to_units],
    ids=lambda write: write.__name__,
)
def test_what_is_partly_written_over_is_not_counted_for_one_layer(write: Any) -> None:
    with pytest.warns(UserWarning, match="are made by other weights"):
        report = find_dead_units(Overwritten(write), [X])
    assert list(report.unjudged) == ["relu"]
    assert not report.layers


@pytest.mark.parametrize(
    "write",
    [
        lambda h, own: h[:2].mul_(2.0),
        lambda h, own: h[:, :3].contiguous(),
        lambda h, own: h[:, 1].zero_(),
        lambda h, own: h.view(-1, 6).clamp_(max=9.0),
    ],
    ids=["rows scaled", "nothing written", "units masked", "the whole clamped"],
)
def test_a_part_that_is_changed_in_place_is_its_layers_own(write: Any) -> None:
    report = find_dead_units(Overwritten(write), [X])
    assert report["relu"].made_by == ("one",)
    assert not report.unjudged


def test_units_of_weights_that_nothing_knows_leave_a_doubt() -> None:
    """Experts that are buffers: which of them made a batch's units is not told by their names."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("experts", torch.randn(2, 4, 3))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(F.linear(x, self.experts[len(x) % 2]))

    with pytest.warns(UserWarning, match="nothing tells which weights make its units"):
        report = find_dead_units(Frozen(), [torch.randn(4, 3), torch.randn(5, 3)])
    assert report["act"].order_assumed
    assert not report["act"].axis_assumed


def test_filters_of_each_sample_by_a_linear_layer_make_its_units() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hyper = nn.Linear(5, 36)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            filters, count = self.hyper(z).view(-1, 1, 3, 3), 4 * len(x)
            out = F.conv2d(x.view(1, count, 8, 8), filters, groups=count)
            return F.relu(out.view(len(x), 4, 6, 6))

    net, batch = Depthwise(), (torch.rand(3, 4, 8, 8), torch.rand(3, 5))
    (layer,) = find_dead_units(net, [batch]).layers.values()
    assert (layer.num_units, layer.made_by, layer.axis_assumed) == (4, ("hyper",), False)
    assert layer.zeros.tolist() == (net(*batch) == 0).sum((0, 2, 3)).tolist()


def test_a_bias_alone_makes_no_units() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("experts", torch.randn(2, 4, 3))
            self.shift, self.act = nn.Parameter(torch.randn(4)), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(F.linear(x, self.experts[len(x) % 2], self.shift))

    with pytest.warns(UserWarning, match="nothing tells which weights make its units"):
        report = find_dead_units(Frozen(), [torch.randn(4, 3), torch.randn(5, 3)])
    assert report["act"].order_assumed


def test_units_that_are_sorted_are_no_units_of_the_layer_any_more() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(x).sort(1).values)

    (layer,) = find_dead_units(Sorted(), [torch.randn(5, 3)]).layers.values()
    assert layer.axis_assumed
    assert layer.made_by == ()


@pytest.mark.parametrize("how", ["view_as_real", "fold", "squeeze_", "as_strided", "tensordot"])
def test_what_no_rule_follows_leaves_a_doubt_though_the_sizes_fit(how: str) -> None:
    class Untold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x)
            if how == "view_as_real":
                made = torch.view_as_real(torch.complex(made, made))
            elif how == "fold":
                made = F.fold(made, (2, 4), (1, 2), stride=(1, 2))
            elif how == "squeeze_":
                made = made.unsqueeze(1).squeeze_(1)
            elif how == "as_strided":
                made = made.as_strided((3, 4, 4), (16, 1, 4))
            else:
                made = torch.tensordot(made, torch.eye(4), dims=([1], [0]))
            return F.relu(made)

    (layer,) = find_dead_units(Untold(), [torch.randn(3, 4, 4)]).layers.values()
    assert layer.axis_assumed


def test_an_axis_that_is_guessed_by_the_shape_is_told_to_be() -> None:
    """A detour by NumPy hides what made the units; a layer made the same shape just before."""

    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(torch.from_numpy(self.conv(x).detach().numpy() * 2))

    (layer,) = find_dead_units(Detour(), [torch.randn(8, 4, 5)]).layers.values()
    assert (layer.num_units, layer.unit_dim) == (6, 1)
    assert layer.axis_assumed


def test_a_shape_that_is_known_to_have_no_units_is_not_guessed_to_have_some() -> None:
    """Products of two activations, as attention's scores, have none."""

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(4, 6), nn.Linear(4, 6)
            self.out = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).mT
            weights = F.relu(torch.from_numpy(scores.detach().numpy() * 1))
            return self.out(weights @ x)

    assert list(find_dead_units(Scores(), [torch.randn(8, 5, 4)]).layers) == ["out.1"]


class Towers(nn.Module):
    """Two towers, each of which adds the same sum of embeddings."""

    def __init__(self, embeddings: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 6), nn.Linear(4, 6)
        self.tables = nn.ModuleList(nn.Embedding(5, 6) for _ in range(embeddings))
        nn.init.constant_(self.one.bias[:3], -99.0)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        shared = sum(table(ids[:, n]) for n, table in enumerate(self.tables))
        return F.relu(self.one(x) + shared), F.relu(self.other(x) + shared)


def test_sums_of_many_are_told_apart_by_any_of_them() -> None:
    net, ids = Towers(30), torch.randint(0, 5, (64, 30))
    report = find_dead_units(net, [(torch.randn(64, 4), ids)])
    layers = {layer.made_by[0]: layer for layer in report.layers.values()}
    assert [len(layer.made_by) for layer in layers.values()] == [31, 31]
    assert layers["one"].dead.tolist() == [0, 1, 2]
    assert layers["other"].dead.tolist() == []
    assert all(len(name) < 120 for name in report.layers)


class Unknown(nn.Module):
    """Weights that are no parameters, on both sides of what is known."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.shift = nn.Linear(4, 5), nn.Parameter(torch.zeros(6))
        self.register_buffer("u", torch.randn(2, 5, 6))
        self.u[0, :, :3] = 0
        self.norm = nn.LayerNorm(6)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, h, u: h @ u,
        lambda net, h, u: torch.einsum("bi,io->bo", h, u),
        lambda net, h, u: h.relu() @ u + net.shift,
        lambda net, h, u: net.norm(h @ u),
    ],
    ids=["product", "einsum", "a bias behind it", "a norm behind it"],
)
def test_a_layer_does_not_make_what_a_buffer_makes_of_it(forward: Any) -> None:
    net = Unknown()
    net.forward = lambda x: [F.gelu(forward(net, net.fc(x), u)) for u in net.u]
    with pytest.warns(UserWarning, match="nothing tells which weights make its units"):
        report = find_dead_units(net, [X], layers=["gelu*"])
    assert [layer.made_by for layer in report.layers.values()] == [(), ()]
    assert [layer.observations for layer in report.layers.values()] == [8, 8]
    assert all(layer.order_assumed for layer in report.layers.values())


class Batched(nn.Module):
    """One matrix for all members, each with a scale and a bias of its own (BatchEnsemble, TabM)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 6, bias=False), nn.Conv2d(4, 6, 1, bias=False)
        self.scale, self.bias = nn.Parameter(torch.rand(3, 6) + 0.5), nn.Parameter(torch.ones(3, 6))
        self.given = nn.Parameter(torch.rand(3, 4))
        with torch.no_grad():
            for member in range(3):
                self.bias[member, member] = -99.0


def test_members_that_share_a_matrix_are_units_of_their_own() -> None:
    """Positions might have such scales, too, which is said."""
    net = Batched()
    net.forward = lambda x: F.relu(net.linear(x[:, None] * net.given) * net.scale + net.bias)
    (layer,) = find_dead_units(net, [X]).layers.values()
    assert layer.num_units == 18
    assert layer.dead.tolist() == [0, 7, 14]
    assert layer.axis_assumed


def test_a_bias_of_each_members_own_leaves_a_doubt() -> None:
    net = Batched()
    net.forward = lambda x: F.relu(net.linear(x)[None] + net.bias[:, None])
    (layer,) = find_dead_units(net, [X]).layers.values()
    assert layer.axis_assumed


@pytest.mark.parametrize("how", ["repeated", "expanded"])
def test_scales_repeated_for_the_samples_of_each_member_are_not_counted_as_one(how: str) -> None:
    net = Batched()

    def forward(x: Tensor) -> Tensor:
        times = len(x) // 3
        if how == "repeated":
            own = [it.repeat_interleave(times, 0) for it in (net.scale, net.bias)]
            return F.relu(net.linear(x) * own[0] + own[1])
        own = [it[:, None].expand(3, times, 6).reshape(-1, 6) for it in (net.scale, net.bias)]
        return F.relu(
            net.conv(x[..., None, None]) * own[0][..., None, None] + own[1][..., None, None]
        )

    net.forward = forward
    with pytest.warns(UserWarning, match="are made by other weights"):
        report = find_dead_units(net, [torch.rand(9, 4)])
    assert list(report.unjudged) == ["relu"]


@pytest.mark.parametrize("copied", ["repeat", "expand"])
def test_a_scale_that_is_the_same_for_all_samples_makes_no_members(copied: str) -> None:
    net = Batched()
    scale = net.scale[:1]
    net.forward = lambda x: F.relu(
        net.linear(x)
        * (scale.repeat(len(x), 1) if copied == "repeat" else scale.expand(len(x), 6).clone())
    )
    (layer,) = find_dead_units(net, [X]).layers.values()
    assert layer.num_units == 6
    assert not layer.axis_assumed


@pytest.mark.parametrize("some", [torch.tensor([3, 0]), [3, 0], slice(2, 4), 3], ids=str)
def test_weights_used_whole_and_in_part_are_not_judged_by_either(some: Any) -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.rand(4, 4, 3)), nn.Parameter(torch.zeros(4, 1, 3))

        def forward(self, x: Tensor, chosen: Any) -> Tensor:
            w, b = (self.w, self.b) if chosen is None else (self.w[chosen], self.b[chosen])
            return F.relu(x @ w + b)

    with pytest.warns(UserWarning, match="as a whole in one call and in part in another"):
        report = find_dead_units(Ensemble(), [(X, None), (X + 99, some)])
    assert not report.layers
    assert find_dead_units(Ensemble(), [(X, None)])["relu"].num_units == 12


def test_an_index_with_dots_chooses_the_same_weights() -> None:
    net = nn.Module()
    net.w = nn.Parameter(torch.rand(5, 4, 6))
    net.forward = lambda x: F.relu(x @ net.w[[3, 0, 2], ...])
    assert find_dead_units(net, [X])["relu"].num_units == 18


def test_weights_that_are_standardised_make_the_units() -> None:
    """Weight standardisation (Qiao et al., 2019), as BiT has it, before a norm."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return F.conv2d(x, weight, self.bias)

    net = nn.Sequential(Standardised(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU())
    layer = find_dead_units(net, [torch.randn(2, 3, 8, 8)])["2"]
    assert layer.made_by == ("0", "1")
    assert not layer.order_assumed


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, h: h * net.group.repeat_interleave(2),
        lambda net, h: h.copy_(F.linear(X, net.codes * net.steps.repeat_interleave(2, dim=1))),
        lambda net, h: h[:, None] + net.places,
    ],
    ids=["a scale per group of units", "weights quantised in groups", "positions"],
)
def test_weights_repeated_for_units_and_those_of_positions_leave_no_doubt(forward: Any) -> None:
    net = nn.Module()
    net.fc, net.group = nn.Linear(4, 8), nn.Parameter(torch.rand(4))
    net.steps, net.places = nn.Parameter(torch.rand(8, 2)), nn.Parameter(torch.rand(5, 8))
    net.register_buffer("codes", torch.randint(-8, 8, (8, 4)).float())
    net.forward = lambda x: F.relu(forward(net, net.fc(x)))
    (layer,) = find_dead_units(net, [X] * 3).layers.values()
    assert layer.num_units == 8
    assert not layer.axis_assumed
    assert not layer.order_assumed


@pytest.mark.parametrize(
    "write",
    [
        lambda h, x: h[:, :4].sub_(1),
        lambda h, x: h[:, :4].__iadd__(x),
        lambda h, x: h.__setitem__((slice(None), slice(4)), h[:, :4].tanh()),
    ],
    ids=["a number", "raw inputs", "themselves"],
)
def test_units_that_are_written_back_where_they_stand_are_their_layers_own(write: Any) -> None:
    net = Overwritten(lambda h, own: write(h, X))
    report = find_dead_units(net, [X])
    assert report["relu"].made_by == ("one",)
    assert not report.unjudged


def test_what_is_overwritten_is_nobodys_in_the_third_pass_as_in_the_first() -> None:
    net = nn.Module()
    net.fc = nn.Linear(4, 4)
    nn.init.ones_(net.fc.weight)
    nn.init.constant_(net.fc.bias[:2], -99.0)
    net.forward = lambda x, overwrite: F.relu(net.fc(x).copy_(x) if overwrite else net.fc(x))
    report = find_dead_units(net, [(X, turn % 2 == 1) for turn in range(20)])
    (layer,) = (own for own in report.layers.values() if own.made_by == ("fc",))
    assert layer.observations == 10 * len(X)
    assert layer.dead.tolist() == [0, 1]


SHUFFLED = (0, 4, 1, 5, 2, 6, 3, 7)
OTHERWISE: dict[str, tuple[Callable[[Any, Tensor], Tensor], ...]] = {
    "parts of other sizes": (
        lambda net, x: net.fc(x).split([2, 2, 4], 1)[1],
        lambda net, x: net.fc(x).split([4, 2, 2], dim=1)[1],
    ),
    "shuffled by hand": (
        lambda net, x: net.fc(x),
        lambda net, x: net.fc(x).view(-1, 2, 4).transpose(1, 2).reshape(-1, 8),
    ),
    "shuffled": (
        lambda net, x: net.fc(x)[..., None],
        lambda net, x: F.channel_shuffle(net.fc(x)[..., None], 2),
    ),
    "before and behind an activation": (
        lambda net, x: torch.cat([net.fc(x), net.gc(x).sigmoid()], 1),
        lambda net, x: torch.cat([net.gc(x).sigmoid(), net.fc(x)], 1),
    ),
    "negated weights": (
        lambda net, x: F.linear(x, net.fc.weight),
        lambda net, x: F.linear(x, -net.fc.weight),
    ),
    "weights turned over": (
        lambda net, x: F.linear(x, net.fc.weight),
        lambda net, x: F.linear(x, net.fc.weight.flip(0)),
    ),
    "columns and rows of weights": (
        lambda net, x: F.linear(x[:, :2], net.fc.weight.chunk(2, 1)[0]),
        lambda net, x: F.linear(x, net.fc.weight.chunk(2)[0]),
    ),
    "shuffled twice": (
        lambda net, x: F.channel_shuffle(net.fc(x)[..., None], 2),
        lambda net, x: F.channel_shuffle(F.channel_shuffle(net.fc(x)[..., None], 2), 2),
    ),
    "shuffled in other groups": (
        lambda net, x: F.channel_shuffle(net.fc(x)[..., None], 2),
        lambda net, x: F.channel_shuffle(net.fc(x)[..., None], 4),
    ),
    "rolled by another number": (
        lambda net, x: net.fc(x).roll(1, 1),
        lambda net, x: net.fc(x).roll(2, 1),
    ),
    "weights rolled by another number": (
        lambda net, x: F.linear(x, net.fc.weight.roll(1, 0)),
        lambda net, x: F.linear(x, net.fc.weight.roll(2, 0)),
    ),
    "halves in another order": (
        lambda net, x: torch.cat(net.fc(x).chunk(2, 1), 1),
        lambda net, x: torch.cat(net.fc(x).chunk(2, 1)[::-1], 1),
    ),
    "the least and the greatest of two": (
        lambda net, x: torch.stack([net.fc(x), net.gc(x).repeat(1, 2)]).amin(0),
        lambda net, x: torch.stack([net.fc(x), net.gc(x).repeat(1, 2)]).amax(0),
    ),
    "states of two directions": (
        lambda net, x: net.rnn(x[None])[1][0][0],
        lambda net, x: net.rnn(x[None])[1][0][1],
    ),
}


@pytest.mark.parametrize("ways", OTHERWISE.values(), ids=OTHERWISE)
def test_units_that_stand_elsewhere_are_another_layer(ways: Any) -> None:
    net = nn.Module()
    net.fc, net.rnn = nn.Linear(4, 8), nn.LSTM(4, 3, bidirectional=True)
    net.gc = nn.Linear(4, 4)
    nn.init.ones_(net.fc.weight)
    with torch.no_grad():
        net.fc.weight[::3] = -1.0
        net.fc.bias[::3] = -9.0
    net.forward = lambda x, way: F.relu(ways[way](net, x))
    truth = {
        tuple((ways[way](net, X).relu() == 0).flatten(1).sum(0).tolist()): way for way in (0, 1)
    }
    with torch.no_grad():
        report = find_dead_units(net, [(X, turn % 2) for turn in range(10)])
    assert not report.unjudged
    found = [
        tuple((layer.zero_rate * layer.observations / 5).round().int().tolist())
        for layer in report.layers.values()
    ]
    assert sorted(found) == sorted(truth)
    assert all(layer.observations == 5 * len(X) for layer in report.layers.values())


def test_parts_and_slices_of_the_same_units_are_one_layer() -> None:
    net = nn.Module()
    net.fc = nn.Linear(4, 8)
    net.forward = lambda x, cut: F.relu(net.fc(x)[:, 4:] if cut else net.fc(x).chunk(2, 1)[1])
    (layer,) = find_dead_units(net, [(X, True), (X, False)]).layers.values()
    assert layer.observations == 2 * len(X)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_states_of_stacked_recurrent_layers_are_units_each(kind: Any, directions: int) -> None:
    net = nn.Module()
    net.rnn = kind(4, 3, num_layers=2, bidirectional=directions == 2)
    seen = []

    def forward(x: Tensor) -> Tensor:
        state = net.rnn(x.view(4, 2, 4))[1]
        state = state[0] if kind is nn.LSTM else state
        seen.append(F.relu(state))
        return F.relu(state)

    net.forward = forward
    layer = find_dead_units(net, [X])["relu"]
    rate = (seen[0] == 0).double().mean(1).flatten()
    assert layer.num_units == 2 * directions * 3
    assert layer.zero_rate.tolist() == pytest.approx(rate.tolist())
    assert layer.made_by == ("rnn",)


def test_rows_beside_others_that_nobody_knows_are_not_judged() -> None:
    net = nn.Module()
    net.fc = nn.Linear(4, 4)
    net.forward = lambda x: F.relu(torch.cat([net.fc(x), x]))
    report = find_dead_units(net, [X])
    assert "relu" in report.unjudged
    net.forward = lambda x: F.relu(torch.cat([net.fc(x), torch.zeros(2, 4)]))
    assert find_dead_units(net, [X])["relu"].num_units == 4


@pytest.mark.parametrize(
    "repeated",
    [
        lambda h: h.repeat(1, 2),
        lambda h: h.repeat_interleave(2, 1),
        lambda h: torch.cat([h, h], 1),
    ],
    ids=["repeated", "interleaved", "joined with itself"],
)
def test_the_same_units_several_times_are_no_more_units(repeated: Any) -> None:
    net = nn.Module()
    net.fc, net.gc = nn.Linear(4, 8), nn.Linear(4, 16)
    net.forward = lambda x: F.relu(repeated(net.fc(x)))
    assert "several times" in find_dead_units(net, [X]).unjudged["relu"]
    net.forward = lambda x: F.relu(repeated(net.fc(x)) + net.gc(x))  # each sum is a unit
    assert find_dead_units(net, [X])["relu"].num_units == 16
    net.forward = lambda x: F.relu(net.fc(x).repeat(2, 1))  # samples, not units
    assert find_dead_units(net, [X])["relu"].num_units == 8


@pytest.mark.parametrize(
    "joined",
    [
        lambda net, x: F.pad(net.fc(x), (2, 2)),
        lambda net, x: torch.cat([net.fc(x), torch.zeros(len(x), 3)], 1),
        lambda net, x: torch.cat([x, net.fc(x)], 1),
    ],
    ids=["padded", "beside zeros", "beside raw inputs"],
)
def test_what_no_weights_make_are_no_units(joined: Any) -> None:
    net = nn.Module()
    net.fc, net.gc = nn.Linear(4, 8), nn.Linear(4, 8)
    net.forward = lambda x: F.relu(joined(net, x))
    assert "made by no weights" in find_dead_units(net, [X]).unjudged["relu"]
    # What is padded is one summand of units that others make: a shortcut of a ResNet of option A.
    net.forward = lambda x: F.relu(F.pad(net.fc(x), (0, 2)) + net.gc.weight.new_ones(1) * net.hc(x))
    net.hc = nn.Linear(4, 10)
    assert find_dead_units(net, [X])["relu"].num_units == 10


@pytest.mark.parametrize(
    ("forward", "makers"),
    [
        (lambda net, x: torch.cat([torch.empty(0, 8), net.fc(x)]), ("fc",)),
        (lambda net, x: torch.cat([torch.tensor([]), net.fc(x)], 1), ("fc",)),
        (lambda net, x: net.norm(torch.cat([net.fc(x), x], 1)), ("fc", "norm")),
        (lambda net, x: F.pad(net.fc(x), (0, 4))[:, :8], ("fc",)),
        (lambda net, x: torch.stack([net.gc(x), x]).mean(0), ("gc",)),
    ],
    ids=["no rows", "no units", "a norm makes the rest", "cropped", "a mean with raw inputs"],
)
@pytest.mark.parametrize("batch", [3, 8])
def test_what_is_joined_may_leave_no_doubt(forward: Any, makers: Any, batch: int) -> None:
    net = nn.Module()
    net.fc, net.gc, net.norm = nn.Linear(4, 8), nn.Linear(4, 4), nn.LayerNorm(12)
    net.forward = lambda x: F.relu(forward(net, x))
    report = find_dead_units(net, [X[:batch]])
    assert report["relu"].made_by == makers
    assert not report.unjudged


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("spelled", ["matmul", "einsum"])
def test_gates_with_rows_of_their_own_make_units_of_each_row(rows: int, spelled: str) -> None:
    net = nn.Module()
    net.a, net.b, net.gates = nn.Linear(4, 5), nn.Linear(4, 5), nn.Parameter(torch.randn(rows, 2))

    def mixed(x: Tensor) -> Tensor:
        stack = torch.stack([net.a(x), net.b(x)], 1)
        return net.gates @ stack if spelled == "matmul" else torch.einsum(
            "ge,bed->bgd", net.gates, stack
        )  # fmt: skip

    net.forward = lambda x: F.relu(mixed(x))
    layer = find_dead_units(net, [X])["relu"]
    truth = (mixed(X) <= 0).double().mean(0).flatten()
    assert layer.zero_rate.tolist() == pytest.approx(truth.tolist())


class Branches(nn.Module):
    """Two of several layers, added up in one way or another."""

    def __init__(self, add: Callable[[Any, list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.add = add
        self.layers = nn.ModuleList(nn.Linear(4, 6) for _ in range(4))
        self.w, self.gates = nn.Parameter(torch.ones(6, 6)), nn.Parameter(torch.ones(2))
        nn.init.eye_(self.w)
        for number, layer in enumerate(self.layers):
            nn.init.ones_(layer.weight)
            nn.init.constant_(layer.bias[number // 2 : number // 2 + 2], -999.0)

    def forward(self, x: Tensor, first: int) -> Tensor:
        return F.relu(self.add(self, [self.layers[n](x) for n in (first, first + 1)]))


@pytest.mark.parametrize(
    "add",
    [
        lambda net, both: torch.addmm(both[0], both[1], net.w),
        lambda net, both: both[0].addmm(both[1], net.w),
        lambda net, both: torch.baddbmm(both[0][None], both[1][None], net.w[None])[0],
        lambda net, both: F.linear(both[1], net.w, both[0]),
        lambda net, both: torch.stack(both).sum(0),
        lambda net, both: torch.stack(both, -1).mean(-1),
        lambda net, both: torch.stack(both).max(0).values,
        lambda net, both: (net.gates[:, None, None] * torch.stack(both)).sum(0),
        lambda net, both: torch.einsum("e,ebo->bo", net.gates.softmax(0), torch.stack(both)),
        lambda net, both: (net.gates[None, None] @ torch.stack(both, 1)).squeeze(1),
        lambda net, both: torch.stack(both, -1) @ net.gates.softmax(0),
        lambda net, both: net.gates.softmax(0) @ torch.stack(both, 1),
        lambda net, both: torch.stack(both, -1) @ torch.ones(2),
    ],
    ids=[
        *("addmm", "method", "baddbmm", "bias", "stack", "last", "max", "gates", "einsum"),
        *("matmul", "by a vector", "vector by", "by constants"),
    ],
)
def test_what_is_summed_in_one_call_is_made_by_all_of_it(add: Any) -> None:
    net = Branches(add)
    truth = {}
    for first in (0, 2):
        output = net(X, first).reshape(-1, 6)
        truth[first] = (output == 0).all(0).nonzero().flatten().tolist()
    assert truth[0] != truth[2]
    report = find_dead_units(net, [(X, turn % 3 % 2 * 2) for turn in range(12)])
    assert not report.unjudged
    found = {layer.made_by: layer.dead.tolist() for layer in report.layers.values()}
    assert len(found) == 2
    for makers, dead in found.items():
        assert dead == truth[0 if "layers.0" in makers else 2]
        assert "layers.0" in makers or "layers.2" in makers


def test_a_sum_over_a_stack_of_what_was_mixed_before_is_mixed() -> None:
    net = nn.Module()
    net.a, net.b, net.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(x: Tensor) -> Tensor:
        halves = torch.cat([net.a(x[:4]), net.b(x[4:])])
        return F.relu(torch.stack([halves, net.c(x)]).sum(0))

    net.forward = forward
    assert "other weights than others" in find_dead_units(net, [X]).unjudged["relu"]


def test_units_that_are_summed_by_constants_are_one_unit() -> None:
    net = nn.Module()
    net.a = nn.Linear(4, 5)
    net.forward = lambda x: F.relu(net.a(x) @ torch.ones(5))
    layer = find_dead_units(net, [X])["relu"]
    assert layer.num_units == 1
    assert layer.zero_rate.tolist() == pytest.approx([(net(X) == 0).double().mean().item()])


def test_each_pair_of_an_outer_product_is_a_unit() -> None:
    net = nn.Module()
    net.a, net.b = nn.Linear(4, 3), nn.Linear(4, 5)
    net.forward = lambda x: F.relu(net.a(x)[:, :, None] * net.b(x)[:, None, :])
    layer = find_dead_units(net, [X])["relu"]
    pairs = (net(X) == 0).double().mean(0).flatten()
    assert layer.num_units == 15
    assert layer.zero_rate.tolist() == pytest.approx(pairs.tolist())
