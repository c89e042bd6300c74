"""Where units are made: the unit axes of what a convolution, linear layer or norm returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_deadunits.observation.axes import Args, Axes, KnownAxes, Kwargs, Producer


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
    if not of_left and of_right and right.ndim - 1 in of_right:
        # The left one mixes rows only (a graph's neighbours): the features stay what they are.
        shift = out.ndim - right.ndim
        return tuple(axis + shift for axis in of_right if axis != right.ndim - 2)
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
        axes = None if isinstance(operand, nn.Parameter) else known.axes(operand)
        if axes is not None:
            data |= set(letters)
            units |= {letters[axis] for axis in axes}
    if not data:
        given = zip(inputs.split(","), operands, strict=True)
        data = set(next((ls for ls, o in given if not isinstance(o, nn.Parameter)), ""))
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
    F.unfold: _second,
    F.scaled_dot_product_attention: _of_value,
}
