"""Units that are multiplied with others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import FAR, case, kill
from tests.zoo.parts import Net, conv, sequences, vectors


@case("gated MLP", accepted={"relu": [1, 7]}, example=sequences)
def gated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down(F.relu(self.gate(x)) * self.up(x)) + x

    net = Net(forward, gate=nn.Linear(12, 8), up=nn.Linear(12, 8), down=nn.Linear(8, 12))
    kill(net.gate, 1, 7)
    return net


@case("squeeze-excitation", accepted={"relu.bn": [1], "relu.down": [0]})
def squeeze_excitation() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.b(x * gate[:, :, None, None])

    net = Net(
        forward,
        a=conv(3, 8),
        bn=nn.BatchNorm2d(8),
        down=nn.Linear(8, 4),
        up=nn.Linear(4, 8),
        b=conv(8, 2),
    )
    kill(net.bn, 1)
    kill(net.down, 0)
    return net


@case(
    "FiLM conditioning",
    accepted={"relu.a": [1], "relu.b": [3]},
    example=lambda: (torch.randn(8, 3, 8, 8), torch.randn(8, 5)),
)
def film() -> nn.Module:
    def forward(self: Any, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(F.relu(self.a(condition))).chunk(2, 1)
        hidden = self.norm(self.b(x)) * scale[:, :, None, None] + shift[:, :, None, None]
        return self.c(F.relu(hidden))

    net = Net(
        forward,
        a=nn.Linear(5, 6),
        film=nn.Linear(6, 16),
        b=conv(3, 8),
        norm=nn.BatchNorm2d(8, affine=False),
        c=conv(8, 2),
    )
    kill(net.a, 1)
    with torch.no_grad():
        net.film.bias[8 + 3] = 10 * FAR
    return net


@case(
    "gated dilated convolutions",
    accepted={"block.relu": [1], "relu": [3]},
    example=lambda: torch.randn(8, 4, 20),
)
def wavenet() -> nn.Module:
    def block(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (4, 0))
        hidden = F.relu(self.a(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.out(hidden), self.skip(hidden)

    def forward(self: Any, x: Tensor) -> Tensor:
        x, skip = self.block(self.stem(x))
        return self.head(x) + self.c(F.relu(self.b(skip)))

    dilated = {"dilation": 2}
    inner = Net(
        block,
        a=nn.Conv1d(6, 6, 3, **dilated),
        gate=nn.Conv1d(6, 6, 3, **dilated),
        out=nn.Conv1d(6, 6, 1),
        skip=nn.Conv1d(6, 5, 1),
    )
    net = Net(
        forward,
        stem=nn.Conv1d(4, 6, 1),
        block=inner,
        head=nn.Conv1d(6, 2, 1),
        b=nn.Conv1d(5, 5, 1),
        c=nn.Conv1d(5, 2, 1),
    )
    kill(inner.a, 1)
    kill(net.b, 3)
    return net


@case("bilinear", accepted={"relu.a": [1], "relu.b": [2]}, example=vectors)
def bilinear() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)), x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Bilinear(8, 12, 4), c=nn.Linear(4, 2))
    kill(net.a, 1)
    kill(net.b, 2)
    return net


@case("bilinear pooling", accepted={"relu": [1, 3]}, example=lambda: torch.randn(8, 3, 6, 6))
def bilinear_pooling() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x)).flatten(2)
        return self.b((hidden @ hidden.transpose(1, 2)).flatten(1))

    net = Net(forward, a=conv(3, 5), b=nn.Linear(25, 3))
    kill(net.a, 1, 3)
    return net
