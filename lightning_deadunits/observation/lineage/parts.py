"""Words for parts: which of the units, or of some weights, an index or a cut has taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.identity import Descent
from lightning_deadunits.observation.lineage.axes import Axes
from lightning_deadunits.observation.lineage.axis_rules import consumes, items_of
from lightning_deadunits.observation.lineage.call import Invocation
from lightning_deadunits.observation.lineage.ways import axis_of

SELECTS = {torch.index_select, Tensor.index_select, torch.select, Tensor.select}
"""Functions that are given an axis, and then the places that they take."""
_NARROWS = {torch.narrow, Tensor.narrow}


def choice_of(call: Invocation) -> tuple[int, Any]:
    """Return along which axis a part is chosen, and which part: as an index, or a tuple of them."""
    args, kwargs = call.args, call.kwargs
    if call.function not in SELECTS and call.function not in _NARROWS:
        return 0, args[1]
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    if call.function in SELECTS:
        given = [*args[2:], *(value for key, value in kwargs.items() if key != "dim")]
        return dim % args[0].ndim, given[0]
    start = args[2] if len(args) > 2 else kwargs["start"]
    length = args[3] if len(args) > 3 else kwargs["length"]
    return dim % args[0].ndim, slice(start, start + length)


def places_chosen(call: Invocation, axes: Axes | None) -> list[tuple[Any, int]]:
    """Return the lists and tensors of places that choose among the units, in any order.

    Each with the size of the axis that it chooses from.
    """
    dim, index = choice_of(call)
    found = []
    for item in items_of(index, call.args[0].ndim):
        taken = consumes(item)
        if isinstance(item, (list, Tensor)) and any(dim + i in (axes or ()) for i in range(taken)):
            found.append((item, call.args[0].shape[dim]))
        dim += taken
    return found


def part_of_units(call: Invocation, known: Descent, source: Tensor) -> str:
    """Say which part of the units was taken: along which of their axes, if there are several."""
    axes = known.axes or ()
    if call.piece is not None:
        dim = (axis_of(call.function, call.args, call.kwargs) or 0) % source.ndim
        before = [axis for axis in axes if axis < dim and not known.sizes]
        word = _word_for(call.piece, source.shape[dim]) or "some"
        return ".".join([*["all"] * len(before), word])
    if known.sizes:
        return "some"
    words = ["all"] * len(axes)
    dim, index = choice_of(call)
    for item in items_of(index, source.ndim):
        if dim in axes and item is not None:
            words[axes.index(dim)] = _word_for(item, source.shape[dim]) or "some"
        dim += consumes(item)
    while words and words[-1] == "all":
        words.pop()
    return ".".join(words) or "some"


def taken_along(call: Invocation, axis: int, source: Tensor) -> tuple[int, int] | None:
    """Return which places of an axis are taken, from one up to another; None if that is no range.

    Args:
        call: A call that takes a part of a tensor.
        axis: The axis.
        source: The tensor.
    """
    size = source.shape[axis]
    if call.piece is not None:
        dim = (axis_of(call.function, call.args, call.kwargs) or 0) % source.ndim
        return _range(call.piece, size) if dim == axis else (0, size)
    dim, index = choice_of(call)
    for item in items_of(index, source.ndim):
        if item is not None and dim <= axis < dim + consumes(item):
            return _range(item, size)
        dim += consumes(item)
    return 0, size


def _range(item: Any, size: int) -> tuple[int, int] | None:
    if isinstance(item, int) and not isinstance(item, bool):
        return item % size, item % size + 1
    if isinstance(item, slice) and item.step in (None, 1):
        return _bounds(item, size)
    return None


def part_of_weights(dim: int, index: Any, shape: torch.Size) -> str | None:
    """Say which part of weights an index chooses, "" for all, None if that cannot be said."""
    words: list[str] = ["all"] * dim
    axis = dim
    for item in items_of(index, len(shape)):
        if item is None:
            continue
        word = _word_for(item, shape[axis], end=str(shape[axis]))
        if word is None:
            return None
        words.append(word)
        axis += 1
    while words and words[-1] == "all":
        words.pop()
    return ".".join(words)


def is_all(item: Any) -> bool:
    """Tell whether an item of an index leaves an axis, or several, as they are."""
    return item is Ellipsis or (isinstance(item, slice) and item == slice(None))


def is_list(index: Any) -> bool:
    """Tell whether an index lists places, in any order."""
    return any(
        isinstance(i, (Tensor, list)) for i in (index if isinstance(index, tuple) else (index,))
    )


def _word_for(item: Any, size: int, end: str = "") -> str | None:
    """Say which places an item of an index takes of an axis, ``end`` for up to the last one."""
    if isinstance(item, int) and not isinstance(item, bool):
        return str(item % size)
    if not isinstance(item, slice):
        return None
    start, stop = _bounds(item, size)
    step = "" if item.step in (None, 1) else f"_{item.step}"
    if start == 0 and stop == size and not step:
        return "all"
    return f"{start}_{end if stop == size else stop}{step}"


def _bounds(item: slice, size: int) -> tuple[int, int]:
    """Return start and stop of a slice, counted from the front; by hand, for Dynamo."""
    start = 0 if item.start is None else item.start
    stop = size if item.stop is None else item.stop
    start, stop = (bound + size if bound < 0 else bound for bound in (start, stop))
    return min(max(start, 0), size), min(max(stop, 0), size)
