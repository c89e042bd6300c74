"""Traps that were found by attack; each was once a wrong count or a crash."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits import DeadUnitCallback, find_dead_units
from lightning_deadunits.observation.identity import read_key
from lightning_deadunits.observation.observer import Observer
from tests.modules import Lit, loader


class By(nn.Module):
    """A network whose forward is a function of its layers."""

    def __init__(self, forward: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        self.by = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Tensor:
        return self.by(self, *inputs)


W = nn.Parameter(torch.randn(6, 3))
LINEAR, CONV = nn.Linear(3, 6), nn.Conv1d(3, 6, 1)
TOKENS, SIGNAL = (torch.randn(2, 5, 3),), (torch.randn(2, 3, 9),)
AXES: dict[str, tuple[By, tuple[Tensor, ...], int]] = {
    "a graph's neighbours mix nodes, not features": (
        By(lambda m, x, a: F.relu(a @ m.layer(x)), layer=LINEAR),
        (*TOKENS, torch.rand(2, 5, 5)), 2,
    ),
    "a learned adjacency": (
        By(lambda m, x: F.relu(m.a @ m.layer(x)), layer=LINEAR, a=nn.Parameter(torch.rand(5, 5))),
        TOKENS, 2,
    ),
    "einsum with the weight first": (
        By(lambda m, x: F.relu(torch.einsum("oc,nct->not", m.w, x)), w=W), SIGNAL, 1,
    ),
    "unsqueeze in place": (
        By(lambda m, x: F.relu(m.layer(x).unsqueeze_(1)), layer=LINEAR), TOKENS, 3,
    ),
    "swapaxes in place": (
        By(lambda m, x: F.relu(m.layer(x).swapaxes_(1, 2)), layer=CONV), SIGNAL, 2,
    ),
    "windows": (By(lambda m, x: F.relu(m.layer(x).unfold(2, 3, 1)), layer=CONV), SIGNAL, 1),
    "a gate before what it gates": (
        By(lambda m, x: F.relu(m.gate(m.layer(x)) * m.layer(x)), layer=CONV,
           gate=nn.Conv1d(6, 1, 1)),
        SIGNAL, 1,
    ),
    "concatenate": (
        By(lambda m, x: F.relu(torch.concatenate([m.layer(x), m.layer(x)], 2)), layer=CONV),
        SIGNAL, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("net", "batch", "unit_dim"), AXES.values(), ids=AXES)
def test_units_are_on_the_axis_of_the_features(
    net: By, batch: tuple[Tensor, ...], unit_dim: int
) -> None:
    layer = find_dead_units(net, [batch]).layers["relu"]
    assert (layer.unit_dim, layer.num_units, layer.axis_assumed) == (unit_dim, 6, False)


def test_names_that_differ_in_what_a_tag_cannot_hold_stay_apart() -> None:
    net = nn.Module()
    net.paths = nn.ModuleDict(
        {name: nn.Sequential(nn.Linear(4, 6), nn.ReLU()) for name in ("a b", "a_b")}
    )
    nn.init.constant_(net.paths["a b"][0].bias, -99.0)
    net.forward = lambda x: net.paths["a b"](x) + net.paths["a_b"](x)  # type: ignore[method-assign]
    fractions = [
        layer.dead_fraction for layer in find_dead_units(net, [torch.randn(8, 4)]).layers.values()
    ]
    assert len(fractions) == 2
    assert fractions[0] == 1.0 > fractions[1]


def test_a_module_named_like_a_later_call_hides_none() -> None:
    net = By(lambda m, x: m.r(m.a(x)) + m.r(m.a(x) - 99) + getattr(m, "r-2")(m.a(x) + 99))
    net.a, net.r = nn.Linear(4, 6), nn.ReLU()
    net.add_module("r-2", nn.ReLU())
    layers = find_dead_units(net, [torch.randn(8, 4)]).layers.values()
    assert [layer.wholly_dead for layer in layers] == [False, True, False]


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
        return v, None


class Encoder(nn.TransformerEncoderLayer):
    def forward(self, x: Tensor, scale: float, causal: bool) -> Tensor:  # type: ignore[override]
        return self._ff_block(self.self_attn(x, x, x)[0] * scale)


def test_a_transformer_layer_may_take_other_arguments_and_attend_in_its_own_way() -> None:
    layer = Encoder(8, 2, 16, batch_first=True)
    layer.self_attn = Attention()  # type: ignore[assignment]
    report = find_dead_units(layer, [(torch.randn(2, 5, 8), 1.0, True)])
    assert report.layers["relu"].num_units == 16


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (lambda a, b: F.silu(a) * b)(*m.layer(x).chunk(2, -1)),
        lambda m, x: F.relu(m.layer(x) / m.layer(x).norm("fro")),
        lambda m, x: F.relu(m.layer(x)).sum().sum(0),
    ],
    ids=["gated by chunks", "a norm by name", "a sum of a scalar"],
)
def test_a_compiled_model_is_traced_whatever_it_calls(forward: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    net, batch = By(forward, layer=nn.Linear(4, 6)), torch.randn(3, 4)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    compiled(batch)
    eager, measured = (find_dead_units(m, [batch]).layers for m in (net, compiled))
    assert eager
    assert list(measured) == list(eager)
    for name, layer in eager.items():
        assert torch.equal(measured[name].zeros, layer.zeros)


def test_a_graph_break_at_an_lstm_does_no_harm() -> None:
    torch._dynamo.reset()
    net = By(lambda m, x: F.relu(m.lstm(x)[0]), lstm=nn.LSTM(4, 6, batch_first=True))
    batch = torch.randn(2, 5, 4)
    compiled = torch.compile(net, backend="eager")
    compiled(batch)
    eager, measured = (find_dead_units(m, [batch]).layers["relu"] for m in (net, compiled))
    assert torch.equal(measured.zeros, eager.zeros)
    assert measured.unit_dim == eager.unit_dim == 2


def test_a_strided_nested_tensor_into_a_relu_does_no_harm() -> None:
    net = By(lambda m, x: m.layer(F.relu(x)), layer=nn.Linear(4, 6))
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    report = find_dead_units(net, [nested])
    assert {"relu"} == {*report.layers, *report.unjudged}


class Saving(Lit):
    def on_validation_epoch_end(self) -> None:
        self.saved = pickle.dumps(self.net)


class Sparing(Lit):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("module", [Saving, Sparing])
def test_a_module_that_saves_itself_or_spares_the_sanity_check_trains(
    make_trainer: Callable[..., pl.Trainer], module: type[Lit]
) -> None:
    callback = DeadUnitCallback()
    make_trainer(callbacks=[callback]).fit(module(), loader(), loader())
    assert list(callback.report.layers) == ["net.act", "net.relu"]


def test_a_network_that_grows_between_validations_has_the_names_of_its_present_shape() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    model = nn.ModuleDict({"net": net})
    observer = Observer(model)
    with observer.watching(), observer.one_pass():
        model["net"](torch.randn(4, 3))
    old = net[1]
    model["net"] = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), *net)
    observer.reset()
    with observer.watching(), observer.one_pass():
        model["net"](torch.randn(4, 3))
    widths = {read_key(key).base: own.zeros.numel() for key, own in observer.counts.items()}
    assert widths == {"net.1": 3, "net.3": 6}
    assert observer.unseen() == {}
    model["net"] = nn.Sequential(net[0], nn.GELU(), net[2])
    observer.reset()
    with observer.watching(), observer.one_pass():
        model["net"](torch.randn(4, 3))
        assert not old._forward_hooks
    assert [read_key(key).base for key in observer.counts] == ["net.1"]
    assert observer.unseen() == {}


def test_parameters_can_be_swapped_afterwards() -> None:
    """As `Module.to` does for tensor subclasses: what is referred to weakly cannot be."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    find_dead_units(model, [torch.randn(2, 4)])
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert next(model.parameters()).dtype == torch.float64


class Written(nn.Module):
    """What a module of a user's own computes of each value."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.shift = function, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x + self.shift)


@pytest.mark.parametrize(
    ("function", "counts"),
    [
        (torch.sigmoid, False),
        (torch.exp, False),
        (lambda x: x.sigmoid().square(), False),
        (lambda x: (1 + x.exp()).log(), True),
        (lambda x: x * x.sigmoid(), True),
        (lambda x: (x * x.sigmoid()).square(), True),
        (lambda x: (x / 6 + 0.5).clamp(0, 1), True),
    ],
    ids=["sigmoid", "exp", "its square", "softplus", "swish", "squared", "hard sigmoid"],
)
def test_a_sigmoid_written_by_hand_is_no_activation_that_rests_at_zero(
    function: Any, counts: bool
) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), Written(function))
    assert ("3" in find_dead_units(net, [torch.randn(8, 4)]).layers) == counts
