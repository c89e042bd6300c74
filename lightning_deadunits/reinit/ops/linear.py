"""Linear layers, matrix products and einsums with a parameter, by the letters of their axes.

What all linear maps come to is a product of letters, as in ``torch.einsum``: an axis of what is
read or made that bears a letter of the weight indexes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_deadunits.observation.lineage.producers import spelled_out
from lightning_deadunits.reinit.ops.operation import (
    Described,
    Given,
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
    """Describe a product of an activation: the axes that bear a letter of the weight index it.

    The letters ``k`` and ``o`` are free besides :data:`ABC`.
    """
    place = _places(letters.weight, weight)
    of_bias = {} if bias is None else _places(letters.out[given.out.ndim - bias.ndim :], bias)
    read = tuple(a for letter, a in _places(letters.x, x).items() if letter in place)
    made = tuple(a for letter, a in _places(letters.out, given.out).items() if letter in place)
    read_sizes = tuple(x.shape[axis] for axis in read)
    made_sizes = tuple(given.out.shape[axis] for axis in made)
    of_read, of_made = [letters.x[axis] for axis in read], [letters.out[axis] for axis in made]
    operation = Operation(
        kind, given.function, read, read_sizes, made, made_sizes, weight, bias,
        lambda channel: _where(place, of_read, unravel(channel, read_sizes)),
        lambda channel: _where(place, of_made, unravel(channel, made_sizes)),
        lambda channel: _where(of_bias, of_made, unravel(channel, made_sizes)),
        scales=scales,
    )  # fmt: skip
    return operation, [x]


def _places(letters: str, tensor: Tensor) -> dict[str, int]:
    """Return the axis of each letter; one of size 1 is broadcast and indexes nothing."""
    return {letter: axis for axis, letter in enumerate(letters) if tensor.shape[axis] > 1}


def _where(place: dict[str, int], letters: list[str], index: list[int]) -> Where:
    return {place[a]: [i] for a, i in zip(letters, index, strict=True) if a in place}


def linear(given: Given) -> Described | None:
    """Describe ``F.linear``."""
    x, weight, bias = given.bound("input", "weight", "bias")
    if not given.owns(weight) or given.owns(x):
        return None
    batch = ABC[: x.ndim - 1]
    rows = weight.ndim - 1
    return lettered(
        given, Letters(batch + "k", "ok"[1 - rows :], batch + "o" * rows), x, weight, bias
    )


def bilinear(given: Given) -> Described | None:
    """Describe ``F.bilinear``: a contraction of the outer product of what it reads."""
    first, second, weight, bias = given.bound("input1", "input2", "weight", "bias")
    if not given.owns(weight) or given.owns(first) or given.owns(second):
        return None
    batch = ABC[: first.ndim - 1]
    letters = Letters(batch + "xy", "oxy", batch + "o")
    return lettered(given, letters, first.unsqueeze(-1) * second.unsqueeze(-2), weight, bias)


def embedding(given: Given) -> Described | None:
    """Describe a table of which rows are chosen, or summed: its columns make channels."""
    _, weight = given.bound("input", "weight")
    if not given.owns(weight) or given.kwargs.get("per_sample_weights") is not None:
        return None
    letters = Letters("v", "vo", ABC[: given.out.ndim - 1] + "o")
    return lettered(given, letters, weight.detach().new_zeros(0), weight)


def grouped(given: Given) -> Described | None:
    """Describe ``F.grouped_mm``: each row goes through one expert of several."""
    x, weight, bias = given.bound("mat_a", "mat_b", "bias", self="mat_a", mat2="mat_b")
    if not given.owns(weight) or given.owns(x) or bias is not None:
        return None
    return lettered(given, Letters("nk", "eko", "no"), x, weight) if x.ndim < weight.ndim else None


def matmul(given: Given) -> Described | None:
    """Describe ``left @ right``, one of which is a parameter."""
    left, right = given.bound("input", "other", mat2="other", vec="other")
    return _product(given, left, right)


def rmatmul(given: Given) -> Described | None:
    """Describe ``right.__rmatmul__(left)``."""
    right, left = given.bound("input", "other")
    return _product(given, left, right)


def addmm(given: Given) -> Described | None:
    """Describe ``bias + left @ right``."""
    bias, left, right = given.bound("input", "mat1", "mat2", batch1="mat1", batch2="mat2")
    if not given.owns(bias) or given.kwargs.get("beta", 1) != 1:
        return None
    return _product(given, left, right, bias)


def inner(given: Given) -> Described | None:
    """Describe ``torch.inner``: the last axis of both is summed over."""
    left, right = given.bound("input", "other")
    return _contracted(given, left, right, [left.ndim - 1], [right.ndim - 1])


def tensordot(given: Given) -> Described | None:
    """Describe ``torch.tensordot``."""
    left, right, dims = given.bound("a", "b", "dims")
    if dims is None or isinstance(dims, Tensor):
        return None
    if isinstance(dims, int):
        dims = (range(left.ndim - dims, left.ndim), range(dims))
    return _contracted(given, left, right, *dims)


def multi_dot(given: Given) -> Described | None:
    """Describe ``torch.linalg.multi_dot`` of two factors; of more, it is unknown."""
    (factors,) = given.bound("tensors")
    return _product(given, *factors) if len(factors) == 2 else None


def _contracted(
    given: Given, left: Tensor, right: Tensor, of_left: Any, of_right: Any
) -> Described | None:
    """Describe a sum over axes of both factors, whose others stand one after the other."""
    letters = [ABC[: left.ndim], ABC[left.ndim : left.ndim + right.ndim]]
    for a, b in zip(of_left, of_right, strict=True):
        letters[1] = letters[1].replace(letters[1][b], letters[0][a])
    out = "".join(letter for letter in "".join(letters) if "".join(letters).count(letter) == 1)
    return _of_two(given, left, right, Letters(letters[0], letters[1], out))


def _product(given: Given, left: Tensor, right: Tensor, bias: Any = None) -> Described | None:
    batch = ABC[: max(left.ndim, right.ndim, 2) - 2]
    of_left = batch[len(batch) - max(0, left.ndim - 2) :] + ("xk" if left.ndim > 1 else "k")
    of_right = batch[len(batch) - max(0, right.ndim - 2) :] + ("ky" if right.ndim > 1 else "k")
    out = batch + "x" * (left.ndim > 1) + "y" * (right.ndim > 1)
    return _of_two(given, left, right, Letters(of_left, of_right, out), bias)


def _of_two(
    given: Given, left: Tensor, right: Tensor, letters: Letters, bias: Any = None
) -> Described | None:
    """Describe a product of an activation with a parameter, None if it is of anything else.

    The letters are those of both as if the right one were the parameter.
    """
    if given.owns(left) == given.owns(right):
        return None
    if given.owns(right):
        return lettered(given, letters, left, right, bias)
    return lettered(given, Letters(letters.weight, letters.x, letters.out), right, left, bias)


def einsum(given: Given) -> Described | None:
    """Describe an einsum as a product of its parameter with all its activations."""
    equation, operands = given.args[0], given.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    owned = [given.owns(operand) for operand in operands]
    if not isinstance(equation, str) or sum(owned) != 1 or len(operands) < 2:
        return None
    parts, result = spelled_out(equation, operands)
    if any(len(set(part)) < len(part) for part in parts):
        return None
    weight = owned.index(True)
    letters, x = _merged(parts, operands, weight, result)
    return lettered(given, Letters(letters, parts[weight], result), x, operands[weight])


def _merged(
    parts: list[str], operands: tuple[Any, ...], weight: int, result: str
) -> tuple[str, Tensor]:
    """Return the product of all activations, summed over what neither weight nor result have."""
    others = [index for index in range(len(parts)) if index != weight]
    if len(others) == 1:
        return parts[others[0]], operands[others[0]]
    all_letters = "".join(dict.fromkeys("".join(parts[index] for index in others)))
    kept = "".join(letter for letter in all_letters if letter in parts[weight] + result)
    equation = ",".join(parts[index] for index in others) + "->" + kept
    return kept, torch.einsum(equation, *(operands[index] for index in others))
