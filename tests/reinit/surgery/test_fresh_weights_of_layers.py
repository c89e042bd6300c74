"""Fresh weights are as large as the layer's were when training began, and their units fire."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits import ReinitConfig, reinit_dead_units
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.revive import record_both
from lightning_deadunits.reinit.surgery.initialisation import initial_scales
from tests.zoo import kill

KAIMING = 6**0.5
"""How much larger Kaiming's weights for ReLU are than those of `nn.Linear` and `nn.Conv2d`."""


def revived(net: nn.Module, x: Tensor, units: list[int], scales: dict[str, float]) -> Any:
    tapes = record_both(net, x)
    done = Event(net, tapes, OptimizerMemory(), ReinitConfig(), scales=scales)
    done.operate_({"1": units})
    assert done.report.reinitialised == {"1": units}
    return done


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (3.5, 3.5),
        (KAIMING, KAIMING),
        (1.1, KAIMING),
        (0.5, 0.5),
        (40.0, KAIMING),
        (0.01, KAIMING),
        (0.0, KAIMING),
    ],
    ids=["large", "kaiming", "as drawn", "small", "explosive", "vanishing", "zero"],
)
def test_fresh_weights_are_as_large_as_those_that_training_began_with_or_as_kaimings(
    factor: float, expected: float
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():
        net[0].weight.mul_(factor)
    scales = initial_scales(net.named_parameters())
    with torch.no_grad():
        net[0].weight.mul_(7.0)  # as training may
        net[0].weight[:20] = 0.0
    kill(net[0], *range(20))
    revived(net, torch.randn(8, 400), list(range(20)), scales)
    size = float(net[0].weight[:20].detach().pow(2).mean().sqrt())
    # `reset_parameters` draws evenly from +- 1 / 20, whose root mean square is 3**-0.5 of that.
    assert size == pytest.approx(expected * 3**-0.5 / 20, rel=0.02)


def test_scales_are_those_of_every_weight_that_is_no_vector() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 6), nn.LazyLinear(2))
    sparse = nn.Parameter(torch.eye(3).to_sparse())
    scales = initial_scales([*net.named_parameters(), ("sparse", sparse)])
    assert scales.keys() == {"0.weight", "2.weight"}
    expected = float((net[0].weight.detach().double() ** 2).mean() ** 0.5)
    assert scales["0.weight"] == pytest.approx(expected, rel=1e-6)


def test_fresh_weights_of_a_small_convolution_are_as_large_as_kaimings() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 2, 3))
    kill(net[0], *range(16))
    revived(net, torch.randn(8, 16, 8, 8), list(range(16)), {})
    size = float(net[0].weight[:16].detach().pow(2).mean().sqrt())
    assert size == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.05)


NETS = {
    "linear": (nn.Linear(12, 8), nn.Linear(8, 3), (9, 12)),
    "convolution": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3), (9, 3, 8, 8)),
    "tokens": (nn.Linear(12, 8), nn.Linear(8, 3), (3, 7, 12)),
}


@pytest.mark.parametrize("name", NETS)
def test_half_of_the_example_makes_a_fresh_unit_fire(name: str) -> None:
    torch.manual_seed(0)
    maker, reader, shape = NETS[name]
    net, x = nn.Sequential(maker, nn.ReLU(), reader), torch.randn(shape) * 3 + 5
    kill(maker, 2, 5)
    reinit_dead_units(net, {"1": [2, 5]}, x)
    hidden = net[:2](x)
    rates = (hidden.flatten(2).transpose(1, 2) if name == "convolution" else hidden)[..., [2, 5]]
    share = (rates > 0).flatten(0, -2).double().mean(0)
    assert bool(((share - 0.5).abs() < 0.1).all()), share


def test_what_sees_a_constant_keeps_the_bias_that_was_drawn() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].bias.fill_(-100.0)  # so that the second layer sees its biases only
    kill(net[2], 1)
    x = torch.randn(8, 4)
    report = reinit_dead_units(net, {"3": [1]}, x)
    assert report.reinitialised == {"3": [1]}
    assert bool((net[:4](x)[:, 1] > 0).all())


def test_rows_that_were_zero_when_training_began_do_not_make_fresh_weights_small() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():
        net[0].weight[:56] = 0.0
        net[0].bias[:56] = -0.1
    scales = initial_scales(net.named_parameters())
    revived(net, torch.randn(8, 400), list(range(56)), scales)
    size = float(net[0].weight[:56].detach().pow(2).mean().sqrt())
    assert size == pytest.approx((2 / 400) ** 0.5, rel=0.02)  # Kaiming's, as for whole layers
