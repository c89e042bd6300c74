"""Convolutions, grouped or not, transposed or not, and norms with or without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_deadunits.reinit.ops.operation import Described, Given, Operation, Where, unravel


def convolution(spatial: int, transposed: bool) -> Callable[[Given], Described | None]:
    """Return what describes a convolution."""
    last = ("output_padding", "groups") if transposed else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *last)

    def describe_it(given: Given) -> Described | None:
        x, weight, bias, *_, groups = given.bound(*names)
        if not given.owns(weight) or given.owns(x):
            return None
        read, made = x.ndim - 1 - spatial, given.out.ndim - 1 - spatial
        inputs, outputs = x.shape[read], given.out.shape[made]
        reads, makes = _weights(inputs, outputs, groups or 1, transposed)
        operation = Operation(
            "contraction", given.function, (read,), (inputs,), (made,), (outputs,),
            weight, bias, reads, makes,
        )  # fmt: skip
        return operation, [x]

    return describe_it


def _weights(
    inputs: int, outputs: int, groups: int, transposed: bool
) -> tuple[Callable[[int], Where], Callable[[int], Where]]:
    """Return which weights read a channel of the input, and which make one of the output.

    Axis 0 of the weight is one side's channels, axis 1 the other's within a group.
    """

    def plain(channel: int) -> Where:
        return {0: [channel]}

    def grouped(channel: int, own: int, others: int) -> Where:
        first = channel // own * others
        return {0: list(range(first, first + others)), 1: [channel % own]}

    within = (inputs // groups, outputs // groups)
    if transposed:
        return plain, lambda channel: grouped(channel, within[1], within[0])
    return lambda channel: grouped(channel, *within), plain


def norm(*names: str, mixes: bool) -> Callable[[Given], Described | None]:
    """Return what describes a norm."""

    def describe_it(given: Given) -> Described | None:
        named = dict(zip(names, given.bound(*names), strict=True))
        x = named["input"]
        axes = _axes(x.ndim, named.get("normalized_shape"))
        if x.ndim <= axes[-1]:
            return None
        sizes = tuple(x.shape[axis] for axis in axes)

        def per_channel(channel: int) -> Where:
            return {axis: [i] for axis, i in enumerate(unravel(channel, sizes))}

        weight, bias = (
            p if given.owns(p := named.get(key)) else None for key in ("weight", "bias")
        )
        mean, variance = named.get("running_mean"), named.get("running_var")
        operation = Operation(
            "norm", given.function, axes, sizes, axes, sizes, weight, bias,
            per_channel, per_channel, per_channel,
            # With one channel per group a group norm mixes none.
            mixes and named.get("num_groups") != sizes[0],
            running=None if mean is None or variance is None else (mean, variance),
            fixed=any(key in named and not named[key] for key in ("training", "use_input_stats")),
        )  # fmt: skip
        return operation, [x]

    return describe_it


def _axes(ndim: int, shape: Any) -> tuple[int, ...]:
    """Return the axes of the channels: the second, or the last ones of a normalised shape."""
    if shape is None:
        return (1,)
    count = 1 if isinstance(shape, int) else len(shape)
    return tuple(range(ndim - count, ndim))
