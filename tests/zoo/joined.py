"""Branches that are concatenated, or meet at several scales."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, conv


@case("dense concat", accepted={"relu.bn1": [1], "relu.bn2": [5, 13], "relu.bn3": [2]})
def dense() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        return self.fc(F.relu(self.bn3(x)).mean((2, 3)))

    net = Net(
        forward,
        stem=conv(3, 8),
        bn1=nn.BatchNorm2d(8),
        conv1=conv(8, 6),
        bn2=nn.BatchNorm2d(14),
        conv2=conv(14, 6),
        bn3=nn.BatchNorm2d(20),
        fc=nn.Linear(20, 2),
    )
    kill(net.bn1, 1)
    kill(net.bn2, 5, 13)
    kill(net.bn3, 2)
    return net


@case("concat of activations", accepted={"relu.a": [1], "relu.b": [0, 3]})
def concat() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.a(x)), x, F.relu(self.b(x))], 1)
        return self.d(both) + self.c(both)

    net = Net(forward, a=conv(3, 4), b=conv(3, 5), c=conv(12, 2), d=conv(12, 2, 1))
    kill(net.a, 1)
    kill(net.b, 0, 3)
    return net


@case("U-Net skip", accepted={"relu.bn": [2], "relu.deep": [1, 7], "relu.up": [0]})
def unet() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        skip = F.relu(self.bn(self.down(x)))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        up = F.interpolate(deep, scale_factor=2, mode="bilinear")
        return self.out(F.relu(self.up(torch.cat([up, skip], 1))))

    net = Net(
        forward,
        down=conv(3, 6),
        bn=nn.BatchNorm2d(6),
        deep=conv(6, 8),
        up=conv(14, 4),
        out=conv(4, 2, 1),
    )
    kill(net.bn, 2)
    kill(net.deep, 1, 7)
    kill(net.up, 0)
    return net


@case("pyramid with lateral sums", accepted={"relu.a": [1], "relu.b": [2], "relu.out": [0]})
def pyramid() -> nn.Module:
    def forward(self: Any, x: Tensor) -> list[Tensor]:
        low = F.relu(self.a(x))
        high = F.relu(self.b(low))
        top = self.lateral_b(high)
        mid = self.lateral_a(low) + F.interpolate(top, size=low.shape[-2:], mode="nearest")
        return [self.head(F.relu(self.out(mid))), self.high(top)]

    net = Net(
        forward,
        a=conv(3, 4),
        b=conv(4, 6, stride=2),
        lateral_a=conv(4, 5, 1),
        lateral_b=conv(6, 5, 1),
        out=conv(5, 5),
        head=conv(5, 2),
        high=conv(5, 2),
    )
    kill(net.a, 1)
    kill(net.b, 2)
    kill(net.out, 0)
    return net


@case("values and their negatives", refused={"relu": [1]})
def both_signs() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(F.relu(torch.cat([hidden, -hidden], 1)))

    net = Net(forward, a=conv(3, 4), b=conv(8, 2))
    kill(net.a, 1)
    return net
