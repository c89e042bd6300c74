"""Weights that are frozen, tied or used more than once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, sequences, vectors


@case("tied weights", refused={"relu": [2]}, example=vectors)
def tied() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), self.a.weight.t())

    net = Net(forward, a=nn.Linear(12, 6))
    kill(net.a, 2)
    return net


@case("reused reader", refused={"relu": [2]}, example=vectors)
def reused() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))) + self.b(torch.tanh(self.c(x)))

    net = Net(forward, a=nn.Linear(12, 6), c=nn.Linear(12, 6), b=nn.Linear(6, 2))
    kill(net.a, 2)
    return net


@case("frozen reader", refused={"1": [2]}, example=vectors)
def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2).requires_grad_(False))
    kill(net[0], 2)
    return net


@case("twins that share an encoder", accepted={"a.1": [1]}, example=vectors)
def twins() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.cosine_similarity(self.a(x), self.a(x.flip(1)))

    net = Net(forward, a=nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)))
    kill(net.a[0], 1)
    return net


@case("LSTM reads it", refused={"relu": [2]}, example=sequences)
def lstm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(x)))[0])

    net = Net(forward, a=nn.Linear(12, 6), b=nn.LSTM(6, 4, batch_first=True), c=nn.Linear(4, 2))
    kill(net.a, 2)
    return net


@case("recurrent cell by hand", accepted={"relu": [1]}, example=sequences)
def recurrent() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            state = F.relu(self.a(x[:, t]) + self.b(state))
        return self.c(state)

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2))
    kill(net.a, 1)
    return net


@case("one activation, two calls", accepted={"relu": [1], "relu-2": [1]}, example=vectors)
def twice() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(F.relu(hidden)) + self.c(F.relu(hidden))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 2), c=nn.Linear(8, 2))
    kill(net.a, 1)
    return net
