"""Convolutions and transposed convolutions, grouped or not."""

from __future__ import annotations

from collections.abc import Callable

from lightning_deadunits.reinit.operations.given import Given
from lightning_deadunits.reinit.operations.operation import Described, Operation, Where


def convolution(spatial: int, transposed: bool) -> Callable[[Given], Described | None]:
    """Return what describes a convolution.

    Args:
        spatial: Number of spatial axes.
        transposed: Whether it is a transposed one.
    """
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
