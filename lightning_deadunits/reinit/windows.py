"""Counts on training batches, window by window, and measures dormancy on an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.names import as_patterns
from lightning_deadunits.observation.observer import LayerCounts, Observer, _Count
from lightning_deadunits.observation.sites import Site
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

    def so_far(self) -> dict[str, Any]:
        """Return the counts so far, tensors and primitives only."""
        counts = {
            name: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in vars(counts).items()}
            for name, counts in self.counts.items()
        }
        return {"counts": counts, "unjudged": dict(self.unjudged)}

    def resume(self, saved: dict[str, Any], device: torch.device) -> None:
        """Add counts of :meth:`so_far`."""
        for name, entry in saved.get("counts", {}).items():
            values: dict[str, Any] = {
                k: v.to(device) if isinstance(v, Tensor) else v for k, v in entry.items()
            }
            if name in self.counts:
                self._add(self.counts[name], _Count(**values))
            else:
                self.counts[name] = LayerCounts(**values)
        self.unjudged.update(saved.get("unjudged", {}))


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
        self._saved: list[dict[str, Any]] = []

    @property
    def full(self) -> bool:
        """Whether as many batches were counted as are asked for."""
        return self._batches >= (self._config.every_n_train_steps or 1)

    @property
    def untouched(self) -> bool:
        """Whether what was loaded is all there is: each process has it whole."""
        return self._observer is None

    def begin(self, model: Any, rank: int = 0, world_size: int = 1) -> None:
        """Start counting a batch, on one of several processes."""
        if self._observer is None or self._observer.model is not model:
            kind = _Magnitudes if self._config.criterion == "dormant" else _TrainingObserver
            layers = as_patterns("layers", self._config.layers)
            self._observer = kind(model, layers, as_patterns("exclude", self._config.exclude))
            # Of other processes' counts each is taken up by one, however many there are now.
            for saved in self._saved[rank::world_size]:
                self._observer.resume(saved, next(iter(model.parameters())).device)
            self._saved = []
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
        """Return the counts so far, tensors and primitives only; `ranks` is one per process."""
        ranks = self._saved if self._observer is None else [self._observer.so_far()]
        return {"batches": self._batches, "ranks": ranks or [{}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._batches = int(state["batches"])
        self._saved = list(state["ranks"])
        self._observer = None


class _Magnitudes(_TrainingObserver):
    """Sums magnitudes per unit, for ReDo's score (Sokar et al. 2023)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sums: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start a new window."""
        super().reset()
        self.sums = {}

    def so_far(self) -> dict[str, Any]:
        """Return the sums so far."""
        sums = {name: values.cpu() for name, values in self.sums.items()}
        return super().so_far() | {"sums": sums}

    def resume(self, saved: dict[str, Any], device: torch.device) -> None:
        """Add sums of :meth:`so_far`."""
        super().resume(saved, device)
        for name, values in saved.get("sums", {}).items():
            values = values.to(device)
            self.sums[name] = self.sums[name] + values if name in self.sums else values

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
