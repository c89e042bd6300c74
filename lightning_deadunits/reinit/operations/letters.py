"""Products by the letters of their axes, as in ``torch.einsum``: what all linear maps come to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_deadunits.reinit.operations.given import Given
from lightning_deadunits.reinit.operations.operation import (
    Described,
    Kind,
    Operation,
    Where,
    unravel,
)

ABC = "abcdefghijklm"


class Letters(NamedTuple):
    """One letter per axis of what is read, of the weight, and of the result."""

    x: str
    weight: str
    out: str


def lettered(
    given: Given,
    letters: Letters,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kind: Kind = "contraction",
    scales: bool = False,
) -> Described:
    """Describe a product: the axes that bear a letter of the weight index it.

    Args:
        given: The call.
        letters: Those of its axes; ``k`` and ``o`` are free besides :data:`ABC`.
        x: The activation that it reads.
        weight: The weight.
        bias: The bias, if any.
        kind: What it does with the weight.
        scales: Whether it is a link that multiplies.
    """
    place = {letter: a for a, letter in enumerate(letters.weight) if weight.shape[a] > 1}
    read = _indexing(letters.x, x, place)
    made = _indexing(letters.out, given.out, place)
    read_sizes = tuple(x.shape[axis] for axis in read)
    made_sizes = tuple(given.out.shape[axis] for axis in made)

    def reads(channel: int) -> Where:
        index = unravel(channel, read_sizes)
        return {place[letters.x[axis]]: [i] for axis, i in zip(read, index, strict=True)}

    def makes(channel: int) -> Where:
        index = unravel(channel, made_sizes)
        return {place[letters.out[axis]]: [i] for axis, i in zip(made, index, strict=True)}

    def biases(channel: int) -> Where:
        if bias is None:
            return {}
        index = dict(zip(made, unravel(channel, made_sizes), strict=True))
        shift = given.out.ndim - bias.ndim
        axes = [axis for axis in range(bias.ndim) if bias.shape[axis] > 1]
        return {axis: [index[axis + shift]] for axis in axes if axis + shift in index}

    operation = Operation(
        kind, given.function, read, read_sizes, made, made_sizes,
        weight, bias, reads, makes, biases, scales=scales,
    )  # fmt: skip
    return operation, [x]


def _indexing(letters: str, tensor: Tensor, place: dict[str, int]) -> tuple[int, ...]:
    """Return the axes whose letters the weight has; one of size 1 is broadcast over them all."""
    return tuple(a for a, letter in enumerate(letters) if letter in place and tensor.shape[a] > 1)
