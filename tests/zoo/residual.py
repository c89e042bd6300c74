"""Streams that others add to."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, conv, vectors


class Basic(nn.Module):
    """The basic block of ResNet, one ReLU module for both."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        other = (conv(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        self.downsample = nn.Sequential(*other) if stride > 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + identity)


class ResNet(nn.Module):
    """ResNet-18, or narrower."""

    def __init__(self, width: int = 8, blocks: int = 1, stages: int = 2) -> None:
        super().__init__()
        self.conv1 = conv(3, width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        layers: list[nn.Module] = []
        inputs = width
        for stage in range(stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(Basic(inputs, width << stage, stride))
                inputs = width << stage
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


@case(
    "residual",
    accepted={"layers.0.relu.bn1": [1, 5], "layers.1.relu.bn1": [0, 9], "layers.1.relu.bn2": [3]},
    refused={"relu": [2]},
)
def residual() -> nn.Module:
    net = ResNet()
    kill(net.bn1, 2)
    kill(net.layers[0].bn1, 1, 5)
    kill(net.layers[1].bn1, 0, 9)
    kill(net.layers[1].bn2, 3)
    return net


@case("inner bottleneck", accepted={"relu.bn1": [1], "relu.bn2": [0, 3]}, refused={"relu.bn3": [4]})
def bottleneck() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = F.relu(self.bn3(self.conv3(y)) + x)
        return self.conv5(self.conv4(y) + y)

    net = Net(
        forward,
        stem=conv(3, 8),
        conv1=conv(8, 4, 1),
        bn1=nn.BatchNorm2d(4),
        conv2=conv(4, 4),
        bn2=nn.BatchNorm2d(4),
        conv3=conv(4, 8, 1),
        bn3=nn.BatchNorm2d(8),
        conv4=conv(8, 8),
        conv5=conv(8, 3),
    )
    kill(net.bn1, 1)
    kill(net.bn2, 0, 3)
    kill(net.bn3, 4)
    return net


@case("pre-activation residual", accepted={"b.relu.bn1": [3], "b.relu.bn2": [1], "relu": [2]})
def preactivation() -> nn.Module:
    def block(self: Any, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.b(self.stem(x)))).mean((2, 3)))

    b = Net(block, bn1=nn.BatchNorm2d(8), conv1=conv(8, 8), bn2=nn.BatchNorm2d(8), conv2=conv(8, 8))
    net = Net(forward, stem=conv(3, 8), b=b, bn=nn.BatchNorm2d(8), head=nn.Linear(8, 2))
    kill(b.bn1, 3)
    kill(b.bn2, 1)
    kill(net.bn, 2)
    return net


@case(
    "split and chained",
    accepted={"relu.a": [1, 9], "relu.chain.0": [1], "relu.chain.2": [3]},
    refused={"relu.chain.1": [2]},
)
def res2net() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        parts = F.relu(self.a(x)).split(4, 1)
        found = [parts[0]]
        for number, layer in enumerate(self.chain):
            last = parts[number + 1] if number == 0 else found[-1] + parts[number + 1]
            found.append(F.relu(layer(last)))
        return self.b(torch.cat(found, 1))

    chain = nn.ModuleList(conv(4, 4) for _ in range(3))
    net = Net(forward, a=conv(3, 16), chain=chain, b=conv(16, 2))
    kill(net.a, 1, 9)
    for layer, unit in zip(chain, (1, 2, 3), strict=True):
        kill(layer, unit)
    return net


@case("two branches summed", accepted={"relu": [1, 2]}, example=vectors)
def summed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) + self.b(x.flip(1))))

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(12, 6), c=nn.Linear(6, 2))
    kill(net.a, 1, 2)
    return net


@case("summed with permuted channels", accepted={"relu": [1, 5]}, example=vectors)
def permuted_sum() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) + self.b(x).flip(1)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(12, 8), c=nn.Linear(8, 2))
    kill(net.a, 1, 5)
    return net


@case("sparse skip from the input", refused={"relu": [2]}, example=lambda: torch.eye(12)[:8])
def sparse_skip() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)) + x.flip(1)[:, :4])

    net = Net(forward, a=nn.Linear(12, 4), b=nn.Linear(4, 2))
    kill(net.a, 2)
    return net


@case("highway", refused={"relu": [1]}, example=vectors)
def highway() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return self.b(gate * F.relu(self.a(x)) + (1 - gate) * x)

    net = Net(forward, a=nn.Linear(12, 12), gate=nn.Linear(12, 12), b=nn.Linear(12, 2))
    kill(net.a, 1)
    return net
