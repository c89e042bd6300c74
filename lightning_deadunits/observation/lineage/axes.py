"""What unit axes are: the vocabulary of the rules in ``producers`` and ``axis_rules``.

Axes are ascending and non-negative; several of them index the units together, as after a head
split ``(N, T, H * D) -> (N, T, H, D)``. ``()`` means that the units are gone (a sum over them),
None that nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from lightning_deadunits.observation.identity import Descent

Axes = tuple[int, ...]
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


class Folded(NamedTuple):
    """Unit axes of a tensor that has units and samples, or positions, on one axis.

    As where attention heads are merged with the batch.

    Attributes:
        sizes: The shape in which no axis has both, () if it is the tensor's own.
        axes: The unit axes of the tensor reshaped to it.
    """

    sizes: tuple[int, ...]
    axes: Axes


class KnownAxes(Protocol):
    """What a rule may ask of the arguments of a call."""

    def axes(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of a tensor."""

    def descent(self, tensor: Any) -> Descent | None:
        """Return where the units of a tensor come from, None if nothing is known of it."""

    def is_weight(self, tensor: Any) -> bool:
        """Tell whether a tensor is a parameter, or computed from parameters alone."""

    def is_zero(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is known to hold nothing but zeros."""

    def row(self, source: Tensor, out: Tensor) -> int | None:
        """Return which row of stacked weights a view is, None if that cannot be told."""

    def chosen_by(self, places: list[tuple[Any, int]]) -> tuple[str, bool] | None:
        """Return a word for the units that lists of places choose, and whether some come twice.

        Args:
            places: The lists, as lists or tensors, each with the size of what it chooses from.

        Returns:
            None if that cannot be told.
        """


MakerAxes = Callable[[KnownAxes, Args, Kwargs, Tensor], "Axes | Folded | None"]
"""``(known, args, kwargs, out) -> axes`` of a function that makes units."""
Move = Callable[[Axes, Tensor, Args, Kwargs, Tensor], "Axes | Folded | None"]
"""``(axes, source, args, kwargs, out) -> axes`` of one that carries them elsewhere."""
