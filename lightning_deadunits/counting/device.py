"""Counts on a CUDA device: two kernels per activation, and nothing is waited for.

In plain torch, a comparison, its sum and three kernels for non-finite values would write and read
the activation's size again some six times. One kernel of Triton reads it once. Where there is no
Triton, or an activation is not dense, plain torch counts.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
_TILE = 4096
"""Values that a program looks at together."""
_LONG = 128
"""Values of a unit in a row from which on a program counts one unit only."""
_INDEX = 1 << 31
"""What the kernels count rows and columns up to: places are wider numbers."""
_WARPS = 8
_PROGRAMS = 2048
"""Programs to aim at, several for each multiprocessor: more would queue for the same sums."""


class DeviceColumns(NamedTuple):
    """Counts of one activation on its device.

    Attributes:
        packed: How many values of each unit are not zero, then how many of all are not finite,
            int64 of shape ``(U + 1,)``.
        observations: Values per unit.
    """

    packed: Tensor
    observations: int

    @property
    def device(self) -> torch.device:
        """Where the counts are."""
        return self.packed.device

    @property
    def nonfinite(self) -> Tensor:
        """How many values are not finite, int64 of shape ``()``."""
        return self.packed[-1]

    def nonzeros(self) -> Tensor:
        """Return how many values of every unit are not zero, int64 of shape ``(U,)``."""
        return self.packed[:-1]

    def unsummed(self) -> tuple[Tensor, int]:
        """Return all of it, for the counts of a pass are added up in one kernel."""
        return self.packed, 1


class _Plan(NamedTuple):
    """An activation in memory as ``(rows, units, after)``, and how programs share it."""

    rows: int
    units: int
    after: int
    rows_each: int
    grid: tuple[int, int]
    block: dict[str, int]


@functools.cache
def kernels() -> Any:
    """Return the kernels, None where there is no Triton that can be imported."""
    try:
        from lightning_deadunits.counting import kernels as found
    except Exception:  # absent, or at odds with this torch: plain torch counts as well
        return None
    return found


def columns_on_device(
    activation: Tensor, unit_dims: tuple[int, ...], atol: float
) -> DeviceColumns | None:
    """Count what is not zero; None if plain torch has to.

    Args:
        activation: A plain floating point tensor with at least one value, without a gradient.
        unit_dims: Axes, ascending and non-negative, that together index the units.
        atol: Values with ``|a| <= atol`` count as zero.
    """
    found = kernels()
    if found is None or activation.dtype not in _BITS:
        return None
    plan = _plan(activation.shape, activation.stride(), unit_dims)
    if plan is None:
        return None
    zero, magnitude, infinite = _bounds(activation.dtype, atol)
    packed = torch.zeros(plan.units + 1, dtype=torch.int64, device=activation.device)
    kernel = found.count_rows if "block" in plan.block else found.count_columns
    with _on(activation):
        kernel[plan.grid](
            activation.view(_BITS[activation.dtype]), packed, plan.rows, plan.units, plan.after,
            plan.rows_each, zero, magnitude=magnitude, infinite=infinite, **plan.block,
            num_warps=_WARPS,
        )  # fmt: skip
    return DeviceColumns(packed, plan.rows * plan.after)


def _on(activation: Tensor) -> Any:
    """Make a device the current one, on which Triton launches."""
    return torch.cuda.device(activation.device if activation.is_cuda else -1)


@functools.lru_cache(maxsize=4096)
def _plan(shape: torch.Size, strides: tuple[int, ...], unit_dims: tuple[int, ...]) -> _Plan | None:
    """Return how a dense activation is shared out; None if it is not dense, or its units are not.

    Example:
        >>> _plan(torch.Size([8, 16, 5, 5]), (400, 1, 80, 16), (1,))[:3]  # channels last
        (200, 16, 1)
    """
    order = sorted(range(len(shape)), key=lambda dim: (-strides[dim], -shape[dim]))
    expected = 1
    for dim in reversed(order):
        if shape[dim] != 1 and strides[dim] != expected:
            return None
        expected *= shape[dim]
    where = [order.index(dim) for dim in unit_dims]
    if where != list(range(where[0], where[0] + len(where))):
        return None
    sizes = [shape[dim] for dim in order]
    rows, units, after = (
        torch.Size(part).numel()
        for part in (sizes[: where[0]], sizes[where[0] : where[-1] + 1], sizes[where[-1] + 1 :])
    )
    return None if max(rows, units * after) >= _INDEX else _shared_out(rows, units, after)


def _shared_out(rows: int, units: int, after: int) -> _Plan:
    if after >= _LONG:
        block = min(_TILE, _power_of_two(after))
        rows_each = max(1, -(-rows * units // _PROGRAMS), -(-_TILE // after))
        return _Plan(
            rows, units, after, rows_each, (units, _chunks(rows, rows_each)), {"block": block}
        )
    columns = units * after
    width = min(256, _power_of_two(columns))
    height = max(1, _TILE // width)
    across = -(-columns // width)
    rows_each = -(-max(height, -(-rows * across // _PROGRAMS)) // height) * height
    shape = {"height": height, "width": width}
    return _Plan(rows, units, after, rows_each, (across, _chunks(rows, rows_each)), shape)


def _chunks(rows: int, rows_each: int) -> int:
    chunks = -(-rows // rows_each)
    assert chunks < 1 << 16  # as many as a grid takes on its second axis: see _PROGRAMS
    return chunks


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@functools.lru_cache(maxsize=256)
def _bounds(dtype: torch.dtype, atol: float) -> tuple[int, int, int]:
    """Return the bits of the largest zero, of everything but the sign, and of infinity.

    Example:
        >>> [hex(bits) for bits in _bounds(torch.bfloat16, 0.0)]
        ['0x0', '0x7fff', '0x7f80']
    """
    bits = _BITS[dtype]
    zero, infinite = torch.tensor([atol, torch.inf], dtype=dtype, device="cpu").view(bits).tolist()
    return zero, torch.iinfo(bits).max, infinite
