"""Exact counts of zeros and non-finite values of one activation, without waiting for a device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_deadunits.counting.columns import Columns
from lightning_deadunits.counting.device import DeviceColumns, columns_on_device
from lightning_deadunits.counting.host import columns_on_cpu


def count_values(
    activation: Tensor, unit_dims: tuple[int, ...], atol: float
) -> tuple[Tensor, Tensor | int]:
    """Count the zeros of every unit, and the non-finite values of all units together.

    Args:
        activation: Output of one layer, any dense layout, any real dtype, without a gradient.
        unit_dims: Axes, ascending and non-negative, that together index the units.
        atol: Values with ``|a| <= atol`` count as zero.

    Returns:
        Zeros, int64 of shape ``(U,)``, U the product over ``unit_dims``, on the activation's
        device; how many values are not finite, a number where that is known already, elsewhere
        int64 of shape ``()``.
    """
    columns = count_columns(activation, unit_dims, atol)
    if columns is not None:
        return columns.observations - columns.nonzeros(), columns.nonfinite
    return _count_at_once(activation, unit_dims, atol)


def count_columns(
    activation: Tensor, unit_dims: tuple[int, ...], atol: float
) -> Columns | DeviceColumns | None:
    """Count an eager tensor in host memory or on a CUDA device, to be summed later; else None."""
    if (
        torch.compiler.is_compiling()
        or type(activation) not in _PLAIN
        or not activation.is_floating_point()
        or activation.is_nested
        or torch._C._functorch.is_functorch_wrapped_tensor(activation)
    ):
        return None
    values = activation.detach() if activation.requires_grad else activation
    if activation.is_cpu:
        return columns_on_cpu(values, unit_dims, atol) if activation.numel() else None
    if not activation.is_cuda or not activation.numel() or is_captured(values):
        return None
    return columns_on_device(values, unit_dims, atol)


def is_captured(activation: Tensor) -> bool:
    """Tell whether a CUDA graph is being recorded: what is counted then is never seen again."""
    return activation.is_cuda and torch.cuda.is_current_stream_capturing()


def _count_at_once(
    activation: Tensor, unit_dims: tuple[int, ...], atol: float
) -> tuple[Tensor, Tensor]:
    # Inductor fuses all of this into the kernel that produced the activation.
    others = [dim for dim in range(activation.ndim) if dim not in unit_dims]
    is_zero = activation == 0 if atol == 0 else activation.abs() <= atol
    zeros = is_zero.sum(others) if others else is_zero.to(torch.int64)
    if activation.is_floating_point():
        nonfinite = (~torch.isfinite(activation)).sum()
    else:
        nonfinite = zeros.new_zeros(())
    return zeros.flatten(), nonfinite


_PLAIN = (Tensor, torch.nn.Parameter)
