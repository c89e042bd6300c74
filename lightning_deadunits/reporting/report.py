"""LayerReport, DeadUnitsReport: the values handed on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ALIVE = -1
"""``dead_since`` of a unit that is alive, or was never judged over time."""


@dataclass(frozen=True, eq=False)
class LayerReport:
    """What the units of one layer did over a whole pass. All tensors are on the CPU.

    Attributes:
        name: The activation's qualified name; where several sets of weights feed it, with the
            name of what makes its units behind.
        num_units: Number of units U.
        unit_dim: Axis of the activation that indexes the units.
        observations: Values seen per unit, over batches, positions and processes.
        zeros: How many of them were zero, int64 of shape ``(U,)``.
        dead_threshold: Zero rate from which on a unit counts as dead.
        atol: Magnitude that counted as zero.
        nonfinite: NaN and infinite values of all units together; neither zero nor firing.
        axis_assumed: True if nothing told which axis the units are on, and convention was followed.
        dead_since: Training step at which each unit was first seen dead, int64 of shape ``(U,)``,
            ``ALIVE`` (-1) for a unit that is not dead; None without a history.
        born_dead: Which units were never seen alive, bool of shape ``(U,)``; None without one.
        made_by: Qualified names of the modules or parameters whose weights make its units, ``()``
            if that cannot be told.
        order_assumed: True if nothing tells its calls from those of another layer but their order.
    """

    name: str
    num_units: int
    unit_dim: int
    observations: int
    zeros: Tensor
    dead_threshold: float = 1.0
    atol: float = 0.0
    nonfinite: int = 0
    axis_assumed: bool = False
    dead_since: Tensor | None = None
    born_dead: Tensor | None = None
    made_by: tuple[str, ...] = ()
    order_assumed: bool = False

    @property
    def zero_rate(self) -> Tensor:
        """Zero-activation rate of every unit, float64 of shape ``(U,)``, NaN before any value."""
        return self.zeros.double() / (self.observations or float("nan"))

    @property
    def dead_mask(self) -> Tensor:
        """Which units are dead, bool of shape ``(U,)``."""
        return self.zero_rate >= self.dead_threshold

    @property
    def dead(self) -> Tensor:
        """Indices of the dead units, int64, ascending."""
        return torch.nonzero(self.dead_mask).flatten()

    @property
    def most_unseen(self) -> float:
        """Share of the time that a unit which was not seen firing may yet fire, at 95 %.

        The rule of three: ``3 / n`` for n independent values (Hanley & Lippman-Hand, 1983, "If
        nothing goes wrong, is everything all right?", JAMA 249:1743). Neighbouring positions are
        not independent, so n is at best ``observations``. NaN if nothing was seen.
        """
        return min(1.0, 3 / self.observations) if self.observations else float("nan")

    @property
    def dead_fraction(self) -> float:
        """Share of the units that are dead, NaN if nothing was seen."""
        return len(self.dead) / self.num_units if self.observations else float("nan")

    @property
    def mean_zero_rate(self) -> float:
        """Share of all values that are zero: the sparsity, which says nothing about death."""
        return float(self.zero_rate.mean())

    @property
    def wholly_dead(self) -> bool:
        """Whether every unit is dead: nothing gets through, the network is cut here."""
        return self.observations > 0 and len(self.dead) == self.num_units


@dataclass(frozen=True, eq=False)
class DeadUnitsReport:
    """What every layer did over a whole pass.

    Attributes:
        layers: Layer name to :class:`LayerReport`, in the order in which the activations first ran.
        unjudged: Layer name to the reason why it could not be judged.
        step: Training step of the pass, None outside of training.
        diagnosis: One line on how the units died, where the history supports it.
        every_n_batches: Of so many batches one was counted: above 1 the verdicts are a sample's.
    """

    layers: dict[str, LayerReport]
    unjudged: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    diagnosis: str | None = None
    every_n_batches: int = 1

    @property
    def num_units(self) -> int:
        """Number of units of all layers that saw a value."""
        return sum(layer.num_units for layer in self._seen())

    @property
    def num_dead(self) -> int:
        """Number of dead units of all layers."""
        return sum(len(layer.dead) for layer in self._seen())

    @property
    def dead_fraction(self) -> float:
        """Share of all units that are dead, NaN if nothing was seen."""
        return self.num_dead / self.num_units if self.num_units else float("nan")

    @property
    def dead_layers(self) -> list[str]:
        """Names of the layers that are wholly dead."""
        return [layer.name for layer in self._seen() if layer.wholly_dead]

    def _seen(self) -> Iterable[LayerReport]:
        return (layer for layer in self.layers.values() if layer.observations)

    def __str__(self) -> str:
        from lightning_deadunits.reporting.text import render

        return render(self)

    def plot(self, **kwargs: Any) -> Any:
        """Draw one strip per layer, its units sorted by zero rate, the dead ones unmistakable.

        Args:
            **kwargs: Passed on to ``matplotlib.pyplot.figure``.

        Returns:
            The matplotlib figure.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        from lightning_deadunits.reporting.plotting import draw

        return draw(self, **kwargs)
