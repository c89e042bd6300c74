"""What is known of calls that were met before changes no count: passes may come in any order."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits.observation.observer import Observer

_Counts = dict[str, tuple[list[int], int, int, bool]]
_Pass = tuple[list[str], int, int]
"""The parts that are called, in order; how many samples; the seed of the data."""


class _Part(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.fc(x))
        return out


class _Leaky(nn.Module):
    def forward(self, x: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(x, slope)


class _Inside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class _InAnyOrder(nn.Module):
    """Parts that share an activation, write in place, repeat a call or differ by a number only."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.ReLU()
        self.first, self.second = _Part(shared), _Part(shared)
        self.in_place = _Part(nn.ReLU(inplace=True))
        self.leaky = _Leaky()
        self.inside = _Inside()
        self.fc = nn.Linear(8, 8)
        self.parts: dict[str, Callable[[Tensor], Tensor]] = {
            "first": self.first,
            "second": self.second,
            "in place": self.in_place,
            "slope 0": lambda h: self.leaky(self.fc(h), 0.0),
            "slope 0.1": lambda h: self.leaky(self.fc(h), 0.1),
            "function": lambda h: F.relu(self.fc(h)),
            "inside": lambda h: self.inside(self.fc(h)),
            "mean": lambda h: torch.relu(self.fc(h).mean(0, keepdim=True).expand(len(h), 8)),
            "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
            "twice": lambda h: F.relu(y := self.fc(h)) + F.relu(y),
        }

    def forward(self, x: Tensor, order: list[str]) -> Tensor:
        for part in order:
            x = self.parts[part](x)
        return x


def _counts(net: nn.Module, passes: list[_Pass]) -> _Counts:
    observer = Observer(net)
    with observer.watching(), torch.no_grad():
        for order, samples, seed in passes:
            x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
            double = seed % 5 == 0
            net.double() if double else net.float()
            with observer.one_pass():
                net(x.double() if double else x, order)
    return {
        name: (count.zeros.tolist(), int(count.observations), int(count.nonfinite), count.assumed)
        for name, count in observer.counts.items()
    }


@pytest.mark.parametrize("seed", range(40))
def test_passes_in_any_order_count_as_each_does_alone(seed: int) -> None:
    torch.manual_seed(seed)
    net, rng = _InAnyOrder(), random.Random(seed)
    parts, order = rng.sample(list(net.parts), 3), [""]
    passes: list[_Pass] = []
    for number in range(12):
        if not number or rng.random() < 0.4:
            order = rng.choices(parts, k=rng.randint(1, 4))
        passes.append((order, rng.choice([4, 4, 4, 3]), rng.randrange(100)))

    truth: _Counts = {}
    for each in passes:
        for name, (zeros, seen, nonfinite, assumed) in _counts(net, [each]).items():
            known = truth.get(name, ([0] * len(zeros), 0, 0, assumed))
            total = [a + b for a, b in zip(known[0], zeros, strict=True)]
            truth[name] = (total, known[1] + seen, known[2] + nonfinite, assumed)
    assert _counts(net, passes) == truth
