"""LayerReport, DeadUnitsReport: the values handed on."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_deadunits.arguments import given, near
from lightning_deadunits.reporting.figures import count, rate
from lightning_deadunits.reporting.wording import State, dead_since, state_of, verdict

if TYPE_CHECKING:
    import pandas

ALIVE = -1
"""``dead_since`` of a unit that is alive, or was never judged over time."""


@dataclass(frozen=True, eq=False, repr=False)
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
        born_dead: Which units were never seen alive nor re-initialised, bool of shape ``(U,)``;
            None without one.
        made_by: Qualified names of the modules or parameters whose weights make its units, ``()``
            if that cannot be told.
        order_assumed: True if nothing tells which weights make its units, so that nothing tells its
            calls from those of another layer but their order.
        reinitialised: Which units had been re-initialised before, bool of shape ``(U,)``; None
            without one.
        was_dead: Which units an earlier validation saw dead, since they were last re-initialised
            if they ever were, bool of shape ``(U,)``; None without one.
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
    reinitialised: Tensor | None = None
    was_dead: Tensor | None = None

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

    @property
    def died_again(self) -> Tensor:
        """Which units are dead though they were re-initialised before, bool of shape ``(U,)``."""
        dead = self.dead_mask
        return torch.zeros_like(dead) if self.reinitialised is None else dead & self.reinitialised

    @property
    def states(self) -> list[State]:
        """What is known of every unit, in the words of ``reporting/wording.py``."""
        if not self.observations:
            return ["not seen"] * self.num_units
        unknown = [False] * self.num_units
        was_dead, reinitialised, born = (
            unknown if known is None else known.tolist()
            for known in (self.was_dead, self.reinitialised, self.born_dead)
        )
        return [
            state_of(dead=dead, was_alive=not born[u], was_dead=was_dead[u], reinitialised=re_init)
            for u, (dead, re_init) in enumerate(
                zip(self.dead_mask.tolist(), reinitialised, strict=True)
            )
        ]

    def since(self, shown: int = 3) -> str:
        """Say since when its dead units are dead; empty without a history.

        Args:
            shown: How many of the steps at which units died to name; the rest is summed up.
        """
        if self.dead_since is None or self.born_dead is None:
            return ""
        again = self.died_again
        dated = (self.dead_since != ALIVE) & ~self.born_dead & ~again
        steps = self.dead_since[dated].tolist()
        return dead_since(int(self.born_dead.sum()), int(again.sum()), steps, shown)

    def __repr__(self) -> str:
        dead = f"{count(len(self.dead))} of {count(self.num_units)} units dead"
        seen = f"{dead}, zero rate {rate(self.mean_zero_rate)}" if self.observations else "not seen"
        return f"<LayerReport {self.name}: {seen}>"


@dataclass(frozen=True, eq=False, repr=False)
class DeadUnitsReport:
    """What every layer did over a whole pass: ``report["layer1.0.relu"]`` is one layer's.

    Attributes:
        layers: Layer name to :class:`LayerReport`, in the order in which the activations first ran.
        unjudged: Layer name to the reason why it could not be judged.
        step: Training step of the pass, None outside of training.
        diagnosis: How the units died and what to do, where the history supports it.
        cause: The diagnosis in one word, one of
            :data:`~lightning_deadunits.reporting.diagnosis.Cause`.
        every_n_batches: Of so many batches one was counted: above 1 the verdicts are a sample's.
    """

    layers: dict[str, LayerReport]
    unjudged: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    diagnosis: str | None = None
    every_n_batches: int = 1
    cause: str | None = None

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

    # --- as a mapping -------------------------------------------------------------------------

    def __getitem__(self, name: str) -> LayerReport:
        """Return the report of one layer.

        Raises:
            KeyError: With the names that come near, if there is no such layer.
        """
        try:
            return self.layers[name]
        except (KeyError, TypeError):
            raise KeyError(self._no_layer(name)) from None

    def _no_layer(self, name: object) -> str:
        if not isinstance(name, str):
            return f"Expected the name of a layer, but got {given(name)}. {self._there_are()}"
        if name in self.unjudged:
            return f"The layer {name!r} could not be judged: {self.unjudged[name]}."
        return f"There is no layer {name!r}.{near(name, self.layers) or ' ' + self._there_are()}"

    def _there_are(self) -> str:
        return f"Layers there are: {', '.join(self.layers) or 'none'}."

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __bool__(self) -> bool:
        """Be a report, also without a layer."""
        return True

    def __contains__(self, name: object) -> bool:
        return name in self.layers

    def keys(self) -> KeysView[str]:
        """Return the names of the layers, in the order in which they ran."""
        return self.layers.keys()

    def values(self) -> ValuesView[LayerReport]:
        """Return the layers' reports."""
        return self.layers.values()

    def items(self) -> ItemsView[str, LayerReport]:
        """Return names and reports."""
        return self.layers.items()

    # --- as text, a picture, primitives and a data frame --------------------------------------

    def __str__(self) -> str:
        from lightning_deadunits.reporting.text import render

        return render(self)

    def __repr__(self) -> str:
        step = "" if self.step is None else f", step {count(self.step)}"
        return f"<DeadUnitsReport: {self.summary}{step}>"

    def _repr_html_(self) -> str:
        from lightning_deadunits.reporting.html import render

        return render(self)

    @property
    def summary(self) -> str:
        """How many units are dead, in one line."""
        return verdict(self.num_dead, self.num_units, len(list(self._seen())))

    def to_dict(self, per_unit: bool = True) -> dict[str, Any]:
        """Return all there is as primitives, which ``json.dumps`` takes: NaN is None.

        Args:
            per_unit: Whether to list every unit's figures, too.
        """
        from lightning_deadunits.reporting.export import as_dict

        return as_dict(self, per_unit)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a data frame with one row per unit.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        from lightning_deadunits.reporting.export import as_dataframe

        return as_dataframe(self)

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
