"""The same counts in host memory, for the price of about one ReLU.

``(x == 0).sum()`` takes ten times as long there: torch vectorises neither the cast of a comparison
to bool nor the sum of bools. Comparing into floats that stay in the cache and summing those is
exact, for a piece has far fewer than 2**24 values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 1 << 17
"""Values per piece and thread: 512 KiB of float32, which stays in a core's cache."""


def count_on_cpu(activation: Tensor, unit_dims: tuple[int, ...], atol: float) -> tuple[Tensor, int]:
    """Count as :func:`lightning_deadunits.counting.count_values` does.

    Args:
        activation: A plain floating point tensor on the CPU with at least one value.
        unit_dims: Axes, ascending and non-negative, that together index the units.
        atol: Values with ``|a| <= atol`` count as zero.
    """
    blocks = _as_blocks(activation, unit_dims)
    budget = PIECE * torch.get_num_threads()
    if activation.numel() <= budget:
        zeros, nonfinite = _count_piece(blocks, atol, torch.empty(blocks.shape))
        return zeros.to(torch.int64), nonfinite
    # float64 adds up whole numbers exactly to 2**53.
    sums, nonfinite = torch.zeros(blocks.shape[1], dtype=torch.float64), 0
    flags = torch.empty(0)
    for first, piece in _pieces(blocks, budget):
        if flags.shape != piece.shape:
            flags = torch.empty(piece.shape)
        zeros, of_piece = _count_piece(piece, atol, flags)
        sums[first : first + piece.shape[1]] += zeros
        nonfinite += of_piece
    return sums.to(torch.int64), nonfinite


def _count_piece(piece: Tensor, atol: float, flags: Tensor) -> tuple[Tensor, int]:
    """Return the zeros per unit, as floats, and how many values are not finite.

    A piece has shape ``(A, U)`` or ``(A, U, B)``.
    """
    if atol == 0:
        torch.eq(piece, 0, out=flags)
    else:
        torch.le(piece.abs(), atol, out=flags)
    zeros = flags.sum(0) if flags.ndim == 2 else flags.sum((0, 2))
    # The sum is finite only if every value is. It is in host memory: nothing is waited for.
    if math.isfinite(piece.sum(dtype=torch.float32).numpy()):
        return zeros, 0
    return zeros, piece.numel() - int(piece.isfinite().sum().numpy())


def _as_blocks(activation: Tensor, unit_dims: tuple[int, ...]) -> Tensor:
    """View (or else copy) the activation as ``(A, U)`` or ``(A, U, B)``, contiguous."""
    if activation.is_contiguous():
        first, last = unit_dims[0], unit_dims[-1]
        if last - first + 1 == len(unit_dims):
            return _merged(activation, first, last)
    strides = activation.stride()
    order = sorted(range(activation.ndim), key=lambda dim: -strides[dim])
    dense, where = activation.permute(order), [order.index(dim) for dim in unit_dims]
    if dense.is_contiguous() and where == list(range(where[0], where[0] + len(where))):
        return _merged(dense, where[0], where[-1])
    others = [dim for dim in range(activation.ndim) if dim not in unit_dims]
    copy = activation.permute(*others, *unit_dims).contiguous()
    return _merged(copy, len(others), activation.ndim - 1)


def _merged(dense: Tensor, first: int, last: int) -> Tensor:
    """View a contiguous tensor with axes ``first`` to ``last`` as one, and those around them."""
    shape = dense.shape
    units = shape[first] if first == last else shape[first : last + 1].numel()
    if last == dense.ndim - 1:
        return dense.view(-1, units)
    return dense.view(shape[:first].numel(), units, -1)


def _pieces(blocks: Tensor, budget: int) -> Iterator[tuple[int, Tensor]]:
    """Cut blocks into cache-sized pieces, each with the index of its first unit."""
    before, units = blocks.shape[:2]
    after = blocks[0, 0].numel()
    if units * after <= budget:
        step = budget // (units * after)
        for top in range(0, before, step):
            yield 0, blocks[top : top + step]
        return
    step = max(1, budget // after)
    for row in range(before):
        for first in range(0, units, step):
            yield first, blocks[row : row + 1, first : first + step]
