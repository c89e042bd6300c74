"""Units whose axis moves on the way to what reads them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, conv, sequences, vectors


@case("NCHW flatten", accepted={"1": [0, 3]})
def nchw_flatten() -> nn.Module:
    net = nn.Sequential(
        *(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5), nn.ReLU()),
        nn.Linear(5, 2),
    )
    kill(net[0], 0, 3)
    return net


@case("NHWC flatten", accepted={"relu": [0, 3]})
def nhwc_flatten() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).permute(0, 2, 3, 1).reshape(len(x), -1))

    net = Net(forward, a=conv(3, 4), b=nn.Linear(256, 3))
    kill(net.a, 0, 3)
    return net


@case("view and transpose", accepted={"relu": [0, 5]}, example=sequences)
def view_transpose() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        heads = F.relu(self.a(x)).view(n, t, 2, 4).transpose(1, 2)
        return self.b(heads.transpose(1, 2).reshape(n, t, 8))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 0, 5)
    return net


@case("heads merged with the batch", accepted={"relu": [0, 5]}, example=sequences)
def heads_in_batch() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        heads = self.a(x).view(n, t, 2, 4).transpose(1, 2).reshape(n * 2, t, 4)
        return self.b(F.relu(heads).view(n, 2, t, 4).transpose(1, 2).reshape(n, t, 8))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 0, 5)
    return net


@case("one unit without an axis", accepted={"relu.b": [0]}, example=vectors)
def one_unit() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        one = F.relu(self.b(F.relu(self.a(x))).squeeze(-1))
        return self.c(one.unsqueeze(-1))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 1), c=nn.Linear(1, 3))
    kill(net.b, 0)
    return net


@case("mixer: transposed between layers", accepted={"relu": [0, 5]}, example=sequences)
def mixer() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x.transpose(1, 2)))).transpose(1, 2)

    net = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 5))
    kill(net.a, 0, 5)
    return net


@case("time first", accepted={"relu": [0, 5]}, example=lambda: torch.randn(5, 8, 12))
def time_first() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x.transpose(0, 1))).mean(0))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 5))
    kill(net.a, 0, 5)
    return net


@case("rolled batch", accepted={"relu.a": [1, 5], "relu.b": [0]}, example=vectors)
def rolled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x)[[1, 0, 3, 2, 5, 4, 7, 6]])
        return self.c(F.relu(self.b(hidden.roll(3, 0))))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2))
    kill(net.a, 1, 5)
    kill(net.b, 0)
    return net
