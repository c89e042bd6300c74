"""Small networks whose dead units are known by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEVER = -100.0
"""A bias that no input outweighs."""


@dataclass(frozen=True)
class Case:
    """A model, what it is run on, and the truth.

    Attributes:
        model: The model.
        batches: What it is called with.
        truth: Share of the units that fire on no sample at all, one per activation call.
        channels_last: Whether the units are on the last axis of three.
        stacked: Whether the first axis tells members apart, whose units are others.
    """

    model: nn.Module
    batches: list[Tensor]
    truth: tuple[float, ...]
    channels_last: bool = False
    stacked: bool = False


class Functional(nn.Module):
    """A linear layer and ``F.relu``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class Reused(nn.Module):
    """One ReLU module called after each of two layers, as in ResNet's blocks."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second, self.relu = first, second, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


class PaddedEncoder(nn.Module):
    """A TransformerEncoder that masks the positions that are all zero."""

    def __init__(self, dead: int, units: int) -> None:
        super().__init__()
        # ReLU as a module, so that whoever hooks modules has something to hook.
        layer = nn.TransformerEncoderLayer(16, 4, units, activation=nn.ReLU(), batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        with torch.no_grad():
            self.encoder.layers[0].linear1.bias[:dead] = NEVER

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=(x == 0).all(-1))


class Siamese(nn.Module):
    """One encoder for both halves of the input."""

    def __init__(self, encoder: nn.Sequential) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return self.encoder(one) + self.encoder(other)


class Experts(nn.Module):
    """Experts behind one activation, each run only if samples are routed to it."""

    def __init__(self, experts: list[nn.Linear]) -> None:
        super().__init__()
        self.experts, self.relu = nn.ModuleList(experts), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        home, out = (x[:, 0] * 1000).long() % len(self.experts), x.new_zeros(len(x), 8)
        for k, expert in enumerate(self.experts):
            rows = (home == k).nonzero().flatten()
            if len(rows):
                out[rows] = self.relu(expert(x[rows]))
        return out


class Ensemble(nn.Module):
    """Members with stacked weights, in one product."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, 32, 8))
        self.bias, self.relu = nn.Parameter(torch.zeros(members, 1, 8)), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        each = x.unsqueeze(0).expand(len(self.weight), -1, -1)
        return self.relu(torch.baddbmm(self.bias, each, self.weight))


def linear(inputs: int, units: int, dead: int = 0) -> nn.Linear:
    """Return a layer whose first units never fire."""
    layer = nn.Linear(inputs, units)
    with torch.no_grad():
        layer.bias[:dead] = NEVER
    return layer


def gate(units: int) -> nn.Sequential:
    """Return a layer whose units fire where the input is positive."""
    layer = nn.Linear(units, units, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(units))
    return nn.Sequential(layer, nn.ReLU())


def firing(fires: Tensor) -> Tensor:
    """Return inputs of a gate, of magnitude 0.1 to 1, positive where a unit is to fire."""
    size = 0.1 + 0.9 * torch.rand(fires.shape)
    return torch.where(fires, size, -size)


def some_of_64_dead() -> Case:
    model = nn.Sequential(linear(32, 64, 16), nn.ReLU())
    return Case(model, list(torch.randn(4, 64, 32)), (0.25,))


def every_unit_fires_once() -> Case:
    return Case(gate(64), list(firing(torch.rand(8, 32, 64) < 0.058)), (0.0,))


def sparse_and_none_dead() -> Case:
    return Case(gate(64), list(firing(torch.rand(16, 64, 64) < 0.021)), (0.0,))


def conv_norm() -> Case:
    norm = nn.BatchNorm2d(16)
    with torch.no_grad():
        norm.weight[:4], norm.bias[:4] = 0, -1
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), norm, nn.ReLU())
    return Case(model, list(torch.randn(4, 8, 3, 12, 12)), (0.25,))


def functional() -> Case:
    return Case(Functional(linear(32, 64, 16)), list(torch.randn(4, 64, 32)), (0.25,))


def reused() -> Case:
    model = Reused(linear(32, 32, 16), linear(32, 32))
    with torch.no_grad():
        model.second.bias.fill_(1.0)  # so that each of its units fires
    return Case(model, list(torch.randn(8, 64, 32)), (0.5, 0.0))


def tokens() -> Case:
    model = nn.Sequential(linear(32, 64, 16), nn.ReLU())
    return Case(model, list(torch.randn(4, 16, 10, 32)), (0.25,), channels_last=True)


def one_early_sample() -> Case:
    fires = torch.rand(32, 64, 64) < 0.5
    fires[:, :, :16] = False
    fires[0, 0, :16] = True
    return Case(gate(64), list(firing(fires)), (0.0,))


def padded_encoder() -> Case:
    inputs = torch.randn(4, 16, 10, 16)
    lengths = torch.randint(3, 11, (4, 16, 1))
    inputs[torch.arange(10) >= lengths] = 0
    return Case(PaddedEncoder(8, 32), list(inputs), (0.25,), channels_last=True)


def siamese() -> Case:
    """Of eight units two are dead, two fire in the first half only, two in the second."""
    fires = torch.rand(8, 32, 16) < 0.5
    fires[:, :, [0, 1, 8, 9, 4, 5, 10, 11]] = False
    return Case(Siamese(gate(8)), list(firing(fires)), (0.25,))


def experts() -> Case:
    model = Experts([linear(32, 8, 2) for _ in range(3)])
    with torch.no_grad():
        for expert in model.experts:
            expert.bias[2:] = 2.0  # type: ignore[index]  # nn.Module's attributes
    batches = list(torch.rand(6, 30, 32))
    for index, batch in enumerate(batches):  # some batches leave an expert out
        batch[:, 0] = torch.tensor([(index + k % 2) % 3 for k in range(30)]) / 1000 + 1e-4
    return Case(model, batches, (0.25, 0.25, 0.25))


def ensemble() -> Case:
    model = Ensemble(3)
    with torch.no_grad():
        model.bias[0, 0, :3] = NEVER * 100
        model.bias[:, 0, 5] = NEVER * 100
    return Case(model, list(torch.randn(4, 64, 32)), (0.25,), channels_last=True, stacked=True)


def rank_of_two(rank: int) -> Case:
    """Two of 16 units are dead; a third fires on rank 0 only, a fourth on rank 1 only."""
    fires = torch.rand(4, 32, 16) < 0.5
    fires[:, :, :2] = False
    fires[:, :, 3 - rank] = False
    return Case(gate(16), list(firing(fires)), (0.125,))


CASES: dict[str, Callable[[], Case]] = {
    "16 of 64 dead": some_of_64_dead,
    "every unit fires at least once": every_unit_fires_once,
    "97.9 % zeros, none dead": sparse_and_none_dead,
    "Conv-BN, channels 0-3 of 16 dead": conv_norm,
    "`F.relu`, 16 of 64 dead": functional,
    "one ReLU reused, 50 % and 0 % dead": reused,
    "`(B, T, C)`, 16 of 64 dead": tokens,
    "fires on one early sample only": one_early_sample,
    "padded TransformerEncoder, 8 of 32 dead": padded_encoder,
    "one encoder for two inputs, 2 of 8 dead": siamese,
    "three experts behind one ReLU, 2 of 8 dead each": experts,
    "an ensemble's stacked weights, 6 of 24 dead": ensemble,
}


def made(make: Callable[..., Case], *arguments: Any) -> Case:
    """Make a case, always the same one, in eval mode."""
    torch.manual_seed(0)
    case = make(*arguments)
    case.model.eval()
    return case
