"""Parameters that are cast or scaled at run time: what is read is the copy, what is edited is not.

``w.to(x.dtype)`` and ``w * gain`` are zero where ``w`` is, so the copy may stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.moves import MOVES
from lightning_deadunits.reinit.operations.given import tensors_of
from lightning_deadunits.reinit.operations.links import FACTORS
from lightning_deadunits.reinit.parameters import Parameters

_CASTS = {
    *(Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double),
    *(Tensor.contiguous, Tensor.clone, torch.clone, Tensor.type_as),
}
_FOLLOWED = {*_CASTS, *FACTORS, *MOVES}


class Copies:
    """Knows which copy stands for which part of a parameter, during one pass.

    Args:
        parameters: Those of the model.
    """

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
