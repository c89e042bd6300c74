"""Networks of linear layers alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import FAR, case, kill
from tests.zoo.parts import Net, sequences, vectors


@case("mlp", accepted={"1": [0, 3], "3": [2, 5]}, example=vectors)
def mlp() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    kill(net[0], 0, 3)
    kill(net[2], 2, 5)
    return net


@case("every unit of a layer is dead", accepted={"1": list(range(6))}, example=vectors)
def wholly_dead() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    kill(net[0], *range(6))
    return net


@case(
    "functional, in place, result unused",
    accepted={"relu.a": [2], "relu.b": [0, 1]},
    example=vectors,
)
def functional() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.a(x)
        hidden.relu_()
        hidden = self.b(hidden)
        F.relu(hidden, inplace=True)
        return self.c(hidden)

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3))
    kill(net.a, 2)
    kill(net.b, 0, 1)
    return net


@case("GELU MLP", accepted={"1": [1, 7]}, example=sequences)
def gelu_mlp() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4))
    kill(net[0], 1, 7)
    return net


@case("GELU that is almost silent", refused={"1": [1]}, example=sequences)
def gelu_almost() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[0].bias[1] = -4.0
    return net


@case(
    "mapping example",
    accepted={"relu": [1]},
    example=lambda: {"tokens": torch.randint(0, 9, (8, 5)), "scale": torch.rand(8, 1, 1)},
)
def mapping() -> nn.Module:
    def forward(self: Any, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.b(F.relu(self.a(self.embed(tokens) * scale)))}

    net = Net(forward, embed=nn.Embedding(9, 12), a=nn.Linear(12, 6), b=nn.Linear(6, 2))
    kill(net.a, 1)
    return net


@case("embedding", accepted={"1": [2]}, example=lambda: torch.randint(0, 20, (8, 5)))
def embedding() -> nn.Module:
    net = nn.Sequential(nn.Embedding(20, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight[:, 2] = FAR
    return net
