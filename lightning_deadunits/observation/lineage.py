"""Which axes of a tensor index the units: set by a conv, linear or norm, followed through views.

Shape alone cannot tell: ``(8, 16, 16)`` is a batch of 1-d signals with 16 channels, or of
sequences of 16 tokens with 16 features. What produced the tensor can.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.axes import MOVES, PRODUCERS, Axes, keep_same_rank

_ATTRIBUTE = "_deadunits_axes"


class Lineage:
    """Remembers, for the tensors of one forward pass, which of their axes index the units.

    Eagerly in a table that holds no tensor alive. Dynamo cannot trace weak references, so inside
    a compiled region in an attribute of the traced tensor.
    """

    def __init__(self) -> None:
        self._axes: dict[int, tuple[weakref.ref[Tensor], Axes]] = {}
        self._latest: dict[tuple[int, ...], Axes] = {}

    def forget(self) -> None:
        """Start the next forward pass with an empty memory."""
        self._axes.clear()
        self._latest.clear()

    def axes(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of a tensor, () if it is known to have none, None if unknown."""
        if not torch.compiler.is_compiling():
            entry = self._axes.get(id(tensor))
            if entry is not None and entry[0]() is tensor:
                return entry[1]
        return getattr(tensor, _ATTRIBUTE, None)

    def guess(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of the last conv, linear or norm output of the same shape."""
        return self._latest.get(tuple(tensor.shape))

    def follow(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> None:
        """Take note of one call: work out the unit axes of what it returned."""
        if isinstance(out, Tensor):
            axes = self._axes_of_result(function, args, kwargs, out)
            if axes is not None:
                self._set(out, axes)
        elif isinstance(out, (tuple, list)) and out and isinstance(out[0], Tensor):
            for item in out:
                if isinstance(item, Tensor):
                    self.follow(function, args, kwargs, item)

    def _axes_of_result(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Tensor,
    ) -> Axes | None:
        produce = PRODUCERS.get(function)
        if produce is not None:
            axes = produce(self, args, kwargs, out)
            if axes is not None:
                if not torch.compiler.is_compiling():
                    self._latest[tuple(out.shape)] = axes
                return axes
        source = self.source(args, kwargs)
        if source is None:
            return None
        known = self.axes(source)
        assert known is not None
        move = MOVES.get(function, keep_same_rank)
        return move(known, source, args, kwargs, out)

    def source(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Return the first argument that has a unit axis, else one that is known to have none."""
        without = None
        for tensor in tensors_in(args, kwargs):
            axes = self.axes(tensor)
            if axes:
                return tensor
            if axes is not None and without is None:
                without = tensor
        return without

    def is_weight(self, tensor: Any) -> bool:
        """Tell whether a tensor is a parameter."""
        return isinstance(tensor, nn.Parameter)

    def _set(self, tensor: Tensor, axes: Axes) -> None:
        if torch.compiler.is_compiling():
            setattr(tensor, _ATTRIBUTE, axes)
        else:
            self._axes[id(tensor)] = (weakref.ref(tensor), axes)


def tensors_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of a call, those of a list or tuple included."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item
