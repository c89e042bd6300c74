"""A case: a network with dead units, and what is to become of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

FAR = -50.0

CASES: list[Case] = []


@dataclass(frozen=True)
class Case:
    """A network with dead units: those that can be re-initialised, and those that cannot."""

    name: str
    build: Callable[[], nn.Module]
    accepted: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, list[int]] = field(default_factory=dict)
    example: Callable[[], Any] = lambda: torch.randn(8, 3, 8, 8)
    exact: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def units(self) -> dict[str, list[int]]:
        layers = {**self.accepted, **self.refused}
        return {
            name: sorted(self.accepted.get(name, []) + self.refused.get(name, []))
            for name in layers
        }


def case(name: str, **kwargs: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a network."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(Case(name, build, **kwargs))
        return build

    return register


def kill(parameter: Tensor | nn.Module, *units: int) -> None:
    """Make units dead: a bias that nothing gets above."""
    bias = parameter.bias if isinstance(parameter, nn.Module) else parameter
    with torch.no_grad():
        bias[list(units)] = FAR


def seeded() -> None:
    torch.manual_seed(0)
