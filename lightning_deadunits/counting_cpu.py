"""The same counts in host memory, for little more than one read of the activation.

``(x == 0).sum()`` takes twenty times as long there: torch vectorises neither the cast of a
comparison to bool nor the sum of bools. A copy into bools is vectorised and writes one byte per
value, and eight such bytes are added at once as one int64, exactly, for up to 255 rows.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 1 << 17
"""Values per piece and thread: 512 KiB of float32, which stays in a core's cache."""
_LANE = 255
"""Rows that one byte can count."""
_WORD = 8
_FLOATS = 1 << 16
_EXACT = 1 << 24
"""Whole numbers below it add up exactly in float32."""
_VIEWS = 256
_UNSUMMED = 8


class _Geometry(NamedTuple):
    """A dense activation as ``(rows, units, after)``.

    Several rows are folded into a long one where there are more than a byte can count: ``folds``
    are pairs of how many long rows, and how many rows in each.
    """

    rows: int
    units: int
    after: int
    folds: tuple[tuple[int, int], ...]


class Columns(NamedTuple):
    """Counts of what is not zero per column, before they are summed per unit.

    They are summed later, for that is the same for all layers of a pass and need not be done in the
    middle of it, when neither code nor data are in the caches.

    Attributes:
        parts: For each of ``geometry.folds`` a byte per column of its long rows.
        geometry: Shape of the activation.
        nonfinite: How many values are not finite.
    """

    parts: list[Tensor]
    geometry: _Geometry
    nonfinite: int

    @property
    def observations(self) -> int:
        """Values per unit."""
        return self.geometry.rows * self.geometry.after

    def nonzeros(self) -> Tensor:
        """Return how many values of every unit are not zero, int64 of shape ``(U,)``."""
        _, units, after, folds = self.geometry
        sums = [_units_of(*part, units, after) for part in zip(self.parts, folds, strict=True)]
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)

    def unsummed(self) -> tuple[Tensor, int]:
        """Return what is not zero as whole numbers, some times in a row for every unit."""
        _, units, after, folds = self.geometry
        if after > 1 or len(folds) > 1 or folds[0][1] > _UNSUMMED:
            return self.nonzeros(), 1
        return self.parts[0].view(torch.uint8)[: folds[0][1] * units], folds[0][1]


def columns_on_cpu(activation: Tensor, unit_dims: tuple[int, ...], atol: float) -> Columns:
    """Count what is not zero.

    Args:
        activation: A plain floating point tensor on the CPU with at least one value.
        unit_dims: Axes, ascending and non-negative, that together index the units.
        atol: Values with ``|a| <= atol`` count as zero.
    """
    if atol == 0 and activation.is_contiguous():
        known = _SCRATCH.small.get((activation.shape, unit_dims))
        if known is not None:
            flags, words, geometry = known
            lanes, nonfinite = _one_piece(activation, 0.0, flags, words, None)
            return Columns([lanes], geometry, nonfinite)
    dense, where = _as_dense(activation, unit_dims)
    columns = _columns(dense, where, atol)
    if dense is activation and len(columns.parts) == 1:
        _SCRATCH.remember(activation.shape, unit_dims, columns.geometry)
    return columns


def _columns(dense: Tensor, unit_dims: tuple[int, ...], atol: float) -> Columns:
    geometry = _geometry(dense.shape, unit_dims)
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


@functools.lru_cache(maxsize=1024)
def _geometry(shape: torch.Size, unit_dims: tuple[int, ...]) -> _Geometry:
    first, last = unit_dims[0], unit_dims[-1]
    rows = shape[:first].numel()
    folds, left = [], rows
    while left:
        fold = -(-left // _LANE)
        folds.append((left // fold, fold))
        left %= fold
    units, after = shape[first : last + 1].numel(), shape[last + 1 :].numel()
    return _Geometry(rows, units, after, tuple(folds))


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
    budget = PIECE * torch.get_num_threads()
    if height * width <= budget:
        flags, words = _SCRATCH.flags(height, width)
        return _one_piece(table, atol, flags, words, None)
    lanes = torch.empty(-(-width // _WORD), dtype=torch.int64, device="cpu")
    step = max(_WORD, budget // height // _WORD * _WORD)
    nonfinite = 0
    for left in range(0, width, step):
        piece = table[:, left : left + step]
        flags, words = _SCRATCH.flags(height, piece.shape[1])
        out = lanes[left // _WORD : (left + step) // _WORD]
        nonfinite += _one_piece(piece, atol, flags, words, out)[1]
    return lanes, nonfinite


def _one_piece(
    piece: Tensor, atol: float, flags: Tensor, words: Tensor, out: Tensor | None
) -> tuple[Tensor, int]:
    if atol == 0:
        flags.copy_(piece)
    else:
        shrunk = _SCRATCH.like(piece)
        flags.copy_(torch.hardshrink(piece, atol, out=shrunk))
    # The sum is finite only if every value is. It is in host memory: nothing is waited for.
    total = piece.sum(dtype=torch.float32) if piece.dtype == torch.float16 else piece.sum()
    nonfinite = 0
    if not math.isfinite(total.item()):
        nonfinite = piece.numel() - int(piece.isfinite().sum())
    return torch.sum(words, 0, out=out), nonfinite


def _units_of(lanes: Tensor, shape: tuple[int, int], units: int, after: int) -> Tensor:
    """Sum what the columns counted over the columns of each unit: int64 of shape ``(units,)``."""
    fold = shape[1]
    width = fold * units * after
    counts = lanes.view(torch.uint8)
    if len(counts) != width:
        counts = counts[:width]
    if after > 1:
        counts = _sum_rows(counts.view(fold * units, after))
    return (
        counts.to(torch.int64) if fold == 1 else counts.view(fold, units).sum(0, dtype=torch.int64)
    )


def _sum_rows(counts: Tensor) -> Tensor:
    """Sum the rows of a table of bytes, exactly, by way of the vectorised sums of floats."""
    rows, width = counts.shape
    if width * _LANE >= _EXACT:
        return counts.sum(1, dtype=torch.int64)
    sums = torch.empty(rows, dtype=torch.float32, device="cpu")
    step = max(1, _FLOATS // width)
    for top in range(0, rows, step):
        values = counts[top : top + step].to(torch.float32)
        # A product with ones: torch's own sum takes four times as long where rows are short.
        torch.mv(values, _SCRATCH.ones(width), out=sums[top : top + step])
    return sums


class _Scratch(threading.local):
    """Memory of each thread that pieces are counted in; getting it anew would cost more."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.bool, device="cpu")
        self._ones = torch.empty(0, dtype=torch.float32, device="cpu")
        self._values: dict[torch.dtype, Tensor] = {}
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.small: dict[tuple[torch.Size, tuple[int, ...]], tuple[Tensor, Tensor, _Geometry]] = {}

    def flags(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return a bool per value, and the same memory with eight of them in an int64."""
        views = self._views.get((height, width))
        if views is None:
            views = self._views[height, width] = self._make(height, width)
        return views

    def remember(self, shape: torch.Size, unit_dims: tuple[int, ...], geometry: _Geometry) -> None:
        """Keep what a contiguous activation of one piece is copied to: most have a known shape."""
        height, fold = geometry.folds[0]
        width = fold * geometry.units * geometry.after
        if width % _WORD == 0 and height * width <= PIECE * torch.get_num_threads():
            flags, words = self.flags(height, width)
            with torch.inference_mode(False):
                self.small[shape, unit_dims] = flags.view(shape), words, geometry

    def like(self, piece: Tensor) -> Tensor:
        """Return memory for a piece."""
        values = self._values.get(piece.dtype)
        if values is None or values.numel() < piece.numel():
            with torch.inference_mode(False):
                values = torch.empty(piece.numel(), dtype=piece.dtype, device="cpu")
            self._values[piece.dtype] = values
        return values[: piece.numel()].view(piece.shape)

    def ones(self, length: int) -> Tensor:
        """Return a vector of ones."""
        if len(self._ones) < length:
            with torch.inference_mode(False):
                self._ones = torch.ones(length, dtype=torch.float32, device="cpu")
        return self._ones[:length]

    def _make(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        padded = -(-width // _WORD) * _WORD
        # An inference tensor could not be written to by a later pass in another mode.
        with torch.inference_mode(False):
            if self._bytes.numel() < height * padded or len(self._views) >= _VIEWS:
                self._views.clear()
                self.small.clear()
                size = max(self._bytes.numel(), height * padded)
                # Zeros: the bytes between rows are summed, too, and thrown away.
                self._bytes = torch.zeros(size, dtype=torch.bool, device="cpu")
            flags = self._bytes[: height * padded].view(height, padded)
            return flags[:, :width], flags.view(torch.int64)


_SCRATCH = _Scratch()
