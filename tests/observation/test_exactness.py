"""Counts are exact: equal to brute force on every trap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_deadunits import DeadUnitsReport, find_dead_units
from tests.nets import CASES, Case, SquaredReLU, Tape
from tests.observation.kinds import TopK
from tests.reference import zeros_by_loops


def expected(tape: Tape) -> dict[str, tuple[torch.Tensor, int, int]]:
    """Sum the tape: zeros, observations and unit axis by name."""
    sums: dict[str, tuple[torch.Tensor, int, int]] = {}
    for name, activation, unit_dim in tape:
        zeros = zeros_by_loops(activation, unit_dim)
        seen = activation.numel() // activation.shape[unit_dim]
        before = sums.get(name, (torch.zeros_like(zeros), 0, unit_dim))
        sums[name] = (before[0] + zeros, before[1] + seen, unit_dim)
    return sums


def assert_equals_tape(report: DeadUnitsReport, tape: Tape) -> None:
    truth = expected(tape)
    assert list(report.layers) == list(truth)
    for name, (zeros, seen, unit_dim) in truth.items():
        layer = report.layers[name]
        assert torch.equal(layer.zeros, zeros), name
        assert (layer.observations, layer.unit_dim) == (seen, unit_dim), name
        assert layer.zeros.dtype == torch.int64
        assert layer.zero_rate.dtype == torch.float64
        assert torch.equal(layer.zero_rate, zeros.double() / seen)
        assert not layer.axis_assumed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_match_brute_force(case: Case) -> None:
    net, batches = case.build()
    report = find_dead_units(net, batches)
    assert_equals_tape(report, net.tape)
    assert report.unjudged == {}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_memory_layout_does_not_matter(case: Case, layout: str) -> None:
    net, batches = case.build()
    for index, batch in enumerate(batches):
        if layout == "channels_last" and batch.ndim == 4:
            net.to(memory_format=torch.channels_last)
            batches[index] = batch.to(memory_format=torch.channels_last)
        elif layout == "strided":
            batches[index] = torch.stack([batch, batch], -1)[..., 0]
        elif layout == "expanded":
            batches[index] = batch[:1].expand(batch.shape)
    assert_equals_tape(find_dead_units(net, batches), net.tape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_precision_does_not_matter(case: Case, dtype: torch.dtype) -> None:
    net, batches = case.build()
    net.to(dtype)
    assert_equals_tape(find_dead_units(net, [batch.to(dtype) for batch in batches]), net.tape)


def test_a_unit_that_fires_on_one_early_sample_is_alive() -> None:
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    nn.init.constant_(net[0].weight, 1.0)
    batches = [torch.full((4, 1), -1.0) for _ in range(9)]
    batches[0][0] = 1.0
    report = find_dead_units(net, batches)
    assert report.layers["1"].zeros.tolist() == [35, 35]
    assert report.layers["1"].observations == 36
    assert report.dead_fraction == 0.0


def test_sparse_is_not_dead() -> None:
    net = nn.Sequential(nn.Linear(48, 48, bias=False), nn.ReLU())
    nn.init.eye_(net[0].weight)
    report = find_dead_units(net, [torch.eye(48)])
    assert report.layers["1"].mean_zero_rate == pytest.approx(47 / 48)
    assert report.layers["1"].dead.tolist() == []


def test_non_finite_values_are_neither_zero_nor_firing_and_are_told() -> None:
    net = nn.Sequential(nn.Identity(), nn.Linear(3, 3, bias=False), nn.ReLU())
    nn.init.eye_(net[1].weight)
    batch = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])
    nan = torch.nan
    # A NaN anywhere in a row makes all its products NaN.
    with pytest.warns(UserWarning, match="3 of its values are NaN or infinite"):
        report = find_dead_units(net, [batch, torch.tensor([[nan, 0.0, 0.0]])])
    layer = report.layers["2"]
    assert layer.zeros.tolist() == [1, 2, 1]
    assert (layer.nonfinite, layer.observations) == (3, 3)


def test_smooth_activations_have_a_small_magnitude_of_their_own() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.SiLU())
    nn.init.constant_(net[0].bias[:2], -40.0)
    with torch.no_grad():
        net[0].bias[:2] = -40.0
        net[2].bias[0] = -60.0
    report = find_dead_units(net, [torch.randn(16, 4)])
    assert report.layers["1"].dead.tolist() == [0, 1]
    assert report.layers["3"].dead.tolist() == [0]
    assert report.layers["1"].atol == 1e-3


def test_what_is_never_zero_is_tracked_only_by_name_and_with_an_atol() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU())
    batch = torch.randn(8, 4)
    assert list(find_dead_units(net, [batch]).layers) == ["3"]
    assert list(find_dead_units(net, [batch], layers="1", atol=0.1).layers) == ["1"]
    with pytest.raises(ValueError, match="Expected an `atol` for '1'"):
        find_dead_units(net, [batch], layers="1")


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def test_any_module_is_tracked_by_its_full_name() -> None:
    net = nn.ModuleDict({"glu": SwiGLU()})
    net.forward = lambda x: net["glu"](x)  # type: ignore[method-assign]
    nn.init.zeros_(net["glu"].down.weight[1])
    with torch.no_grad():
        net["glu"].down.weight[1] = 0
        net["glu"].down.bias[1] = 0
    report = find_dead_units(net, [torch.randn(3, 5, 4)], layers="glu")
    assert report.layers["glu"].dead.tolist() == [1]
    assert report.layers["glu"].unit_dim == 2
    assert list(find_dead_units(net, [torch.randn(3, 5, 4)]).layers) == ["glu.silu"]


def test_a_squared_relu_by_wildcard() -> None:
    net = nn.Sequential(nn.Linear(3, 4), SquaredReLU())
    assert list(find_dead_units(net, [torch.randn(5, 3)], layers="*").layers) == ["1"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_does_not_count_in_a_transformer_encoder(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, activation="relu")
    encoder = nn.TransformerEncoder(layer, 2).eval()
    tokens = torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] + [True] * 4])
    taken: list[torch.Tensor] = []
    handles = [
        block.linear2.register_forward_pre_hook(lambda _, args: taken.append(args[0].clone()))
        for block in encoder.layers
    ]
    given = tokens if batch_first else tokens.transpose(0, 1)
    report = find_dead_units(encoder, [{"src": given, "src_key_padding_mask": padding}])
    for handle in handles:
        handle.remove()
    assert list(report.layers) == ["layers.0.relu", "layers.1.relu"]
    for measured, activation in zip(report.layers.values(), taken, strict=True):
        by_batch = activation if batch_first else activation.transpose(0, 1)
        real = by_batch[~padding]
        assert measured.observations == 9
        assert torch.equal(measured.zeros, zeros_by_loops(real, 1))


def test_jagged_activations_are_counted() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).eval()
    parts = [torch.randn(3, 4), torch.randn(5, 4)]
    jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    report = find_dead_units(net, [jagged])
    truth = zeros_by_loops(torch.cat([net(part) for part in parts]), 1)
    assert torch.equal(report.layers["1"].zeros, truth)
    assert report.layers["1"].observations == 8


def test_a_changing_number_of_units_is_told_not_guessed() -> None:
    class Growing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu(nn.functional.linear(x, torch.ones(x.shape[1], x.shape[1])))

    with pytest.warns(UserWarning, match="its number of units changes"):
        report = find_dead_units(Growing(), [torch.randn(2, 3), torch.randn(2, 4)])
    assert report.layers == {}
    assert "relu" in report.unjudged


def test_a_layer_that_never_ran_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    net.unused = nn.ReLU()  # type: ignore[assignment]
    net.forward = lambda x: net[1](net[0](x))  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="unused: it did not run"):
        report = find_dead_units(net, [torch.randn(2, 3)])
    assert report.unjudged == {"unused": "it did not run"}


def test_only_empty_batches_give_a_rate_that_is_nan_and_a_warning() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.warns(UserWarning, match="1: it saw no value"):
        report = find_dead_units(net, [torch.randn(0, 3)])
    assert report.layers["1"].zero_rate.isnan().all()
    assert report.layers["1"].dead.tolist() == []


def test_losses_and_boxes_are_not_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
            hidden = nn.functional.relu(self.fc(x))
            margin = nn.functional.relu(hidden.sum(1) - 1)
            return margin.sum() + boxes.clamp(min=0).sum()

    batch = (torch.randn(5, 3), torch.randn(2, 4))
    assert list(find_dead_units(Net(), [batch]).layers) == ["relu"]


@pytest.mark.parametrize("k", [1, 5, 7, 25, 300])
@pytest.mark.parametrize("then", [None, nn.ReLU()], ids=str)
def test_however_many_values_a_module_keeps_its_output_is_the_layer(
    k: int, then: nn.Module | None
) -> None:
    net = nn.Sequential(nn.Linear(3, 400), TopK(k, then))
    x = torch.randn(7, 3)
    report = find_dead_units(net, [x])
    assert list(report.layers) == ["1"]
    assert torch.equal(report["1"].zeros, zeros_by_loops(net(x), 1))
    assert report["1"].made_by == ("0",)
    assert report.unjudged == {}


def test_an_activation_is_tried_without_the_hooks_of_its_parts() -> None:
    net = nn.Sequential(nn.Linear(3, 9), TopK(2, nn.ReLU()))
    seen: list[torch.Size] = []
    net[1].then.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    find_dead_units(net, [torch.randn(7, 3)])
    assert seen == [(7, 2)]


def test_what_an_activation_notes_for_itself_is_of_its_own_calls() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.seen = nn.ReLU(), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x.shape)
            return self.act(x)

    noting = Noting()
    find_dead_units(nn.Sequential(nn.Linear(3, 9), noting), [torch.randn(7, 3)])
    assert noting.seen == [(7, 9)]


class Bayesian(nn.Module):
    """Blundell et al., "Weight Uncertainty in Neural Networks", 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.rho = (nn.Parameter(torch.randn(6, 4)) for _ in range(2))
        self.scale, self.act = nn.Softplus(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = self.scale(self.rho) + nn.functional.softplus(self.rho)
        weight = self.mu + spread * torch.randn_like(self.mu)
        return self.act(nn.functional.linear(x, weight))


def test_activations_of_parameters_alone_are_no_layers() -> None:
    report = find_dead_units(Bayesian(), [torch.randn(9, 4)])
    assert {name: layer.made_by for name, layer in report.layers.items()} == {"act": ("mu", "rho")}
    assert report.unjudged == {}


@pytest.mark.parametrize("how", ["sum", "chosen"])
def test_parameters_into_which_data_flow_are_counted_with_a_doubt(how: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.randn(1, 5, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if how == "sum":
                return nn.functional.relu(x + self.places)
            return nn.functional.relu(self.places[:, (x[0, :, 0] > 0).long()])

    with pytest.warns(UserWarning, match="was assumed"):
        report = find_dead_units(Net(), [torch.randn(1, 5, 4)])
    assert report["relu"].axis_assumed


@pytest.mark.parametrize("features", [(9,), (5, 4)], ids=str)
def test_weights_that_are_the_same_along_an_axis_of_raw_inputs_leave_a_doubt(
    features: tuple[int, ...],
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu(x[..., None] * self.w)

    with pytest.warns(UserWarning, match="was assumed"):
        report = find_dead_units(Net(), [torch.randn(7, *features)])
    assert report["relu"].axis_assumed


class Scores(nn.Module):
    """Attention by ReLU: no unit is scored, but a pair of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.act = *(nn.Linear(4, 8) for _ in "qkv"), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.q(x) @ self.k(x).mT) @ self.v(x)


def test_an_activation_that_ran_on_no_layer_is_not_said_not_to_have_run() -> None:
    batch = torch.randn(3, 5, 4)
    with pytest.raises(ValueError, match=r"ran on something else .*: act\. Give its full name"):
        find_dead_units(Scores(), [batch])
    net = nn.Sequential(Scores(), nn.Linear(8, 4), nn.ReLU())
    with pytest.warns(UserWarning, match=r"0\.act: it ran on what is no layer's output"):
        assert list(find_dead_units(net, [batch]).layers) == ["2"]


def test_an_activation_that_ran_on_no_layer_is_counted_with_a_doubt_if_named() -> None:
    with pytest.warns(UserWarning, match="axis 2 was assumed"):
        report = find_dead_units(Scores(), [torch.randn(3, 5, 4)], layers="act")
    assert report["act"].observations == 15


MASKS: dict[str, Callable[[nn.ModuleDict, torch.Tensor], torch.Tensor]] = {
    "drawn": lambda net, h: torch.rand(h.shape) > 0.3,
    "drawn in their shape": lambda net, h: torch.rand_like(h) > 0.3,
    "of another layer": lambda net, h: net["other"](h.detach()) > 0,
    "of a part of a sum": lambda net, h: h - net["other"](h.detach()) > 0,
    "of tokens": lambda net, h: h.sum(-1, keepdim=True) > 0,
}


@pytest.mark.parametrize(
    ("mask", "in_place"),
    [
        *((mask, False) for mask in MASKS),
        ("of another layer", True),
        ("drawn in their shape", True),
    ],
)
def test_masks_that_are_not_made_by_the_units_themselves_are_no_activations(
    mask: str, in_place: bool
) -> None:
    net = nn.ModuleDict({"fc": nn.Linear(3, 4), "other": nn.Linear(4, 4), "act": nn.ReLU()})

    def forward(x: torch.Tensor) -> torch.Tensor:
        h = net["fc"](x)
        kept = MASKS[mask](net, h).to(h.dtype)
        return net["act"](h).mul_(kept) if in_place else net["act"](h) * kept

    net.forward = forward  # type: ignore[method-assign]
    report = find_dead_units(net, [torch.randn(5, 3)])
    assert list(report.layers) == ["act"]
    assert report.unjudged == {}


def test_exported_models_are_written_in_operators_and_seen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    net.append(nn.Hardtanh(0, 1))
    batch = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(net, (batch,)).module()
    truth = find_dead_units(net, [batch]).layers
    measured = find_dead_units(exported, [batch]).layers
    assert list(measured) == ["relu", "hardtanh"]
    for mine, its in zip(measured.values(), truth.values(), strict=True):
        assert torch.equal(mine.zeros, its.zeros)
        assert mine.unit_dim == its.unit_dim


def test_a_failure_of_ours_is_a_warning_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("lightning_deadunits.observation.observer.count_columns", broken)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.warns(UserWarning, match="(?s)Layer '1' cannot be observed.*in broken"):
        report = find_dead_units(net, [torch.randn(2, 3)])
    assert report.unjudged == {"1": "RuntimeError: unforeseen"}


def test_what_cannot_be_seen_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4, nonlinearity="relu")
            self.script = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.script(self.rnn(x)[0]))

    with pytest.warns(UserWarning, match="rnn: its hidden units are inside of a fused kernel"):
        report = find_dead_units(Net(), [torch.randn(5, 2, 3)])
    assert report.unjudged["script"] == "a ScriptModule runs outside of Python"
    assert list(report.layers) == ["act"]
