"""Linear layers and matrix products with a parameter."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_deadunits.reinit.operations.given import Given
from lightning_deadunits.reinit.operations.letters import ABC, Letters, lettered
from lightning_deadunits.reinit.operations.operation import Described


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


def _contracted(
    given: Given, left: Tensor, right: Tensor, of_left: Any, of_right: Any
) -> Described | None:
    """Describe a sum over axes of both factors, whose others stand one after the other."""
    letters = [ABC[: left.ndim], ABC[left.ndim : left.ndim + right.ndim]]
    for a, b in zip(of_left, of_right, strict=True):
        letters[1] = letters[1].replace(letters[1][b], letters[0][a])
    out = "".join(letter for letter in "".join(letters) if "".join(letters).count(letter) == 1)
    return _of_two(given, left, right, letters[0], letters[1], out)


def _product(given: Given, left: Tensor, right: Tensor, bias: Any = None) -> Described | None:
    batch = ABC[: max(left.ndim, right.ndim, 2) - 2]
    of_left = batch[len(batch) - max(0, left.ndim - 2) :] + ("xk" if left.ndim > 1 else "k")
    of_right = batch[len(batch) - max(0, right.ndim - 2) :] + ("ky" if right.ndim > 1 else "k")
    out = batch + "x" * (left.ndim > 1) + "y" * (right.ndim > 1)
    return _of_two(given, left, right, of_left, of_right, out, bias)


def _of_two(
    given: Given,
    left: Tensor,
    right: Tensor,
    of_left: str,
    of_right: str,
    out: str,
    bias: Any = None,
) -> Described | None:
    """Describe a product of an activation with a parameter, None if it is of anything else."""
    if given.owns(left) == given.owns(right):
        return None
    if given.owns(right):
        return lettered(given, Letters(of_left, of_right, out), left, right, bias)
    return lettered(given, Letters(of_right, of_left, out), right, left, bias)
