"""Parameters that are added or multiplied value by value, or cast before they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.moves import MOVES
from lightning_deadunits.reinit.ops.linear import ABC, Letters, lettered
from lightning_deadunits.reinit.ops.operation import Described, Given, tensors_of
from lightning_deadunits.reinit.parameters import Parameters


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


_CASTS = {
    *(Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double),
    *(Tensor.contiguous, Tensor.clone, torch.clone, Tensor.type_as),
}
_FOLLOWED = {*_CASTS, *FACTORS, *MOVES}


class Copies:
    """Knows which copy stands for which part of a parameter, during one pass."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def stand_in(self, copy: Tensor, parameter: Tensor) -> None:
        """Take note that a copy stands for a parameter, which the pass writes to."""
        self._views[id(copy)] = (copy, parameter)

    def resolved(self, value: Any) -> Any:
        """Return nested arguments with parts of parameters in the place of their copies."""
        if isinstance(value, Tensor):
            return self._views[id(value)][1] if id(value) in self._views else value
        if not self._views or not isinstance(value, (list, tuple, dict)):
            return value
        if isinstance(value, dict):
            return {key: self.resolved(item) for key, item in value.items()}
        return (
            [*map(self.resolved, value)]
            if isinstance(value, list)
            else tuple(map(self.resolved, value))
        )

    def follow(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> bool:
        """Take note if a call copies a parameter, or moves such a copy; return whether it did."""
        if function not in _FOLLOWED:
            return False
        if function in MOVES:
            return id(args[0] if args else None) in self._views and self._move(
                function, args, kwargs, out
            )
        given = args[:1] if function in _CASTS else (args, kwargs)
        tensors = [tensor for tensor in tensors_of(given) if tensor.numel() > 1]
        if len(tensors) != 1 or not isinstance(out, Tensor) or out is tensors[0]:
            return False
        source = self.resolved(tensors[0])
        if not self._owns(source) or self._owns(out) or out.shape != source.shape:
            return False
        self._views[id(out)] = (out, source)
        return True

    def _owns(self, tensor: Any) -> bool:
        return self._parameters.owner(tensor) is not None

    def _move(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> bool:
        """Do with the part of the parameter what was done with its copy."""
        views = [*tensors_of(function(*self.resolved(args), **kwargs))]
        if not all(map(self._owns, views)):
            return False
        for copy, view in zip(tensors_of(out), views, strict=True):
            self._views[id(copy)] = (copy, view)
        return True
