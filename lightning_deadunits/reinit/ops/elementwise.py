"""Parameters that are added or multiplied value by value, or cast before they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.lineage.moves import MOVES
from lightning_deadunits.reinit.ops.linear import ABC, Letters, lettered
from lightning_deadunits.reinit.ops.operation import Described, Given
from lightning_deadunits.reinit.recording.tape import mapped, tensors_of


def named(*names: str) -> tuple[Callable[..., Any], ...]:
    """Return the functions and the methods of tensors that have these names."""
    return tuple(getattr(home, n) for n in names for home in (torch, Tensor) if hasattr(home, n))


SUMS = named(
    *("add", "sub", "subtract", "add_", "sub_"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__iadd__", "__isub__"),
)
FACTORS = named(
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
    of_each = (letters[len(letters) - tensor.ndim :] for tensor in (x, weight, given.out))
    scales = given.function in FACTORS
    return lettered(given, Letters(*of_each), x, weight, kind="link", scales=scales)


_CASTS = {
    *(Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double),
    *(Tensor.contiguous, Tensor.clone, torch.clone, Tensor.type_as),
}


class Copies:
    """Knows which copy stands for which part of a parameter, during one pass."""

    def __init__(self) -> None:
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def stand_in(self, copy: Tensor, part: Tensor) -> None:
        """Take note that a copy stands for a parameter, or a part of one."""
        self._views[id(copy)] = (copy, part)

    def resolved(self, value: Any) -> Any:
        """Return nested arguments with parts of parameters in the place of their copies."""
        if not self._views:
            return value
        return mapped(value, lambda leaf: self._views.get(id(leaf), (leaf, leaf))[1])

    def follow(self, given: Given) -> bool:
        """Take note if a call copies a parameter, or moves such a copy; return whether it did."""
        function, args, out = given.function, given.args, given.out
        if function in MOVES:
            return id(args[0] if args else None) in self._views and self._move(given)
        if function not in _CASTS and function not in FACTORS:
            return False
        factors = tensors_of(args[:1] if function in _CASTS else (args, given.kwargs))
        tensors = [tensor for tensor in factors if tensor.numel() > 1]
        if len(tensors) != 1 or not isinstance(out, Tensor) or out is tensors[0]:
            return False
        source = self.resolved(tensors[0])
        if not given.owns(source) or given.owns(out) or out.shape != source.shape:
            return False
        self.stand_in(out, source)
        return True

    def _move(self, given: Given) -> bool:
        """Do with the part of the parameter what was done with its copy."""
        args, kwargs = self.resolved(given.args), self.resolved(given.kwargs)
        parts = tensors_of(given.function(*args, **kwargs))
        if not all(map(given.owns, parts)):
            return False
        for copy, part in zip(tensors_of(given.out), parts, strict=True):
            self.stand_in(copy, part)
        return True
