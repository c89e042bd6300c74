"""ZeroActivationRate: accumulates what functional counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_deadunits.arguments import check_number, explains_arguments
from lightning_deadunits.counting import count_values
from lightning_deadunits.functional import check_atol, check_unit_dim, rates, values_per_unit


class ZeroActivationRate(Metric):
    """Accumulate the zero-activation rate of every unit of one layer.

    The rate of a unit is the share of all values seen at it, over batches, positions and
    processes, that are zero (APoZ of Hu et al., 2016, "Network Trimming", as a fraction). Counts
    are int64 and stay so under ``set_dtype``; they are summed over processes, so the result is
    that of a single process.

    In a ``MetricCollection`` pass ``compute_groups=False`` when metrics of several layers have
    the same number of units: metrics of equal state would be merged after the first update.

    Args:
        num_units: Number of units of the layer.
        unit_dim: Axis of the activation that indexes the units.
        atol: Values with ``|a| <= atol`` count as zero.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_units`` is not positive or ``atol`` is negative.
        TypeError: If one of these is no number.

    Example:
        >>> metric = ZeroActivationRate(num_units=2)
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> metric.compute()
        tensor([1.0000, 0.5000])
    """

    is_differentiable = False
    higher_is_better = None  # 0.4 is as good as 0.6: sparse is not dead
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    if TYPE_CHECKING:  # TorchScript reads annotations, and cannot those that are strings
        zeros: Tensor
        observations: Tensor
        nonfinite: Tensor

    @explains_arguments
    def __init__(self, num_units: int, unit_dim: int = 1, atol: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("num_units", num_units, "an int >= 1", lambda it: it >= 1, whole=True)
        check_number("unit_dim", unit_dim, "an int", lambda it: True, whole=True)
        check_atol(atol)
        self.num_units = num_units
        self.unit_dim = unit_dim
        self.atol = atol
        self.add_state("zeros", torch.zeros(num_units, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("observations", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("nonfinite", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, activation: Tensor) -> None:
        """Count one activation.

        Args:
            activation: Output of the layer, shape ``(*, num_units, *)``, any real dtype.

        Raises:
            ValueError: If axis ``unit_dim`` is missing or its size is not ``num_units``.
            TypeError: If ``activation`` is not a real tensor.
        """
        axis = check_unit_dim(activation, self.unit_dim)
        if activation.shape[axis] != self.num_units:
            raise ValueError(
                f"Expected axis {self.unit_dim} of the activation to have `num_units` = "
                f"{self.num_units} entries, but got shape {tuple(activation.shape)}."
            )
        zeros, nonfinite = count_values(activation.detach(), (axis,), self.atol)
        # Not in place: an inference tensor of a stand-alone `validate` cannot be updated later.
        self.zeros = self.zeros + zeros
        self.observations = self.observations + values_per_unit(activation, axis)
        self.nonfinite = self.nonfinite + nonfinite

    def compute(self) -> Tensor:
        """Return the rates in [0, 1], float32 of shape ``(num_units,)``, NaN before any value."""
        return rates(self.zeros, self.observations)

    def set_dtype(self, dst_type: str | torch.dtype) -> ZeroActivationRate:
        """Keep the counts int64: float16 would overflow at 65 504, float32 stick at 2**24."""
        return self

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> tuple[Any, Any]:
        """Plot the rates as TorchMetrics does; needs matplotlib.

        Args:
            val: Result of ``compute``, or several; by default that of now.
            ax: A matplotlib axis to draw on.

        Returns:
            Figure and axis.
        """
        return self._plot(val, ax)
