"""Mixtures of experts, and units that compete."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import FAR, case, kill
from tests.zoo.parts import Net, raw, vectors


@case("stacked experts", accepted={"relu": [1, 9]}, example=vectors)
def experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("nd,edh->neh", x, self.a) + self.a_bias)
        return torch.einsum("neh,eho->no", hidden, self.b)

    net = Net(
        forward,
        a=nn.Parameter(torch.randn(3, 12, 4)),
        a_bias=nn.Parameter(torch.zeros(3, 4)),
        b=nn.Parameter(torch.randn(3, 4, 2)),
    )
    with torch.no_grad():
        net.a_bias[0, 1] = net.a_bias[2, 1] = 10 * FAR
    return net


@case("soft mixture of experts in one einsum", accepted={"relu": [1, 13]}, example=vectors)
def soft_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        hidden = F.relu(torch.einsum("bi,eih->beh", x, self.a) + self.bias)
        return torch.einsum("be,beh,eho->bo", gate, hidden, self.b)

    net = Net(forward, gate=nn.Linear(12, 3), a=raw(3, 12, 6), bias=raw(3, 6), b=raw(3, 6, 4))
    with torch.no_grad():
        net.bias[0, 1] = net.bias[2, 1] = 10 * FAR
    return net


@case(
    "experts by baddbmm",
    accepted={"relu": [2]},
    example=lambda: torch.randn(3, 6, 12),
)
def batched_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(torch.baddbmm(self.a_bias, x, self.a))
        return torch.baddbmm(self.b_bias, hidden, self.b)

    net = Net(forward, a=raw(3, 12, 8), a_bias=raw(3, 1, 8), b=raw(3, 8, 4), b_bias=raw(3, 1, 4))
    with torch.no_grad():
        net.a_bias[:, 0, 2] = 10 * FAR
    return net


@case("experts by hard routing", accepted={"relu.up.0": [1], "relu.up.1": [1]}, example=vectors)
def routed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(1)
        out = x.new_zeros(len(x), 4)
        for expert, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            rows = (chosen == expert).nonzero().flatten()
            out = out.index_add(0, rows, down(F.relu(up(x[rows]))))
        return out

    net = Net(
        forward,
        router=nn.Linear(12, 2),
        up=nn.ModuleList(nn.Linear(12, 6) for _ in range(2)),
        down=nn.ModuleList(nn.Linear(6, 4) for _ in range(2)),
    )
    for layer in net.up:
        kill(layer, 1)
    return net


@case("maxout, a pair dead", accepted={"relu": [2, 3]}, refused={"relu": [5]}, example=vectors)
def maxout() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).view(len(x), 4, 2).amax(2))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(4, 2))
    kill(net.a, 2, 3, 5)
    return net


@case("the choice of the largest", refused={"relu": [1]}, example=vectors)
def top_k() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        values, indices = hidden.topk(3, 1)
        return self.b(torch.zeros_like(hidden).scatter(1, indices, values))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 2))
    kill(net.a, 1)
    return net
