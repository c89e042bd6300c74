"""Where units go: how permutes, views, indexing and reductions carry their axes along."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_deadunits.observation.lineage.axes import Args, Axes, Folded, Kwargs, Move


def keep_same_rank(
    axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Axes | None:
    """Keep the axes through elementwise, pooling and broadcasting calls."""
    if out.shape == source.shape:
        return axes
    shift = out.ndim - source.ndim
    if shift < 0 or (shift and not any(_has_rank(value, out.ndim) for value in args)):
        return None  # by broadcasting alone axes go further back
    moved = tuple(axis + shift for axis in axes)
    same = all(out.shape[axis + shift] == source.shape[axis] for axis in axes)
    return moved if same else None


def _has_rank(value: Any, ndim: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == ndim


def keep_rank(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Keep the axes although the number of units changes: concat, split, pad, pixel shuffle."""
    return axes if out.ndim == source.ndim else None


def reshape(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | Folded:
    """Follow a view or a reshape, see :func:`reshaped`."""
    return reshaped(axes, tuple(source.shape), tuple(out.shape))


def reshaped(axes: Axes, old: tuple[int, ...], new: tuple[int, ...]) -> Axes | Folded:
    """Map axes through a view: a new axis indexes units if it shares a stride range with them.

    Example:
        >>> reshaped((2,), (2, 5, 12), (2, 5, 4, 3))  # split heads
        (2, 3)
        >>> reshaped((2,), (2, 5, 12), (10, 12))  # merge batch and positions
        (1,)
        >>> reshaped((1,), (2, 3, 4, 4), (2, 48))  # flatten: features of channel x position
        (1,)
        >>> reshaped((2, 3), (2, 5, 4, 3), (5, 8, 3))  # merge batch and heads
        Folded(sizes=(2, 5, 4, 3), axes=(2, 3))
        >>> reshaped((1,), (2, 3), (3, 2))  # across samples
        Folded(sizes=(2, 3), axes=(1,))
    """
    spans = _spans(old)
    units = [spans[axis] for axis in axes]
    moved: list[int] = []
    for axis, (inner, outer) in enumerate(_spans(new)):
        shared, held = False, 1  # by hand: Dynamo traces no `math.prod`
        for low, high in units:
            low, high = max(inner, low), min(outer, high)
            if low < high:
                shared, held = True, held * (high // low)
        if not shared:
            continue
        moved.append(axis)
        flat = inner == 1 and outer == spans[0][0] and 0 not in axes
        if held != outer // inner and not flat:
            return _folded(axes, old, new)
    return tuple(moved) if moved or not axes else Folded(old, axes)


def _folded(axes: Axes, old: tuple[int, ...], new: tuple[int, ...]) -> Folded:
    """Return unit axes in a shape that both of two are made of, in the old one if there is none.

    Example:
        >>> _folded((1,), (2, 135), (10, 27))  # filters of each of two samples
        Folded(sizes=(2, 5, 27), axes=(1, 2))
    """
    if groups_of(old, new) is not None:
        return Folded(old, axes)
    units = [_spans(old)[axis] for axis in axes]
    sizes: list[int] = []
    held: list[bool] = []
    inner = 1
    for outer in sorted({outer for shape in (old, new) for _, outer in _spans(shape)} - {1}):
        if outer % inner:
            return Folded(old, axes)
        sizes.insert(0, outer // inner)
        held.insert(0, any(low <= inner and outer <= high for low, high in units))
        inner = outer
    return Folded(tuple(sizes), tuple([axis for axis, own in enumerate(held) if own]))


def carried(
    move: Move, units: Folded, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Folded | None:
    """Map axes through any move, those of a finer shape too."""
    if units.sizes and out is source and move is not keep_same_rank:
        return None  # in place: the source has its new shape already
    if not units.sizes:
        moved = move(units.axes, source, args, kwargs, out)
    elif move is reshape:
        moved = reshaped(units.axes, units.sizes, tuple(out.shape))
    elif move is keep_same_rank and out.shape == source.shape:
        return units
    else:
        return _axis_by_axis(move, units, source, args, kwargs, out)
    return moved if moved is None or isinstance(moved, Folded) else Folded((), moved)


def _axis_by_axis(
    move: Move, units: Folded, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Folded | None:
    """Have each axis of a tensor take those of the finer shape along, if it stays whole."""
    groups = groups_of(units.sizes, tuple(source.shape))
    if groups is None:
        return None
    home: dict[int, list[int]] = {}
    for axis, group in enumerate(groups):
        moved = move((axis,), source, args, kwargs, out)
        to = moved if moved is not None and not isinstance(moved, Folded) else ()
        if len(to) == 1 and out.shape[to[0]] == source.shape[axis]:
            home[to[0]] = group
        elif any(own in units.axes for own in group):
            return None
    sizes: list[int] = []
    axes: list[int] = []
    for axis, size in enumerate(out.shape):
        group = home.get(axis, [])
        axes += [len(sizes) + place for place, own in enumerate(group) if own in units.axes]
        sizes += [units.sizes[own] for own in group] or [size]
    return Folded(tuple(sizes), tuple(axes))


def groups_of(sizes: tuple[int, ...], shape: tuple[int, ...]) -> list[list[int]] | None:
    """Return which axes of a finer shape each axis is made of, None if they do not fit.

    Example:
        >>> groups_of((2, 3, 4, 4), (2, 48))
        [[0], [1, 2, 3]]
    """
    groups: list[list[int]] = []
    at = 0
    for size in shape:
        group: list[int] = []
        held = 1
        while at < len(sizes) and (held < size or (not group and sizes[at] == size)):
            group.append(at)
            held *= sizes[at]
            at += 1
        if held != size:
            return None
        groups.append(group)
    if groups:
        groups[-1].extend(range(at, len(sizes)))  # of size one
    return groups


def spread_over(units: Folded, shape: tuple[int, ...], touched: Iterable[int]) -> Folded:
    """Return unit axes after weights have been joined that are others along some axes.

    Where these hold positions beside units, each position is a unit of its own from now on.
    """
    groups = groups_of(units.sizes, shape)
    if groups is None:
        return units
    holds = [[own in units.axes for own in group] for group in groups]
    if all(all(holds[axis]) or not any(holds[axis]) for axis in touched):
        return units
    return Folded((), tuple(axis for axis, own in enumerate(holds) if any(own)))


def _spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return, per axis, the stride of a contiguous tensor and the same times the axis' size."""
    spans = []
    inner = 1
    for size in reversed(shape):
        spans.append((inner, inner * size))
        inner = inner * size
    return spans[::-1]


def permute(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``permute``: the axes go where its order puts them."""
    dims = kwargs.get("dims", args[1:])
    if len(dims) == 1 and isinstance(dims[0], (list, tuple)):
        dims = dims[0]
    order = [dim % source.ndim for dim in dims]
    return tuple(new for new, old in enumerate(order) if old in axes)


def transpose(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Swap two given axes."""
    given = [*args[1:], *(value for value in kwargs.values() if isinstance(value, int))]
    return _swapped(axes, given[0] % source.ndim, given[1] % source.ndim)


def transpose_last(
    axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Axes | None:
    """Swap the last two axes, as ``x.t()`` and ``x.mT`` do."""
    if source.ndim < 2:
        return axes
    return _swapped(axes, source.ndim - 2, source.ndim - 1)


def _swapped(axes: Axes, first: int, second: int) -> Axes:
    swap = {first: second, second: first}
    return tuple(sorted(swap.get(axis, axis) for axis in axes))


def reverse(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``x.T`` and ``x.H`` reverse all axes."""
    return tuple(sorted(source.ndim - 1 - axis for axis in axes))


def movedim(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``movedim``: some axes go to given places, the others keep their order."""
    start = kwargs.get("source", args[1] if len(args) > 1 else None)
    end = kwargs.get("destination", args[-1])
    starts = [start] if isinstance(start, int) else list(start)
    ends = [end] if isinstance(end, int) else list(end)
    places = {e % source.ndim: s % source.ndim for s, e in zip(starts, ends, strict=True)}
    rest = iter(axis for axis in range(source.ndim) if axis not in places.values())
    order = [places[axis] if axis in places else next(rest) for axis in range(source.ndim)]
    return tuple(new for new, old in enumerate(order) if old in axes)


def is_odd(move: Move, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> bool:
    """Tell whether a permutation swaps axes an odd number of times, as a transpose does."""
    return bool(_swaps(move, range(source.ndim), source, args, kwargs, out) % 2)


def reorders(
    move: Move, axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> bool:
    """Tell whether a permutation changes the order of some axes among themselves."""
    return _swaps(move, axes, source, args, kwargs, out) > 0


def _swaps(
    move: Move, axes: Iterable[int], source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> int:
    order: list[int] = []
    for axis in axes:
        moved = move((axis,), source, args, kwargs, out)
        order += [to for to in moved or () if isinstance(to, int)]
    return sum([a > b for i, a in enumerate(order) for b in order[i + 1 :]])


def reduce(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Drop the axes that a reduction sums over, whether it keeps them as ones or not."""
    given = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if source.ndim == 0:
        return ()
    if given is None or isinstance(given, (Tensor, str, float)):
        return keep_same_rank(axes, source, args, kwargs, out) if out.ndim else ()
    dims = {dim % source.ndim for dim in ([given] if isinstance(given, int) else given)}
    left = [axis for axis in axes if axis not in dims]
    if out.ndim == source.ndim:
        return tuple(left)
    return tuple(axis - sum(dim < axis for dim in dims) for axis in left)


def drop(
    axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Axes | Folded | None:
    """``select`` and ``unbind`` take one axis away."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % source.ndim
    return _one_unit(axes, tuple(axis - (axis > dim) for axis in axes if axis != dim), out)


def _one_unit(axes: Axes, left: Axes, out: Tensor) -> Axes | Folded:
    """Return the axes that are left after indexing, of which one taken unit has none."""
    return one_unit(out) if axes and not left else left


def one_unit(out: Tensor) -> Folded:
    """Return the unit axes of a tensor whose values are all of one unit."""
    return Folded((*out.shape, 1), (out.ndim,))


def unsqueeze_(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """In place: the source has its new shape already."""
    dim = kwargs.get("dim", args[-1]) % out.ndim
    return tuple(axis + (axis >= dim) for axis in axes)


def unfold(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``x.unfold`` puts the positions within a window last."""
    return axes


def stack(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``stack`` puts a new axis in."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % out.ndim
    return tuple(axis + (axis >= dim) for axis in axes)


def getitem(
    axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Axes | Folded | None:
    """``x[...]`` with integers, slices, None, Ellipsis and at most one index tensor."""
    moved: list[int] = []
    old = new = advanced = 0
    for item in items_of(args[1], source.ndim):
        width, made = consumes(item), _makes(item)
        advanced += not (item is None or isinstance(item, (int, slice)))
        if made == width:
            moved += [new + axis - old for axis in axes if old <= axis < old + width]
        elif made and any(old <= axis < old + width for axis in axes):
            return None
        old, new = old + width, new + made
    moved += [new + axis - old for axis in axes if axis >= old]
    return _one_unit(axes, tuple(moved), out) if advanced < 2 else None


def places_of(target: Tensor, index: Any) -> list[int | None]:
    """Return which axis of a tensor each axis of a part of it is, None for one that is another's.

    Example:
        >>> places_of(torch.zeros(2, 3, 4), (slice(None), slice(None), 0))
        [0, 1]
    """
    places: list[int | None] = []
    axis = 0
    for item in items_of(index, target.ndim):
        places += [axis] if isinstance(item, slice) else [None] * _makes(item)
        axis += consumes(item)
    return [*places, *range(axis, target.ndim)]


def items_of(index: Any, ndim: int) -> list[Any]:
    """Return the items of an index of a tensor, dots spelled out."""
    items = list(index) if isinstance(index, tuple) else [index]
    at = next((i for i, item in enumerate(items) if item is Ellipsis), None)
    if at is not None:
        taken = sum([consumes(item) for item in items])
        items[at : at + 1] = [slice(None)] * (ndim - taken)
    return items


def consumes(item: Any) -> int:
    """Return how many axes of a tensor an item of an index stands for; 0 for dots."""
    if item is None or item is Ellipsis:
        return 0
    return rank_of(item) if is_mask(item) else 1


def _makes(item: Any) -> int:
    if item is None or isinstance(item, slice):
        return 1
    return 1 if is_mask(item) else rank_of(item)


def is_mask(item: Any) -> bool:
    """Tell whether an item of an index is a mask, a tensor's or an array's."""
    if isinstance(item, Tensor):
        return item.dtype == torch.bool
    return isinstance(item, np.ndarray) and item.dtype == np.bool_


def rank_of(item: Any) -> int:
    """Return how many axes an item of an index has: a number, a tensor, an array or a list."""
    if isinstance(item, (list, tuple)):
        return 1 + (rank_of(item[0]) if item else 0)
    return int(getattr(item, "ndim", 0))
