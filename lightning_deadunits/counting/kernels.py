"""Triton kernels that count in one read of an activation, without a temporary of its size.

They work on the bits of the values, so that no rounding, flushing of denormals or conversion of
types plays a part: without the sign, bits of floating point numbers are ordered as their magnitudes
are, from zero over the finite ones and infinity to NaN.

Imported only where Triton is: see :mod:`lightning_deadunits.counting.device`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton compiles the bodies: what it must see is annotated, and no name of Python's is used.
# Arguments that are no constants have no annotation: Triton evaluates it, and knows no `Any`.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"


@triton.jit(do_not_specialize=["rows", "rows_each", "zero"])
def count_rows(
    bits, out, rows, units, after, rows_each, zero,
    magnitude: tl.constexpr, infinite: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Count for one unit, some rows of ``(rows, units, after)``: many values in a row each."""
    unit = tl.program_id(0)
    first = tl.program_id(1) * rows_each
    offsets = tl.arange(0, block)
    fired = tl.zeros([block], tl.int32)
    odd = tl.zeros([block], tl.int32)
    step = (tl.full([], 0, tl.int64) + units) * after
    start = bits + first * step + (tl.full([], 0, tl.int64) + unit) * after
    for _ in range(tl.minimum(rows_each, rows - first)):
        for left in range(0, after, block):
            values = tl.load(start + left + offsets, mask=left + offsets < after, other=0)
            size = values & magnitude
            fired += (size > zero).to(tl.int32)
            odd += (size >= infinite).to(tl.int32)
        start += step
    tl.atomic_add(out + unit, tl.sum(fired).to(tl.int64))
    total = tl.sum(odd)
    tl.atomic_add(out + units, total.to(tl.int64), mask=total > 0)


@triton.jit(do_not_specialize=["rows", "rows_each", "zero"])
def count_columns(
    bits, out, rows, units, after, rows_each, zero,
    magnitude: tl.constexpr, infinite: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
) -> None:  # fmt: skip
    """Count for some columns of ``(rows, units * after)``, some rows: few values of a unit each."""
    columns = units * after
    column = tl.program_id(0) * width + tl.arange(0, width)
    first = tl.program_id(1) * rows_each
    fired = tl.zeros([height, width], tl.int32)
    odd = tl.zeros([height, width], tl.int32)
    for top in range(0, rows_each, height):
        row = first + top + tl.arange(0, height)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        places = row[:, None].to(tl.int64) * columns + column[None, :]
        size = tl.load(bits + places, mask=inside, other=0) & magnitude
        fired += (size > zero).to(tl.int32)
        odd += (size >= infinite).to(tl.int32)
    tl.atomic_add(out + column // after, tl.sum(fired, 0).to(tl.int64), mask=column < columns)
    total = tl.sum(odd)
    tl.atomic_add(out + units, total.to(tl.int64), mask=total > 0)
