"""Graphs and sets: nodes, edges, points, masked positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import FAR, case, kill
from tests.zoo.parts import Net, raw, sequences


def nodes() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 12), torch.rand(6, 6)


def edges() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 12), torch.randint(0, 6, (2, 20))


@case("graph convolution", accepted={"relu": [1]}, example=nodes)
def graph_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ (F.relu(adjacency @ (x @ self.a) + self.a_bias) @ self.b)

    net = Net(forward, a=raw(12, 8), a_bias=raw(8), b=raw(8, 3))
    with torch.no_grad():
        net.a_bias[1] = 10 * FAR
    return net


@case("graph convolution that reads neighbours, too", accepted={"relu": [1]}, example=nodes)
def graph_sage() -> nn.Module:
    def forward(self: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.b(torch.cat([hidden, adjacency @ hidden], 1))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(16, 2))
    kill(net.a, 1)
    return net


@case("messages along edges", accepted={"relu.a": [1], "relu.b": [4]}, example=edges)
def message_passing() -> nn.Module:
    def forward(self: Any, x: Tensor, edge: Tensor) -> Tensor:
        message = F.relu(self.a(torch.cat([x[edge[0]], x[edge[1]]], 1)))
        largest = x.new_zeros(6, 8).scatter_reduce(
            0, edge[1][:, None].expand(-1, 8), message, "amax"
        )
        return self.c(F.relu(self.b(torch.cat([x, largest], 1))))

    net = Net(forward, a=nn.Linear(24, 8), b=nn.Linear(20, 6), c=nn.Linear(6, 2))
    kill(net.a, 1)
    kill(net.b, 4)
    return net


@case("graph attention", refused={"relu": [1]}, example=nodes)
def graph_attention() -> nn.Module:
    def forward(self: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = self.a(x)
        scores = self.left(hidden) + self.right(hidden).t() + adjacency
        return self.b(F.relu(scores.softmax(1) @ hidden + self.bias))

    net = Net(
        forward,
        a=nn.Linear(12, 8),
        left=nn.Linear(8, 1),
        right=nn.Linear(8, 1),
        b=nn.Linear(8, 2),
        bias=nn.Parameter(torch.zeros(8)),
    )
    kill(net.bias, 1)
    return net


@case(
    "points, then their maximum",
    accepted={"relu.a": [2], "relu.b": [7], "relu.c": [0]},
    example=sequences,
)
def pointnet() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        each = F.relu(self.a(x))
        whole = F.relu(self.b(each)).max(1, keepdim=True).values.expand(-1, x.shape[1], -1)
        return self.d(F.relu(self.c(torch.cat([whole, each], -1))))

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 8), c=nn.Linear(14, 4), d=nn.Linear(4, 2))
    kill(net.a, 2)
    kill(net.b, 7)
    kill(net.c, 0)
    return net


@case(
    "masked positions",
    accepted={"relu.a": [1], "relu.b": [2]},
    example=lambda: (torch.randn(8, 5, 12), torch.rand(8, 5) > 0.3),
)
def masked() -> nn.Module:
    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        inside = F.relu(self.a(x))[mask]
        whole = x.new_zeros(*x.shape[:2], 6)
        whole[mask] = F.relu(self.b(inside))
        return self.c(whole.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2))
    kill(net.a, 1)
    kill(net.b, 2)
    return net
