"""How the unit axes of a tensor follow from those of what a function was given.

``PRODUCERS`` make units (a convolution, a linear layer, a norm); ``MOVES`` carry their axes
elsewhere (permute, reshape, indexing, reductions); everything else keeps them where they are.
Axes are ascending and non-negative; several of them index the units together, as after a head
split ``(N, T, H * D) -> (N, T, H, D)``. ``()`` means that the units are gone (a sum over them),
None that nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Axes = tuple[int, ...]
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


class KnownAxes(Protocol):
    """What a producer may ask: the unit axes of one of its arguments."""

    def axes(self, tensor: Tensor) -> Axes | None:
        """Return the unit axes of a tensor."""


Producer = Callable[[KnownAxes, Args, Kwargs, Tensor], "Axes | None"]
Move = Callable[[Axes, Tensor, Args, Kwargs, Tensor], "Axes | None"]


# --- producers ------------------------------------------------------------------------------


def _last(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    return (out.ndim - 1,) if out.ndim else None


def _second(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    return (1,) if out.ndim > 1 else None


def _before_space(spatial: int) -> Producer:
    """A convolution's channels stand right before its spatial axes, batched or not."""

    def channels(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
        return (out.ndim - 1 - spatial,)

    return channels


def _normalised(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """LayerNorm leaves the units where they are, and makes the last axis one where none is."""
    source = args[0] if args else kwargs["input"]
    return known.axes(source) or _last(known, args, kwargs, out)


def _product(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``a @ b``: rows come from ``a``, columns from ``b``; what is unknown is the weight."""
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if len(operands) < 2 or out.ndim == 0:
        return None
    left, right = operands[-2:]
    of_left, of_right = known.axes(left), known.axes(right)
    if isinstance(right, nn.Parameter) or (of_right is None and not isinstance(left, nn.Parameter)):
        return (out.ndim - 1,)
    if isinstance(left, nn.Parameter) or of_left is None:
        return (max(0, out.ndim - 2) if right.ndim > 1 else out.ndim - 1,)
    assert of_right is not None
    batch = {axis + out.ndim - left.ndim for axis in of_left if axis < left.ndim - 1}
    batch |= {axis + out.ndim - right.ndim for axis in of_right if axis != right.ndim - 2}
    return tuple(sorted(axis for axis in batch if 0 <= axis < out.ndim))


def _einsum(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Letters that only a weight brings, or that index units already, index the units."""
    if not isinstance(args[0], str) or "->" not in args[0] or "." in args[0]:
        return None
    inputs, result = args[0].replace(" ", "").split("->")
    operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
    data: set[str] = set()
    units: set[str] = set()
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        axes = known.axes(operand)
        if axes is not None:
            data |= set(letters)
            units |= {letters[axis] for axis in axes}
    if not data:
        data = set(inputs.split(",")[0])
    fresh = units | (set(result) - data)
    return tuple(index for index, letter in enumerate(result) if letter in fresh)


def _of_value(known: KnownAxes, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Attention mixes positions of the values; their features stay where they are."""
    return known.axes(args[2] if len(args) > 2 else kwargs["value"])


PRODUCERS: dict[Callable[..., Any], Producer] = {
    **dict.fromkeys((F.linear, F.bilinear, F.embedding, F.embedding_bag), _last),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _last),
    **dict.fromkeys((torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell), _last),
    **dict.fromkeys((torch.rnn_relu_cell, F.multi_head_attention_forward), _last),
    **dict.fromkeys((F.conv1d, F.conv_transpose1d), _before_space(1)),
    **dict.fromkeys((F.conv2d, F.conv_transpose2d), _before_space(2)),
    **dict.fromkeys((F.conv3d, F.conv_transpose3d), _before_space(3)),
    **dict.fromkeys((F.batch_norm, F.instance_norm, F.group_norm), _second),
    **dict.fromkeys((torch.batch_norm, torch.instance_norm, torch.group_norm), _second),
    **dict.fromkeys((F.layer_norm, F.rms_norm, torch.layer_norm), _normalised),
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _product
    ),
    **dict.fromkeys(
        (torch.bmm, Tensor.bmm, Tensor.__rmatmul__, torch.addmm, Tensor.addmm), _product
    ),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _product),
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _of_value,
}


# --- moves ----------------------------------------------------------------------------------


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


def _keep(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """Keep the axes although the number of units changes: concat, split, pad, pixel shuffle."""
    return axes if out.ndim == source.ndim else None


def _reshape(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
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


def _permute(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    dims = kwargs.get("dims", args[1:])
    if len(dims) == 1 and isinstance(dims[0], (list, tuple)):
        dims = dims[0]
    order = [dim % source.ndim for dim in dims]
    return tuple(new for new, old in enumerate(order) if old in axes)


def _transpose(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    given = [*args[1:], *(value for value in kwargs.values() if isinstance(value, int))]
    return _swapped(axes, given[0] % source.ndim, given[1] % source.ndim)


def _transpose_last(
    axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor
) -> Axes | None:
    if source.ndim < 2:
        return axes
    return _swapped(axes, source.ndim - 2, source.ndim - 1)


def _swapped(axes: Axes, first: int, second: int) -> Axes:
    swap = {first: second, second: first}
    return tuple(sorted(swap.get(axis, axis) for axis in axes))


def _reverse(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    return tuple(sorted(source.ndim - 1 - axis for axis in axes))


def _move(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    start = kwargs.get("source", args[1] if len(args) > 1 else None)
    end = kwargs.get("destination", args[-1])
    starts = [start] if isinstance(start, int) else list(start)
    ends = [end] if isinstance(end, int) else list(end)
    places = {e % source.ndim: s % source.ndim for s, e in zip(starts, ends, strict=True)}
    rest = iter(axis for axis in range(source.ndim) if axis not in places.values())
    order = [places[axis] if axis in places else next(rest) for axis in range(source.ndim)]
    return tuple(new for new, old in enumerate(order) if old in axes)


def _reduce(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    given = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if given is None or isinstance(given, Tensor):
        return keep_same_rank(axes, source, args, kwargs, out) if out.ndim else ()
    dims = {dim % source.ndim for dim in ([given] if isinstance(given, int) else given)}
    left = [axis for axis in axes if axis not in dims]
    if out.ndim == source.ndim:
        return tuple(left)
    return tuple(axis - sum(dim < axis for dim in dims) for axis in left)


def _drop(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    """``select`` and ``unbind`` take one axis away."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % source.ndim
    return tuple(axis - (axis > dim) for axis in axes if axis != dim)


def _stack(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % out.ndim
    return tuple(axis + (axis >= dim) for axis in axes)


def _index(axes: Axes, source: Tensor, args: Args, kwargs: Kwargs, out: Tensor) -> Axes | None:
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


def _getter(name: str) -> Callable[..., Any]:
    """Return the function that a torch function mode is given for ``x.<name>``."""
    getter: Callable[..., Any] = getattr(Tensor, name).__get__
    return getter


_RESHAPES = (
    *(Tensor.reshape, torch.reshape, Tensor.view, Tensor.flatten, torch.flatten, Tensor.ravel),
    *(torch.ravel, Tensor.unflatten, torch.unflatten, Tensor.view_as, Tensor.reshape_as),
    *(Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze),
)
_TRANSPOSES = (
    *(Tensor.transpose, torch.transpose, Tensor.transpose_, Tensor.swapaxes, torch.swapaxes),
    *(Tensor.swapdims, torch.swapdims),
)
_TRANSPOSES_LAST = (
    *(Tensor.t, torch.t, Tensor.adjoint, torch.adjoint),
    *(_getter("mT"), _getter("mH")),
)
_REDUCTIONS = tuple(
    getattr(home, name)
    for home in (torch, Tensor)
    for name in (
        *("sum", "mean", "amax", "amin", "max", "min", "prod", "std", "var", "norm", "logsumexp"),
        *("median", "any", "all", "argmax", "argmin", "nansum", "nanmean", "count_nonzero", "mode"),
    )
)
_KEEPS = (
    *(torch.cat, torch.concat, torch.chunk, Tensor.chunk, torch.split, Tensor.split),
    *(Tensor.tensor_split, torch.tensor_split, Tensor.narrow, torch.narrow, F.pad, F.glu),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.interpolate, F.unfold, Tensor.repeat),
    *(torch.index_select, Tensor.index_select, Tensor.repeat_interleave, torch.repeat_interleave),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.channel_shuffle, torch.channel_shuffle),
)

MOVES: dict[Callable[..., Any], Move] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys((Tensor.permute, torch.permute), _permute),
    **dict.fromkeys(_TRANSPOSES, _transpose),
    **dict.fromkeys(_TRANSPOSES_LAST, _transpose_last),
    **dict.fromkeys((_getter("T"), _getter("H")), _reverse),
    **dict.fromkeys((torch.movedim, Tensor.movedim, torch.moveaxis, Tensor.moveaxis), _move),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys((Tensor.select, torch.select, Tensor.unbind, torch.unbind), _drop),
    **dict.fromkeys((torch.stack,), _stack),
    **dict.fromkeys((Tensor.__getitem__,), _index),
    **dict.fromkeys(_KEEPS, _keep),
}
