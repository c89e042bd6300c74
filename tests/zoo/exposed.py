"""Units that the output shows without a layer in between."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, vectors


@case("the output reads it", refused={"1": [0]}, example=vectors)
def output() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 4), nn.ReLU())
    kill(net[0], 0)
    return net


@case("a feature is returned beside the logits", refused={"relu": [2]}, example=vectors)
def returned() -> nn.Module:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.a(x))
        return self.b(hidden), hidden

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 3))
    kill(net.a, 2)
    return net


@case("a penalty that is a number", refused={"relu": [1]}, example=vectors)
def penalty() -> nn.Module:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.a(x))
        return self.b(hidden), hidden.abs().mean()

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("pre-activation read elsewhere", refused={"relu": [2]}, example=vectors)
def read_before() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(F.relu(hidden)) + self.c(hidden)

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 3), c=nn.Linear(6, 3))
    kill(net.a, 2)
    return net
