"""What is observed of training batches, or of a validation, so that units can be judged by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.distributed import Processes
from lightning_deadunits.observation.forward_only import ForwardObserver
from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.sums import LayerCounts


@dataclass(frozen=True)
class Watch:
    """What the callback watches, and what it calls dead.

    Attributes:
        layers: Patterns of layers, None for all.
        exclude: Patterns of layers to leave out.
        dead_threshold: Zero rate from which on a unit is dead.
        atol: Magnitude that counts as zero, None for a rule by kind of activation.
        names: The names of layers that are known already, kept up to date.
    """

    layers: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    dead_threshold: float = 1.0
    atol: float | None = None
    names: LayerNames = field(default_factory=LayerNames)


class TrainingObserver(ForwardObserver):
    """Observes training batches; what it has seen can be saved in the middle of a window."""

    def __init__(self, model: Any, watch: Watch) -> None:
        super().__init__(model, watch.layers, watch.exclude, atol=watch.atol)
        self.watch = watch

    def saved(self) -> dict[str, Any]:
        """Return what was seen so far, tensors and primitives only."""
        raise NotImplementedError

    def load(self, saved: dict[str, Any], device: torch.device) -> None:
        """Add what was seen before, see :meth:`saved`."""
        raise NotImplementedError


class Zeros(TrainingObserver):
    """Counts zeros: whoever asks for its counts judges by them."""

    def saved(self) -> dict[str, Any]:
        """See :class:`TrainingObserver`."""
        counts = {name: _moved(counts._asdict(), "cpu") for name, counts in self.counts.items()}
        return {"counts": counts, "unjudged": dict(self.unjudged)}

    def load(self, saved: dict[str, Any], device: torch.device) -> None:
        """See :class:`TrainingObserver`."""
        counts = saved["counts"].items()
        self._add({name: LayerCounts(**_moved(own, device)) for name, own in counts})
        self.unjudged.update(saved["unjudged"])


class Magnitudes(TrainingObserver):
    """Sums mean magnitudes: a unit is due if it is dormant (Sokar et al. 2023).

    Args:
        model: The model.
        watch: What is watched.
        tau: Share of the layer's mean magnitude up to which a unit is dormant.
    """

    def __init__(self, model: Any, watch: Watch, tau: float) -> None:
        super().__init__(model, watch)
        self._tau = tau
        self._totals: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start a new window."""
        super().reset()
        self._totals = {}

    def begin(self) -> None:
        """Start one forward pass."""
        # Empty at the start of every pass, or Dynamo's guards on it would fail in the second.
        self._means.clear()
        super().begin()

    def fold(self) -> None:
        """Add what the last pass has measured."""
        for name, mean in self._means.items():
            self._totals[name] = self._totals[name] + mean if name in self._totals else mean
        self._means.clear()

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Measure the mean magnitude of every unit."""
        others = [axis for axis in range(output.ndim) if axis not in site.unit_dims]
        values = output.detach().abs().double()
        mean = (values.mean(others) if others else values).flatten()
        if site.name in self._means:  # a layer may be called several times in a pass
            mean = self._means[site.name] + mean
        self._means[site.name] = mean
        return output

    def verdict(self, processes: Processes) -> dict[str, Tensor]:
        """Return which units of each layer are due, by what all processes have seen."""
        total: dict[str, Tensor] = {}
        for sums in processes.gather(self.saved()):
            for name, values in sums.items():
                total[name] = total[name] + values if name in total else values
        names = self.watch.names
        names.settle(total)
        return {names[k]: own <= self._tau * own.mean() for k, own in total.items() if own.any()}

    def saved(self) -> dict[str, Any]:
        """See :class:`TrainingObserver`."""
        return _moved(self._totals, "cpu")

    def load(self, saved: dict[str, Any], device: torch.device) -> None:
        """See :class:`TrainingObserver`."""
        for name, own in _moved(saved, device).items():
            self._totals[name] = self._totals[name] + own if name in self._totals else own


def _moved(values: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
