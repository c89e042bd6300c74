"""Weights that are raw parameters, views of one, computed or held in another form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

from tests.zoo.case import FAR, case, kill
from tests.zoo.parts import Net, raw, sequences, vectors


@case(
    "raw parameters", accepted={"relu.a": [1, 4], "relu.b": [2], "relu.c.1": [0]}, example=vectors
)
def raw_parameters() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.a, self.a_bias))
        x = F.relu(x @ self.b.t() + self.b_bias)
        x = F.relu(torch.einsum("ni,io->no", x, self.c[1]) + self.c_bias)
        return torch.addmm(self.d_bias, x, self.d)

    shapes = {"a": (8, 12), "b": (6, 8), "c": (2, 6, 5), "d": (5, 2)}
    net = Net(forward, **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})
    for name, size in (("a_bias", 8), ("b_bias", 6), ("c_bias", 5), ("d_bias", 2)):
        setattr(net, name, nn.Parameter(torch.zeros(size)))
    kill(net.a_bias, 1, 4)
    kill(net.b_bias, 2)
    kill(net.c_bias, 0)
    return net


@case("tensordot, mv and dots in einsum", accepted={"relu": [1, 5]}, example=sequences)
def tensordot() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(torch.tensordot(x, self.a, dims=([2], [0])) + self.a_bias)
        single = torch.mv(hidden[:, 0], self.c) + torch.inner(hidden[:, 1], self.d)
        both = torch.tensordot(hidden, self.b, dims=1) + torch.einsum("...i,io", hidden, self.e)
        return both + single[:, None, None]

    net = Net(forward, a=raw(12, 8), a_bias=raw(8), b=raw(8, 3), c=raw(8), d=raw(8), e=raw(8, 3))
    with torch.no_grad():
        net.a_bias[[1, 5]] = 10 * FAR
    return net


@case("multi_dot of two", accepted={"relu.a": [1, 5], "relu": [2]}, example=vectors)
def multi_dot() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(torch.linalg.multi_dot([x, self.b]) + self.b_bias)
        return torch.linalg.multi_dot((x, self.c))

    net = Net(forward, a=nn.Linear(12, 8), b=raw(8, 6), b_bias=raw(6), c=raw(6))
    kill(net.a, 1, 5)
    kill(net.b_bias, 2)
    return net


@case("multi_dot of three", refused={"relu": [1]}, example=vectors)
def multi_dot_of_three() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.linalg.multi_dot([F.relu(self.a(x)), self.b, self.c])

    net = Net(forward, a=nn.Linear(12, 8), b=raw(8, 6), c=raw(6, 3))
    kill(net.a, 1)
    return net


@case("multiplied, then summed", accepted={"relu": [1, 6]}, example=vectors)
def multiply_sum() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return (F.relu(self.a(x))[:, None] * self.b).sum(-1)

    net = Net(forward, a=nn.Linear(12, 8), b=raw(3, 8))
    kill(net.a, 1, 6)
    return net


@case("weights cast and scaled at run time", accepted={"relu": [1, 5]}, example=vectors)
def cast_weights() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, bias = (p.to(torch.float64) for p in (self.a.weight, self.a.bias))
        return F.relu(F.linear(x.double(), a, bias)) @ (self.b * 0.3).double().t()[:, :2]

    net = Net(forward, a=nn.Linear(12, 8), b=raw(3, 8))
    kill(net.a, 1, 5)
    return net


@case("slices of one weight that cross", accepted={"relu": [1, 5]}, example=vectors)
def fused_slices() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = self.a.chunk(2, 0)
        hidden = F.relu(F.linear(x, first, self.a_bias[:8]))
        gate = torch.sigmoid(F.linear(x, second, self.a_bias[8:]))
        return (hidden * gate) @ self.b.T[:8] + hidden @ self.b.permute(1, 0)[8:]

    net = Net(forward, a=raw(16, 12), a_bias=raw(16), b=raw(3, 16))
    with torch.no_grad():
        net.a_bias[[1, 5]] = 10 * FAR
    return net


@case("a weight that is computed", refused={"relu": [1]}, example=vectors)
def noisy_weight() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), self.mean + self.spread * 0.1)

    net = Net(forward, a=nn.Linear(12, 8), mean=raw(3, 8), spread=raw(3, 8))
    kill(net.a, 1)
    return net


@case("weight norm", refused={"relu": [2]}, example=vectors)
def weight_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
    net = Net(forward, a=nn.Linear(12, 6), b=normed)
    kill(net.a, 2)
    return net


@case("pruned reader", refused={"1": [1]}, example=vectors)
def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.utils.prune.random_unstructured(net[2], "weight", 0.3)
    kill(net[0], 1)
    return net
