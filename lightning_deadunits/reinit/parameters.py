"""The parameters of a model: which one a tensor is part of, and who uses it.

A weight may be given to a call as a view (``w.t()``, ``w[2]``, one of ``w.chunk(3)``). Its storage
tells which parameter it is, its strides which elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.reinit.weights import WeightSlice


class Parameters:
    """Finds the parameter behind a tensor."""

    def __init__(self, model: nn.Module) -> None:
        self._by_storage: dict[int, list[nn.Parameter]] = {}
        self._names: dict[int, list[str]] = {}
        for prefix, module in model.named_modules():  # one with two names comes once
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._add(f"{prefix}.{name}" if prefix else name, parameter)

    def _add(self, name: str, parameter: nn.Parameter) -> None:
        if parameter in self:
            self.names(parameter).append(name)
        elif (key := storage_of(parameter)) is not None:
            self._names[id(parameter)] = [name]
            neighbours = self._by_storage.setdefault(key, [])
            for other in neighbours:
                if _overlap(parameter, other):  # as after `b.data = a.data`
                    self.names(parameter).append(self.names(other)[0])
                    self.names(other).append(name)
            neighbours.append(parameter)

    def __contains__(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a parameter of the model itself."""
        return id(tensor) in self._names

    def names(self, parameter: Tensor) -> list[str]:
        """Return the names of a parameter; several if it is tied, or shares memory."""
        return self._names[id(parameter)]

    def owner(self, tensor: Any) -> Tensor | None:
        """Return the parameter that a tensor is, or is a view of; None if there is none."""
        if not isinstance(tensor, Tensor):
            return None
        if tensor in self:
            return tensor
        key = storage_of(tensor)
        for parameter in self._by_storage.get(key, ()) if key is not None else ():
            if _inside(tensor, parameter):
                return parameter
        return None

    def part(self, view: Tensor, where: Mapping[int, Sequence[int]]) -> WeightSlice:
        """Return elements of a view of a parameter as elements of that parameter.

        Args:
            view: A parameter or a view of one.
            where: Indices per axis of the view; other axes are taken whole.
        """
        parameter = self.owner(view)
        assert parameter is not None
        if view is parameter:
            return WeightSlice.along(parameter, where)
        offsets = torch.tensor(view.storage_offset())
        for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
            taken = torch.tensor(list(where[axis])) if axis in where else torch.arange(size)
            offsets = offsets.unsqueeze(-1) + taken * stride
        places = _positions(parameter, offsets.flatten())
        return WeightSlice(parameter, places.to(parameter.device))

    def meet(self, view: Tensor, weights: WeightSlice) -> bool:
        """Tell whether a view of a parameter holds some of its elements."""
        parameter = weights.parameter
        inside = torch.zeros_like(parameter, dtype=torch.bool)
        first = int(view.storage_offset() - parameter.storage_offset())
        inside.as_strided(view.shape, view.stride(), first).fill_(True)
        return bool(inside.flatten()[weights.positions].any())


def storage_of(tensor: Tensor) -> int | None:
    """Return where the storage of a tensor is, None if it has none of its own (a wrapper)."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError, ValueError):
        return None


def span(tensor: Tensor) -> tuple[int, int]:
    """Return the first place of a tensor in its storage and the one after the last."""
    reach = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    first = int(tensor.storage_offset())
    return first, first + int(reach) + 1


def _overlap(one: Tensor, other: Tensor) -> bool:
    (first, end), (low, high) = span(one), span(other)
    return first < high and low < end


def _inside(tensor: Tensor, parameter: Tensor) -> bool:
    if tensor.dtype != parameter.dtype or tensor.numel() == 0:
        return False
    (low, high), (first, end) = span(tensor), span(parameter)
    return first <= low and high <= end


def _positions(parameter: Tensor, offsets: Tensor) -> Tensor:
    """Turn places in a dense parameter's storage into places in row-major order."""
    rest = offsets - int(parameter.storage_offset())
    places = torch.zeros_like(rest)
    shape, strides = parameter.shape, parameter.stride()
    for axis in sorted(range(parameter.ndim), key=lambda axis: (-strides[axis], -shape[axis])):
        index = rest // strides[axis] if shape[axis] > 1 else torch.zeros_like(rest)
        rest = rest - index * strides[axis]
        places = places + index * shape[axis + 1 :].numel()
    return places.sort().values
