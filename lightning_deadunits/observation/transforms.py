"""Tensors inside of ``torch.func`` transforms: which axes their values have outside of them.

``torch.vmap`` hides an axis from the model. Mapped over stacked weights (an ensemble) that axis
tells members apart, and belongs to the units; mapped over inputs alone it tells samples apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch import pyfunctorch

from lightning_deadunits.observation.lineage.axes import Axes

_functorch = torch._C._functorch


COMPILED_TRANSFORM = (
    "it runs inside a torch.func transform within a compiled region, where members and samples "
    "cannot be told apart; count it without torch.compile"
)


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether ``torch.vmap`` hides an axis of a tensor; Dynamo can trace it."""
    return bool(_functorch.is_batchedtensor(tensor))


def is_wrapped(tensor: Any) -> bool:
    """Tell whether a tensor stands for another one that a transform works on."""
    return bool(_functorch.is_functorch_wrapped_tensor(tensor))


def outside(tensor: Tensor) -> Tensor:
    """Return the tensor that a wrapped one stands for."""
    while is_wrapped(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def levels_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the levels of ``vmap`` that hide an axis of a tensor."""
    levels = []
    while is_wrapped(tensor):
        if _functorch.is_batchedtensor(tensor):
            levels.append(_functorch.maybe_get_level(tensor))
        tensor = _functorch.get_unwrapped(tensor)
    return tuple(levels)


def unwrapped(tensor: Tensor, axes: Axes, members: tuple[int, ...]) -> tuple[Tensor, Axes]:
    """Return the values outside of all transforms, and where the units are there.

    Args:
        tensor: What the model sees.
        axes: Axes that index the units there.
        members: Levels of ``vmap`` that are mapped over stacked weights.
    """
    units = list(axes)
    while is_wrapped(tensor):
        if _functorch.is_batchedtensor(tensor):
            hidden, level = _functorch.maybe_get_bdim(tensor), _functorch.maybe_get_level(tensor)
            units = [axis + (axis >= hidden) for axis in units]
            if level in members:
                units.append(hidden)
        tensor = _functorch.get_unwrapped(tensor)
    return tensor, tuple(sorted(units))


def outside_of_transforms() -> AbstractContextManager[Any]:
    """Run what is none of the model's business as if no transform were under way."""
    # Not public; without it our sums would be wrapped, too, and refused as such.
    clear = getattr(pyfunctorch, "temporarily_clear_interpreter_stack", nullcontext)
    context: AbstractContextManager[Any] = clear()
    return context
