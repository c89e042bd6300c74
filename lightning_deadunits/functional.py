"""The maths of one activation: zero counts and rates. No state, no hooks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_deadunits.arguments import check_number, given
from lightning_deadunits.counting import count_values


def zero_counts(activation: Tensor, unit_dim: int = 1, atol: float = 0.0) -> tuple[Tensor, int]:
    """Count the zeros of every unit.

    A NaN or an infinity is not a zero.

    Args:
        activation: Output of one layer, shape ``(*, U, *)``, any real dtype.
        unit_dim: Axis of ``activation`` that indexes the units.
        atol: Values with ``|a| <= atol`` count as zero.

    Returns:
        Zeros per unit, int64 of shape ``(U,)``, and how many values each unit was seen at.

    Raises:
        ValueError: If ``unit_dim`` is not an axis of ``activation``, or ``atol`` is negative.
        TypeError: If ``activation`` is not a real tensor, or another argument no number.

    Example:
        >>> zero_counts(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), unit_dim=1)
        (tensor([2, 0]), 2)
    """
    check_atol(atol)
    axis = check_unit_dim(activation, unit_dim)
    zeros, _ = count_values(activation.detach(), (axis,), atol)
    return zeros, values_per_unit(activation, axis)


def zero_activation_rate(activation: Tensor, unit_dim: int = 1, atol: float = 0.0) -> Tensor:
    """Compute the zero-activation rate of every unit: the share of its values that are zero.

    The average percentage of zeros (APoZ) of Hu, Peng, Tai and Tang (2016), "Network Trimming:
    A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", as a fraction.

    Args:
        activation: Output of one layer, shape ``(*, U, *)``, any real dtype.
        unit_dim: Axis of ``activation`` that indexes the units.
        atol: Values with ``|a| <= atol`` count as zero.

    Returns:
        Rates in [0, 1], float32 of shape ``(U,)``; NaN where no value was seen. A unit that fired
        at all has a rate below 1, also where float32 would round it up.

    Raises:
        ValueError: If ``unit_dim`` is not an axis of ``activation``, or ``atol`` is negative.
        TypeError: If ``activation`` is not a real tensor, or another argument no number.

    Example:
        >>> zero_activation_rate(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        tensor([1.0000, 0.5000])
    """
    zeros, values = zero_counts(activation, unit_dim, atol)
    return rates(zeros, torch.as_tensor(values, device=zeros.device))


def rates(zeros: Tensor, observations: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Divide counts, such that only a unit that never fired has a rate of exactly 1.

    Args:
        zeros: Zeros per unit, int64 of shape ``(U,)``.
        observations: Values seen per unit, int64, a scalar or of shape ``(U,)``.
        dtype: Floating point type of the result.

    Returns:
        ``zeros / observations`` of shape ``(U,)``, NaN where ``observations`` is 0.

    Example:
        >>> rates(torch.tensor([2**30 - 1, 2**30]), torch.tensor(2**30)) == 1
        tensor([False,  True])
    """
    exact = zeros.cpu().double() / observations.cpu().double()
    rate = exact.to(dtype)
    below_one = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    rounded_up = (rate == 1) & (zeros.cpu() < observations.cpu())
    return torch.where(rounded_up, below_one, rate).to(zeros.device)


def check_atol(atol: float) -> None:
    """Raise unless ``atol`` is a finite number >= 0."""
    check_number("atol", atol, "a finite number >= 0", lambda it: 0.0 <= it < float("inf"))


def check_unit_dim(activation: Tensor, unit_dim: int) -> int:
    """Return ``unit_dim`` as a non-negative axis of a real tensor, or raise."""
    if not isinstance(activation, Tensor) or activation.is_complex():
        kind = activation.dtype if isinstance(activation, Tensor) else given(activation)
        raise TypeError(f"Expected `activation` to be a real tensor, but got {kind}.")
    if isinstance(unit_dim, bool) or not isinstance(unit_dim, int):
        raise TypeError(f"Expected `unit_dim` to be an int, but got {given(unit_dim)}.")
    if not -activation.ndim <= unit_dim < activation.ndim:
        raise ValueError(
            f"Expected `unit_dim` to be an axis of an activation of shape "
            f"{tuple(activation.shape)}, but got {unit_dim}."
        )
    return unit_dim % activation.ndim


def values_per_unit(activation: Tensor, axis: int) -> int:
    """Return how many values every unit has in one activation."""
    count = 1
    for other, size in enumerate(activation.shape):
        count *= 1 if other == axis else size
    return count
