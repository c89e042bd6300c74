"""Counts on training batches, window by window, and measures dormancy on an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.names import as_patterns
from lightning_deadunits.observation.observer import Observer
from lightning_deadunits.observation.sites import Site
from lightning_deadunits.observation.sums import LayerCounts
from lightning_deadunits.observation.tally import report_of
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.passes import Example


class _TrainingObserver(Observer):
    """Counts forward passes of training, and not what activation checkpointing computes anew."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Backward runs within the batch, too; -1 is outside of it.
        if torch._C._current_graph_task_id() != -1:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


class Window:
    """Counts so many training batches.

    Args:
        config: The options.
    """

    def __init__(self, config: ReinitConfig) -> None:
        self._config = config
        self._observer: _TrainingObserver | None = None
        self._magnitudes: _Magnitudes | None = None
        self._batches = 0
        self._saved: dict[str, Any] = {}

    @property
    def full(self) -> bool:
        """Whether as many batches were counted as are asked for."""
        return self._batches >= (self._config.every_n_train_steps or 1)

    def begin(self, model: Any) -> None:
        """Start counting a batch."""
        if self._observer is None or self._observer.model is not model:
            kind = _Magnitudes if self._config.criterion == "dormant" else _TrainingObserver
            layers = as_patterns("layers", self._config.layers)
            self._observer = kind(model, layers, as_patterns("exclude", self._config.exclude))
            self._observer.counts = _loaded_counts(self._saved, model)
            self._saved = {}
        self._observer.attach()
        self._observer.begin()

    def end(self) -> None:
        """Stop counting a batch."""
        if self._observer is not None:
            self._observer.end()
            self._observer.detach()
            self._batches += 1

    def verdict(
        self,
        device: torch.device,
        gather: Callable[[object], list[object]],
        reduce: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Return which units of each layer are due by the counts of all processes; start anew."""
        assert self._observer is not None
        if isinstance(self._observer, _Magnitudes):
            dead = self._observer.dormant(self._config.tau, gather)
        else:
            report = report_of(
                self._observer.counts,
                self._observer.unjudged,
                dead_threshold=1.0,
                atol=None,
                device=device,
                gather=gather,
                reduce=reduce,
            )
            dead = {
                name: layer.zero_rate >= 1.0
                for name, layer in report.layers.items()
                if layer.observations
            }
        self._observer.reset()
        self._batches = 0
        return dead

    def detach(self) -> None:
        """Stop counting, whatever is going on."""
        if self._observer is not None:
            self._observer.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far, tensors and primitives only."""
        counts = {} if self._observer is None else _saved_counts(self._observer)
        return {"batches": self._batches, "counts": counts or self._saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._batches = int(state["batches"])
        self._saved = dict(state["counts"])
        self._observer = None


def _saved_counts(observer: Observer) -> dict[str, Any]:
    return {
        name: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in counts._asdict().items()}
        for name, counts in observer.counts.items()
    }


def _loaded_counts(saved: dict[str, Any], model: Any) -> dict[str, LayerCounts]:
    device = next(iter(model.parameters())).device
    counts = {}
    for name, entry in saved.items():
        values: dict[str, Any] = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in entry.items()
        }
        counts[name] = LayerCounts(**values)
    return counts


class _Magnitudes(_TrainingObserver):
    """Sums magnitudes per unit, for ReDo's score (Sokar et al. 2023)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sums: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start a new window."""
        super().reset()
        self.sums = {}

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Add the mean magnitude of every unit."""
        others = [axis for axis in range(output.ndim) if axis not in site.unit_dims]
        values = output.detach().abs().double()
        mean = (values.mean(others) if others else values).flatten()
        if site.name in self.sums:
            mean = mean + self.sums[site.name]
        self.sums[site.name] = mean
        return output

    def dormant(
        self, tau: float, gather: Callable[[object], list[object]] = lambda value: [value]
    ) -> dict[str, Tensor]:
        """Return which units of each layer are dormant, by the sums of all processes."""
        total: dict[str, Tensor] = {}
        for sums in gather({name: values.cpu() for name, values in self.sums.items()}):
            for name, values in sums.items():  # type: ignore[attr-defined]
                total[name] = total[name] + values if name in total else values
        return {
            name: values <= tau * values.mean() for name, values in total.items() if values.any()
        }


def dormant_units(example: Example, config: ReinitConfig) -> dict[str, Tensor]:
    """Return which units of each layer are dormant on an example."""
    observer = _Magnitudes(
        example.model,
        as_patterns("layers", config.layers),
        as_patterns("exclude", config.exclude),
    )
    with observer.watching():
        observer.begin()
        try:
            example.run()
        finally:
            observer.end()
    return observer.dormant(config.tau)
