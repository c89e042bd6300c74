"""The parameters of a model: which one a tensor is part of, and who uses it.

A weight may be given to a call as a view (``w.t()``, ``w[2]``, one of ``w.chunk(3)``). Its storage
tells which parameter it is, its strides which elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_deadunits.reinit.weights import WeightSlice


class Named(NamedTuple):
    """A parameter with the names it has in the model; several if it is tied, or shares memory."""

    parameter: nn.Parameter
    names: list[str]


class Parameters:
    """Finds the parameter behind a tensor."""

    def __init__(self, model: nn.Module) -> None:
        self._by_storage: dict[int, list[Named]] = {}
        self._by_id: dict[int, Named] = {}
        for name, parameter in _each_parameter(model):
            if parameter in self:
                self._by_id[id(parameter)].names.append(name)
            elif (key := storage_of(parameter)) is not None:
                named = Named(parameter, [name])
                for other in self._by_storage.get(key, ()):
                    if _overlap(parameter, other.parameter):  # as after `b.data = a.data`
                        named.names.append(other.names[0])
                        other.names.append(name)
                self._by_id[id(parameter)] = named
                self._by_storage.setdefault(key, []).append(named)

    def __contains__(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a parameter of the model itself."""
        return id(tensor) in self._by_id

    def named(self, parameter: Tensor) -> Named:
        """Return a parameter with its names."""
        return self._by_id[id(parameter)]

    def owner(self, tensor: Any) -> nn.Parameter | None:
        """Return the parameter that a tensor is, or is a view of; None if there is none."""
        if not isinstance(tensor, Tensor):
            return None
        if (own := self._by_id.get(id(tensor))) is not None:
            return own.parameter
        key = storage_of(tensor)
        for named in self._by_storage.get(key, ()) if key is not None else ():
            if _inside(tensor, named.parameter):
                return named.parameter
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


def _each_parameter(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters, tied ones repeatedly, but those of a module with two names once."""
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield (f"{prefix}.{name}" if prefix else name), parameter


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
