"""Which axes of a tensor index the units: set by a conv, linear or norm, followed through views.

Shape alone cannot tell: ``(8, 16, 16)`` is a batch of 1-d signals with 16 channels, or of
sequences of 16 tokens with 16 features. What produced the tensor can.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from lightning_deadunits.observation.axes import Args, Axes, Kwargs, Move, Producer
from lightning_deadunits.observation.axis_rules import keep_same_rank
from lightning_deadunits.observation.moves import MOVES
from lightning_deadunits.observation.producers import PRODUCERS

_ATTRIBUTE = "_deadunits_axes"


class _Rule(NamedTuple):
    """What a function does to unit axes: makes them, if it can tell them, else moves them."""

    produce: Producer | None
    move: Move


def _rule(function: Callable[..., Any]) -> _Rule:
    return _Rule(PRODUCERS.get(function), MOVES.get(function, keep_same_rank))


_rule_once = functools.lru_cache(maxsize=4096)(_rule)  # Dynamo looks up anew, it traces no cache


class Lineage:
    """Remembers which axes of the tensors of one forward pass index the units.

    In an attribute of each tensor, which Dynamo can trace; tensors that leave a compiled region
    carry it on.
    """

    def axes(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of a tensor, () if it is known to have none, None if unknown."""
        return getattr(tensor, _ATTRIBUTE, None)

    def guess(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes that a tensor of unknown descent is likely to have."""
        return None

    def remember(self, tensor: Tensor, axes: Axes, produced: bool) -> None:
        """Remember the unit axes of a tensor, which a layer produced or another function moved."""
        setattr(tensor, _ATTRIBUTE, axes)

    def follow(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any) -> None:
        """Take note of one call: work out the unit axes of what it returned."""
        if isinstance(out, Tensor):
            self._follow_tensor(_rule(function), args, kwargs, out)

    def _follow_tensor(self, rule: _Rule, args: Args, kwargs: Kwargs, out: Tensor) -> None:
        if rule.produce is not None:
            axes = rule.produce(self, args, kwargs, out)
            if axes is not None:
                self.remember(out, axes, produced=True)
                return
        source, known = self._source(args, kwargs, out)
        if source is None or known is None:
            return
        axes = rule.move(known, source, args, kwargs, out)
        if axes is not None:
            self.remember(out, axes, produced=False)

    def _source(self, args: Args, kwargs: Kwargs, out: Tensor) -> tuple[Tensor | None, Axes | None]:
        """Return the argument that the result takes after, and its axes.

        One with a unit axis and the result's own shape, else the first that has a unit axis, else
        one that is known to have none.
        """
        best: tuple[Tensor | None, Axes | None] = (None, None)
        for value in (*args, *kwargs.values()) if kwargs else args:
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                axes = self.axes(tensor) if isinstance(tensor, Tensor) else None
                if axes and tensor.shape == out.shape:
                    return tensor, axes
                if axes is not None and (best[0] is None or (axes and not best[1])):
                    best = (tensor, axes)
        return best


class EagerLineage(Lineage):
    """Remembers in a table that holds no tensor alive and leaves none marked."""

    def __init__(self) -> None:
        self._axes: dict[int, tuple[weakref.ref[Tensor], Axes]] = {}
        self._latest: dict[tuple[int, ...], Axes] = {}

    def follow(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any) -> None:
        """Take note of one call, each tensor that it returned (Dynamo can mark none in a tuple)."""
        if isinstance(out, Tensor):
            self._follow_tensor(_rule_once(function), args, kwargs, out)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, Tensor):
                    self._follow_tensor(_rule_once(function), args, kwargs, item)

    def forget(self) -> None:
        """Start the next forward pass with an empty memory."""
        self._axes.clear()
        self._latest.clear()

    def axes(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of a tensor, () if it is known to have none, None if unknown."""
        entry = self._axes.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        return getattr(tensor, _ATTRIBUTE, None)

    def guess(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of the last conv, linear or norm output of the same shape."""
        return self._latest.get(tensor.shape)

    def remember(self, tensor: Tensor, axes: Axes, produced: bool) -> None:
        """Remember the unit axes of a tensor, which a layer produced or another function moved."""
        self._axes[id(tensor)] = (weakref.ref(tensor), axes)
        if produced:
            self._latest[tensor.shape] = axes
