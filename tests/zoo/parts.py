"""What networks of the zoo are built of, and examples that many of them take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A module with a forward given as a function of itself and the input."""

    def __init__(self, forward: Callable[..., Any], **children: Any) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self._run = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self, *args, **kwargs)


def conv(inputs: int, outputs: int, size: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **kwargs)


def raw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def vectors() -> Tensor:
    return torch.randn(8, 12)


def sequences() -> Tensor:
    return torch.randn(8, 5, 12)
