"""Parameters that are added or multiplied value by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.operations.given import Given
from lightning_deadunits.reinit.operations.letters import ABC, Letters, lettered
from lightning_deadunits.reinit.operations.operation import Described


def _named(*names: str) -> tuple[Callable[..., Any], ...]:
    return tuple(getattr(home, n) for n in names for home in (torch, Tensor) if hasattr(home, n))


SUMS = _named(
    *("add", "sub", "subtract", "add_", "sub_"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__iadd__", "__isub__"),
)
FACTORS = _named(
    *("mul", "div", "multiply", "divide", "true_divide", "mul_", "div_"),
    *("__mul__", "__rmul__", "__truediv__", "__imul__"),
)


def elementwise(given: Given) -> Described | None:
    """Describe the sum or the product of an activation and a parameter."""
    operands = [*given.args, *given.kwargs.values()][:2]
    if len(operands) < 2 or not all(isinstance(operand, Tensor) for operand in operands):
        return None
    owned = [given.owns(operand) for operand in operands]
    if owned[0] == owned[1] or not isinstance(given.out, Tensor) or given.out.ndim > len(ABC):
        return None
    weight, x = operands if owned[0] else operands[::-1]
    letters = ABC[: given.out.ndim]
    named = Letters(
        letters[len(letters) - x.ndim :], letters[len(letters) - weight.ndim :], letters
    )
    return lettered(given, named, x, weight, kind="link", scales=given.function in FACTORS)
