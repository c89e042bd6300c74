"""Convolutions: plain, grouped, transposed, and channels that move."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, conv


@case("conv-BN-ReLU, in place", accepted={"2": [1, 4], "5": [0]})
def conv_bn_relu() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(conv(8, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 4)),
    )
    kill(net[1], 1, 4)
    kill(net[4], 0)
    return net


@case("ReLU between conv and BN", accepted={"1": [1, 4]})
def conv_relu_bn() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.BatchNorm2d(8), conv(8, 8), nn.ReLU(), conv(8, 2))
    kill(net[0], 1, 4)
    return net


@case(
    "conv1d and transposed conv",
    accepted={"1": [0], "3": [4, 5]},
    example=lambda: torch.randn(8, 3, 16),
)
def conv1d_transposed() -> nn.Module:
    net = nn.Sequential(
        *(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 8, 3, groups=2), nn.ReLU()),
        nn.ConvTranspose1d(8, 2, 3, groups=2),
    )
    kill(net[0], 0)
    kill(net[2], 4, 5)
    return net


@case("channels last", accepted={"1": [1, 4]}, example=lambda: torch.randn(8, 3, 8, 8))
def channels_last() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4), nn.ReLU(), conv(4, 2))
    kill(net[0], 1, 4)
    return net.to(memory_format=torch.channels_last)


@case("grouped", accepted={"1": [0, 5], "3": [2, 11]})
def grouped() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 8), nn.ReLU(), conv(8, 12, groups=4), nn.ReLU(), conv(12, 6, groups=3)),
    )
    kill(net[0], 0, 5)
    kill(net[2], 2, 11)
    return net


@case("depthwise, both sides dead", accepted={"2": [1, 4], "5": [1, 6]})
def depthwise() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(conv(8, 8, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(conv(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
    )
    kill(net[1], 1, 4)
    kill(net[4], 1, 6)
    return net


@case("channel shuffle", accepted={"relu.bn": [1, 6], "relu.b": [3]})
def channel_shuffle() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.chunk(2, 1)
        return self.c(torch.cat([left, F.relu(self.b(right))], 1))

    net = Net(forward, a=conv(3, 8), bn=nn.BatchNorm2d(8), b=conv(4, 4), c=conv(8, 2))
    kill(net.bn, 1, 6)
    kill(net.b, 3)
    return net


@case("shuffled before the ReLU", accepted={"2": [1, 6]})
def shuffled_before() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.ChannelShuffle(4), nn.ReLU(), conv(8, 2))
    order = nn.ChannelShuffle(4)(torch.arange(8.0).view(1, 8, 1, 1)).flatten().long()
    kill(net[0], int(order[1]), int(order[6]))
    return net


@case("pixel shuffle, group dead", accepted={"1": [4, 5, 6, 7]}, refused={"1": [0, 9]})
def pixel_shuffle() -> nn.Module:
    net = nn.Sequential(conv(3, 12), nn.ReLU(), nn.PixelShuffle(2), conv(3, 2))
    kill(net[0], 0, 4, 5, 6, 7, 9)
    return net


@case("pixel shuffle before the ReLU", accepted={"2": [1]})
def pixel_shuffle_before() -> nn.Module:
    net = nn.Sequential(conv(3, 12), nn.PixelShuffle(2), nn.ReLU(), conv(3, 2))
    kill(net[0], 4, 5, 6, 7)
    return net


@case("space to depth by slices", accepted={"relu": [0, 2]})
def space_to_depth() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.b(torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1))

    net = Net(forward, a=conv(3, 4), b=conv(16, 2))
    kill(net.a, 0, 2)
    return net


@case("patches unfolded", accepted={"relu": [1]})
def unfolded() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.unfold(F.relu(self.a(x)), 3, padding=1).transpose(1, 2))

    net = Net(forward, a=conv(3, 4), b=nn.Linear(36, 3))
    kill(net.a, 1)
    return net
