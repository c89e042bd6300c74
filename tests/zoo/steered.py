"""Values that steer the model: control flow, checks, random choices, training mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import case, kill
from tests.zoo.parts import Net, raw, vectors


@case("dynamic control flow", accepted={"relu.b": [0]}, example=vectors)
def dynamic() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        branch = self.b if bool(x.sum() > 5) else self.c
        for _ in range(int(x.sum() > 1) + 1):
            x = x * 1.0
        return self.d(F.relu(branch(x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 6), c=nn.Linear(8, 6), d=nn.Linear(6, 2))
    kill(net.a, 1, 4)
    kill(net.b, 0)
    return net


@case("marks that torch.where drops", accepted={"relu": [1, 5]}, example=vectors)
def where() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.b(torch.nan_to_num(torch.where(hidden > 0, hidden, torch.zeros_like(hidden))))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1, 5)
    return net


@case("a model that checks its values", accepted={"relu": [1]}, example=vectors)
def checked() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        if not hidden.isfinite().all():
            raise ValueError("not finite")
        return self.b(hidden)

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("a model that cannot stand a change", refused={"relu": [1]}, example=vectors)
def unchangeable() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        if float(hidden[:, 1].sum()) != 0.0:
            raise ValueError("not silent")
        return self.b(hidden)

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("inside vmap", refused={"relu": [1]}, example=vectors)
def vmapped() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.b(row))(F.relu(self.a(x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    kill(net.a, 1)
    return net


@case("auxiliary head in training mode only", accepted={"relu": [1]}, example=vectors)
def auxiliary() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return (self.b(x), self.aux(x)) if self.training else self.b(x)

    net = Net(forward, a=nn.Linear(12, 6), b=nn.Linear(6, 2), aux=nn.Linear(6, 2))
    kill(net.a, 1)
    return net


@case("dropout of a parameter, in training mode only", accepted={"relu": [1]}, example=vectors)
def parameter_dropout() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x + (F.dropout(self.position, 0.5) if self.training else self.position)
        return self.b(F.relu(self.a(x)))

    net = Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3), position=raw(12))
    kill(net.a, 1)
    return net
