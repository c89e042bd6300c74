"""``torch.einsum`` with one parameter and any number of activations."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.reinit.operations.given import Given
from lightning_deadunits.reinit.operations.letters import Letters, lettered
from lightning_deadunits.reinit.operations.operation import Described


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


def spelled_out(equation: str, operands: tuple[Any, ...]) -> tuple[list[str], str]:
    """Return the letters of the operands and of the result, without dots or an implicit result.

    Example:
        >>> spelled_out("...i,io", (torch.zeros(2, 3, 4), torch.zeros(4, 5)))
        (['ZYi', 'io'], 'ZYo')
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    parts = given.split(",")
    spare = [letter for letter in reversed(ascii_letters) if letter not in equation]
    free = [o.ndim - len(p) + 3 if "." in p else 0 for p, o in zip(parts, operands, strict=True)]
    dots = "".join(spare[: max(free)])
    if not arrow:
        single = sorted(x for x in set(given) - {",", "."} if given.count(x) == 1)
        result = "..." * ("." in given) + "".join(single)
    parts = [p.replace("...", dots[len(dots) - n :]) for p, n in zip(parts, free, strict=True)]
    return parts, result.replace("...", dots)


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
