"""Counts in host memory, for little more than one read of the activation.

``(x == 0).sum()`` takes twenty times as long there: torch vectorises neither the cast of a
comparison to bool nor the sum of bools. A copy into bools is vectorised and writes one byte per
value, and eight such bytes are added at once as one int64, exactly, for up to 255 rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_deadunits.counting.columns import Columns
from lightning_deadunits.counting.geometry import geometry_of
from lightning_deadunits.counting.scratch import SCRATCH, WORD

PIECE = 1 << 17
"""Values per piece and thread: 512 KiB of float32, which stays in a core's cache."""


def columns_on_cpu(activation: Tensor, unit_dims: tuple[int, ...], atol: float) -> Columns:
    """Count what is not zero.

    Args:
        activation: A plain floating point tensor on the CPU with at least one value.
        unit_dims: Axes, ascending and non-negative, that together index the units.
        atol: Values with ``|a| <= atol`` count as zero.
    """
    dense, where = _as_dense(activation, unit_dims)
    geometry = geometry_of(dense.shape, where)
    row = geometry.units * geometry.after
    if len(geometry.folds) == 1:
        height, fold = geometry.folds[0]
        lanes, nonfinite = _lanes(dense.view(height, fold * row), atol)
        return Columns([lanes], geometry, nonfinite)
    flat, parts, start, nonfinite = dense.view(-1), [], 0, 0
    for height, fold in geometry.folds:
        end = start + height * fold * row
        lanes, of_part = _lanes(flat[start:end].view(height, fold * row), atol)
        parts.append(lanes)
        start, nonfinite = end, nonfinite + of_part
    return Columns(parts, geometry, nonfinite)


def _as_dense(activation: Tensor, unit_dims: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """View (or else copy) the activation contiguously, its unit axes next to each other."""
    adjacent = unit_dims[-1] - unit_dims[0] + 1 == len(unit_dims)
    if adjacent and activation.is_contiguous():
        return activation, unit_dims
    strides = activation.stride()
    order = sorted(range(activation.ndim), key=lambda dim: -strides[dim])
    dense, where = activation.permute(order), tuple(order.index(dim) for dim in unit_dims)
    if dense.is_contiguous() and where == tuple(range(where[0], where[0] + len(where))):
        return dense, where
    others = [dim for dim in range(activation.ndim) if dim not in unit_dims]
    copy = activation.permute(*others, *unit_dims).contiguous()
    return copy, tuple(range(len(others), activation.ndim))


def _lanes(table: Tensor, atol: float) -> tuple[Tensor, int]:
    """Count what is not zero in every column of a table of at most 255 rows.

    Returns:
        One byte per column, padded to whole words; and how many values are not finite.
    """
    height, width = table.shape
    budget = _budget()
    if height * width <= budget:
        flags, words = SCRATCH.flags(height, width)
        return _one_piece(table, atol, flags, words, None)
    lanes = torch.empty(-(-width // WORD), dtype=torch.int64, device="cpu")
    step = max(WORD, budget // height // WORD * WORD)
    nonfinite = 0
    for left in range(0, width, step):
        piece = table[:, left : left + step]
        flags, words = SCRATCH.flags(height, piece.shape[1])
        out = lanes[left // WORD : (left + step) // WORD]
        nonfinite += _one_piece(piece, atol, flags, words, out)[1]
    return lanes, nonfinite


def _budget() -> int:
    """Return how many values are counted at once."""
    return PIECE * torch.get_num_threads()


def _one_piece(
    piece: Tensor, atol: float, flags: Tensor, words: Tensor, out: Tensor | None
) -> tuple[Tensor, int]:
    if atol == 0:
        flags.copy_(piece)
    else:
        shrunk = SCRATCH.like(piece)
        flags.copy_(torch.hardshrink(piece, atol, out=shrunk))
    return torch.sum(words, 0, out=out), _nonfinite(piece)


def _nonfinite(piece: Tensor) -> int:
    """Return how many values are not finite: none, if their sum is finite."""
    # It is in host memory: nothing is waited for.
    total = piece.sum(dtype=torch.float32) if piece.dtype == torch.float16 else piece.sum()
    return 0 if math.isfinite(total.item()) else piece.numel() - int(piece.isfinite().sum())
