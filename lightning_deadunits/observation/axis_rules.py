"""Where units go: how permutes, views, indexing and reductions carry their axes along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.axes import Args, Axes, Kwargs


def keep_same_rank(
    axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Axes | None:
    """Keep the axes through elementwise, pooling and broadcasting calls."""
    if out.shape == source.shape:
        return axes
    shift = out.ndim - source.ndim
    if shift < 0:
        return None
    moved = tuple(axis + shift for axis in axes)
    same = all(out.shape[axis + shift] == source.shape[axis] for axis in axes)
    return moved if same else None


def keep_rank(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Keep the axes although the number of units changes: concat, split, pad, pixel shuffle."""
    return axes if out.ndim == source.ndim else None


def reshape(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Follow a view or a reshape, see :func:`reshaped`."""
    return reshaped(axes, tuple(source.shape), tuple(out.shape))


def reshaped(axes: Axes, old: tuple[int, ...], new: tuple[int, ...]) -> Axes | None:
    """Map axes through a view: a new axis indexes units if it shares a stride range with them.

    Example:
        >>> reshaped((1,), (2, 3, 4, 4), (2, 48))  # flatten: features of channel x position
        (1,)
        >>> reshaped((2,), (2, 5, 12), (2, 5, 4, 3))  # split heads
        (2, 3)
        >>> reshaped((2,), (2, 5, 12), (10, 12))  # merge batch and positions
        (1,)
    """
    spans = _spans(old)
    units = [spans[axis] for axis in axes]
    moved = [
        axis
        for axis, (inner, outer) in enumerate(_spans(new))
        if any(inner < high and low < outer for low, high in units) and inner < outer
    ]
    return tuple(moved) if moved or not axes else None


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


def drop(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``select`` and ``unbind`` take one axis away."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % source.ndim
    return tuple(axis - (axis > dim) for axis in axes if axis != dim)


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


def getitem(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``x[...]`` with integers, slices, None, Ellipsis and at most one index tensor."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    consumed = sum(_consumes(item) for item in index)
    moved: list[int] = []
    old = new = advanced = 0
    for item in index:
        width = source.ndim - consumed if item is Ellipsis else _consumes(item)
        made = width if item is Ellipsis else _makes(item)
        advanced += isinstance(item, (Tensor, list))
        if made == width:
            moved += [new + axis - old for axis in axes if old <= axis < old + width]
        elif made and any(old <= axis < old + width for axis in axes):
            return None
        old, new = old + width, new + made
    moved += [new + axis - old for axis in axes if axis >= old]
    return tuple(moved) if advanced < 2 else None


def _consumes(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def _makes(item: Any) -> int:
    if isinstance(item, Tensor):
        return 1 if item.dtype == torch.bool else item.ndim
    return 0 if isinstance(item, int) else 1
