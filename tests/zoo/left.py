"""Weights that are left, being frozen, tied or shared: what else makes a unit may revive it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import FAR, case, kill
from tests.zoo.parts import Net, conv, raw, vectors


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


class StillNorm(nn.BatchNorm2d):
    """A BatchNorm as in fine-tuning: frozen, in eval mode whatever the model is in."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


# --- a norm behind weights that stay ----------------------------------------------------------


@case("frozen convolution before a BatchNorm", accepted={"2": [3]}, refused={"2": [1]})
def frozen_before_norm() -> nn.Module:
    net = nn.Sequential(frozen(conv(3, 8)), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4))
    kill(net[1], 1, 3)
    with torch.no_grad():
        net[0].weight[1] = 0.0  # whatever the norm does, it is a constant
    return net


@case("one convolution, two norms", accepted={"relu.bn1": [1], "relu.bn2": [1, 2]})
def norms_of_domains() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        one, other = F.relu(self.bn1(self.a(x))), F.relu(self.bn2(self.a(x.flip(3))))
        return self.b(one) + self.c(other)

    norms = {"bn1": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(8)}
    net = Net(forward, a=conv(3, 8), b=conv(8, 2), c=conv(8, 2), **norms)
    kill(net.bn1, 1)
    kill(net.bn2, 1, 2)
    return net


@case("tied convolutions, each with a norm", accepted={"relu.bn1": [1]})
def tied_before_norms() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.bn1(self.a(x)))) + self.d(F.relu(self.bn2(self.b(x.flip(3)))))

    norms = {"bn1": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(8)}
    layers = {"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 2), "d": conv(8, 2)}
    net = Net(forward, **layers, **norms)
    net.b.weight = net.a.weight
    kill(net.bn1, 1)
    return net


@case("frozen layer before a LayerNorm", accepted={"2": [1, 4]}, example=vectors)
def frozen_before_layer_norm() -> nn.Module:
    net = nn.Sequential(frozen(nn.Linear(12, 8)), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    kill(net[1], 1, 4)
    return net


# --- weights before a norm that stays ---------------------------------------------------------


@case("frozen scale and shift", accepted={"2": [1]}, refused={"2": [4]})
def frozen_affine() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4))
    frozen(net[1])
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[1].bias[1] = -0.5
    kill(net[1], 4)  # nothing before it gets above that: what is normalised is
    return net


@case("frozen norm in eval mode, a bias before", accepted={"2": [1, 4]})
def still_norm_after_bias() -> nn.Module:
    net = nn.Sequential(conv(3, 8), StillNorm(8), nn.ReLU(), conv(8, 4))
    with torch.no_grad():
        net[1].running_var[1] = 0.25
        net[1].weight[1] = -2.0
    kill(net[1], 1, 4)
    return net


@case("frozen norm in eval mode, no bias", accepted={"2": [1]}, refused={"2": [4]})
def still_norm() -> nn.Module:
    net = nn.Sequential(conv(3, 8, bias=False), StillNorm(8), nn.ReLU(), conv(8, 4))
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[1].bias[1] = -0.1
    kill(net[1], 4)
    return net


# --- a bias alone -----------------------------------------------------------------------------


@case("frozen weight, trained bias", accepted={"1": [4]}, refused={"1": [1]}, example=vectors)
def frozen_weight() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0].weight.requires_grad_(False)[1] = 0.0
    kill(net[0], 1, 4)
    return net


@case("one weight, two biases", accepted={"relu.one": [1, 2], "relu.other": [2]}, example=vectors)
def shared_weight() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        one = F.relu(F.linear(x, self.a, self.one))
        other = F.relu(x.flip(1) @ self.a.t() + self.other)
        return self.b(one) + self.c(other)

    net = Net(forward, a=raw(8, 12), b=nn.Linear(8, 2), c=nn.Linear(8, 2))
    net.one, net.other = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    kill(net.one, 1, 2)
    kill(net.other, 2)
    return net


# --- a branch beside --------------------------------------------------------------------------


@case(
    "a frozen branch beside",
    accepted={"relu.b": [1], "relu.c": [2]},
    refused={"relu.b": [4], "relu.c": [3]},
    example=vectors,
)
def frozen_branch() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        last = self.e(F.relu(self.a(x) + self.b(x.flip(1))))
        return last + self.f(F.relu(self.c(x) + self.d(x.flip(1))))

    trained = {name: nn.Linear(12, 8) for name in "ad"}
    branches = {name: frozen(nn.Linear(12, 8)) for name in "bc"}
    net = Net(forward, **trained, **branches, e=nn.Linear(8, 2), f=nn.Linear(8, 2))
    kill(net.a, 1)
    kill(net.d, 2)
    with torch.no_grad():  # nothing that is added to it gets above that
        net.b.bias[4] = net.c.bias[3] = FAR
    return net
