"""Norms before a unit and after it, those that are written by hand included."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, conv, raw, vectors


@case("GroupNorm before the ReLU", accepted={"2": [1, 6]})
def group_norm_before() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 4))
    kill(net[1], 1, 6)
    return net


@case("LayerNorm before the ReLU", accepted={"2": [1, 6]}, example=vectors)
def layer_norm_before() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4))
    kill(net[1], 1, 6)
    return net


@case("InstanceNorm before the ReLU", accepted={"2": [1, 6]})
def instance_norm_before() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), conv(8, 4))
    kill(net[1], 1, 6)
    return net


@case("InstanceNorm with running statistics", accepted={"2": [1, 6]})
def instance_norm_before_that_tracks() -> nn.Module:
    net = nn.Sequential(
        conv(3, 8),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.ReLU(),
        conv(8, 4),
    )
    kill(net[1], 1, 6)
    return net


@case("norm without weights of its own", accepted={"2": [1]})
def no_affine() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU(), conv(8, 2))
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[0].bias[1] = 0.0
    return net


@case("always below zero after a LayerNorm", accepted={"2": [0]}, example=vectors)
def below_zero() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    kill(net[0], 0)
    return net


@case("LayerNorm written by hand, before the ReLU", accepted={"relu": [1, 4]}, example=vectors)
def norm_by_hand() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        hidden = hidden - hidden.mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.b(F.relu(hidden * self.scale + self.shift))

    ones, zeros = (nn.Parameter(make(8)) for make in (torch.ones, torch.zeros))
    net = Net(forward, a=nn.Linear(12, 8), scale=ones, shift=zeros, b=nn.Linear(8, 3))
    kill(net.shift, 1)
    kill(net.a, 4)
    return net


@case("BatchNorm written by hand", accepted={"2": [1, 3], "4": [2]})
def batch_norm_by_hand() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True) if self.training else self.mean
        centred = x - mean
        spread = centred.pow(2).mean((0, 2, 3), keepdim=True) if self.training else self.variance
        return centred * torch.rsqrt(spread + 1e-5) * self.scale + self.shift

    norm = Net(forward)
    for name, value in (("mean", 0.0), ("variance", 1.0)):
        norm.register_buffer(name, torch.full((1, 8, 1, 1), value))
    norm.scale = nn.Parameter(torch.ones(8, 1, 1))
    norm.shift = nn.Parameter(torch.zeros(8, 1, 1))
    net = nn.Sequential(conv(3, 8), norm, nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2))
    kill(norm.shift, 1, 3)
    kill(net[3], 2)
    return net


@case("LayerNorm after the ReLU", refused={"1": [1, 6]}, example=vectors)
def layer_norm_after() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4))
    kill(net[0], 1, 6)
    return net


@case("softmax after the ReLU", refused={"1": [1]}, example=vectors)
def softmax_after() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Softmax(-1), nn.Linear(8, 4))
    kill(net[0], 1)
    return net


@case("norm without weights after the ReLU", accepted={"1": [1, 5]})
def plain_norm_after() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.InstanceNorm2d(8), conv(8, 4))
    kill(net[0], 1, 5)
    return net


@case("GroupNorm of single channels after the ReLU", accepted={"1": [1, 5]})
def single_groups_after() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.GroupNorm(8, 8), conv(8, 4))
    kill(net[0], 1, 5)
    return net


@case("a factor per channel before a LayerNorm", accepted={"relu": [1, 6]}, example=vectors)
def factor_before_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.norm(F.relu(self.a(x)) * self.factor))

    net = Net(forward, a=nn.Linear(12, 8), factor=raw(8), norm=nn.LayerNorm(8), b=nn.Linear(8, 3))
    kill(net.a, 1, 6)
    return net
