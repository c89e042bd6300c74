"""What unit axes are: the vocabulary of the rules in ``producers`` and ``axis_rules``.

Axes are ascending and non-negative; several of them index the units together, as after a head
split ``(N, T, H * D) -> (N, T, H, D)``. ``()`` means that the units are gone (a sum over them),
None that nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

Axes = tuple[int, ...]
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


class KnownAxes(Protocol):
    """What a producer may ask: the unit axes of one of its arguments."""

    def axes(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of a tensor."""


Producer = Callable[[KnownAxes, Args, Kwargs, Tensor], "Axes | None"]
"""``(known, args, kwargs, out) -> axes`` of a function that makes units."""
Move = Callable[[Axes, Tensor, Args, Kwargs, Tensor], "Axes | None"]
"""``(axes, source, args, kwargs, out) -> axes`` of one that carries them elsewhere."""
