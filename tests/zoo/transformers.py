"""Transformers and what attends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, sequences


@case(
    "transformer encoder",
    accepted={"layers.0.relu": [1, 7], "layers.1.relu": [0]},
    example=sequences,
)
def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2)
    kill(net.layers[0].linear1, 1, 7)
    kill(net.layers[1].linear1, 0)
    return net


@case("layer scale and stochastic depth", accepted={"relu": [1, 7]}, example=sequences)
def layer_scale() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.a(x)), 0.5, self.training)
        return x + F.dropout(self.b(hidden) * self.gamma, 0.2, self.training)

    net = Net(
        forward, a=nn.Linear(12, 8), b=nn.Linear(8, 12), gamma=nn.Parameter(torch.full((12,), 0.1))
    )
    kill(net.a, 1, 7)
    return net


@case("attention reads it", refused={"relu": [1]}, example=sequences)
def attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.b(hidden, hidden, hidden)[0]

    net = Net(forward, a=nn.Linear(12, 8), b=nn.MultiheadAttention(8, 2, batch_first=True))
    kill(net.a, 1)
    return net


@case(
    "shifted windows, merged",
    accepted={"relu.a": [1, 8], "relu.c": [3]},
    example=lambda: torch.randn(4, 8, 8, 12),
)
def windows() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        n = len(x)
        y = torch.roll(self.norm(x), (-2, -2), (1, 2)).view(n, 2, 4, 2, 4, 12)
        y = self.b(F.relu(self.a(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12))))
        y = y.view(n, 2, 2, 4, 4, 12).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, 12)
        x = x + torch.roll(y, (2, 2), (1, 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.d(F.relu(self.c(torch.cat(corners, -1))))

    net = Net(
        forward,
        norm=nn.LayerNorm(12),
        a=nn.Linear(12, 16),
        b=nn.Linear(16, 12),
        c=nn.Linear(48, 10),
        d=nn.Linear(10, 2),
    )
    kill(net.a, 1, 8)
    kill(net.c, 3)
    return net
