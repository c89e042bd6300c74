"""Windows of batches: what is observed of them, and whoever judges by what was seen.

The callback has a window of training batches, for its report (:class:`Zeros`). Re-initialisation
has one of its own where counts of zeros are not enough to judge by, for dormancy
(:class:`GuardedWindow` of :class:`Magnitudes`).
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.distributed import Processes, gather_objects
from lightning_deadunits.observation.forward_only import ForwardObserver
from lightning_deadunits.observation.layer_names import LayerNames
from lightning_deadunits.observation.members import by_row
from lightning_deadunits.observation.site import Site
from lightning_deadunits.observation.sums import LayerCounts
from lightning_deadunits.private_api import is_in_step
from lightning_deadunits.reinit.config import ReinitConfig


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


class Zeros(ForwardObserver):
    """Counts zeros: whoever asks for its counts judges by them.

    What it has seen can be saved in the middle of a window.
    """

    def __init__(self, model: Any, watch: Watch) -> None:
        super().__init__(
            model, watch.layers, watch.exclude, atol=watch.atol, in_step=lambda: is_in_step(model)
        )

    def saved(self) -> dict[str, Any]:
        """Return what was seen so far, tensors and primitives only."""
        counts = {name: _moved(counts._asdict(), "cpu") for name, counts in self.counts.items()}
        return {"counts": counts, "unjudged": dict(self.unjudged)}

    def load(self, saved: dict[str, Any], device: torch.device) -> None:
        """Add what was seen before, see :meth:`saved`."""
        counts = saved["counts"].items()
        self._add((name, LayerCounts(**_moved(own, device))) for name, own in counts)
        self.unjudged.update(saved["unjudged"])


class Magnitudes(Zeros):
    """Sums mean magnitudes in their place: dormancy is judged by these (Sokar et al. 2023)."""

    def __init__(self, model: Any, watch: Watch) -> None:
        super().__init__(model, watch)
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
        _add_to(self._totals, self._means)
        self._means.clear()

    def on_site(self, site: Site, output: Tensor) -> Tensor:
        """Measure the mean magnitude of every unit."""
        values = site.values(output).detach().abs().double()
        if site.members is None:
            others = [axis for axis in range(values.ndim) if axis not in site.unit_dims]
            self._measure(site.name, (values.mean(others) if others else values).flatten())
        elif not torch.compiler.is_compiling():  # there nothing tells which member made which row
            rows = by_row(site.members, values, site.unit_dims)
            seen = rows.summed(torch.ones_like(rows.home)).clamp(min=1)[:, None]
            for name, mean in zip(
                site.layers(), rows.summed(rows.values.mean(1)) / seen, strict=True
            ):
                if self._all or self._selects(name):
                    self._measure(name, mean)
        return output

    def _measure(self, layer: str, mean: Tensor) -> None:
        known = self._means.get(layer)  # a layer may be called several times in a pass
        self._means[layer] = mean if known is None else known + mean

    def saved(self) -> dict[str, Any]:
        """Return what was seen so far, tensors and primitives only."""
        return _moved(self._totals, "cpu")

    def load(self, saved: dict[str, Any], device: torch.device) -> None:
        """Add what was seen before, see :meth:`saved`."""
        _add_to(self._totals, _moved(saved, device))


def _add_to(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, own in more.items():
        sums[name] = sums[name] + own if name in sums else own


def _moved(values: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}


class Window:
    """Observes batches until somebody says that the next window begins.

    Args:
        make: Makes the observer of a model.

    Attributes:
        observer: What observes them, None before the first one of this process.
    """

    def __init__(self, make: Callable[[Any], Zeros]) -> None:
        self._make = make
        self.observer: Zeros | None = None
        self._saved: list[dict[str, Any]] = []

    def begin(self, model: Any) -> None:
        """Start observing a batch."""
        if self.observer is None or self.observer.model is not model:
            self.observer = self._make(model)
            # What one process has seen is taken up by one, however many there are now.
            for saved in self._saved[model.global_rank :: model.trainer.world_size]:
                self.observer.load(saved, model.device)
            self._saved = []
        self.observer.attach()
        self.observer.begin()

    def end(self) -> None:
        """Stop observing a batch."""
        if self.observer is not None:
            self.observer.end()
            self.observer.detach()

    def restart(self) -> None:
        """Begin the next window."""
        if self.observer is not None:
            self.observer.reset()

    def detach(self) -> None:
        """Stop observing, whatever is going on; a batch that did not end is no part of it."""
        if self.observer is not None:
            self.observer.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far, tensors and primitives only, per process."""
        saved = self._saved if self.observer is None else [self.observer.saved()]
        return {"saved": saved}

    def complete_state(self, trainer: Any, state: dict[str, Any]) -> None:
        """Add to a state what other processes have seen."""
        if self.observer is not None:  # else it is the one that was loaded, which is complete
            everyone = gather_objects(trainer, state["saved"])
            state["saved"] = [saved for theirs in everyone for saved in theirs]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._saved = list(state["saved"])
        self.observer = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the observer out of copies: it belongs to the modules of one process."""
        return {**self.__dict__, "observer": None, "_saved": self.state_dict()["saved"]}


class GuardedWindow(Window):
    """A window by which dormancy is judged, until a process fails to measure."""

    def __init__(self, config: ReinitConfig, watch: Watch) -> None:
        super().__init__(partial(Magnitudes, watch=watch))
        self._names, self._tau = watch.names, config.tau
        self._failure: str | None = None
        self._ended = False

    def begin(self, model: Any) -> None:
        """Start observing a batch, unless that failed before."""
        if self._failure is None and not self._ended:
            self._safely(partial(super().begin, model))

    def end(self) -> None:
        """Stop observing a batch."""
        self._safely(super().end)

    def verdict(self, processes: Processes) -> dict[str, Tensor]:
        """Return which units of each layer are due, none once any process failed; start anew."""
        if self._ended:
            return {}
        failures = [text for text in processes.gather(self._failure) if text]
        if failures:
            self._ended = True
            warnings.warn(
                f"Dead units are re-initialised no longer, for measuring failed; training goes on. "
                f"Please report this.\n{failures[0]}",
                stacklevel=2,
            )
            return {}
        total: dict[str, Tensor] = {}
        beside: set[str] = set()
        own = self.observer
        seen = ({}, frozenset()) if own is None else (own.saved(), own.beside())
        for sums, others in processes.gather(seen):
            _add_to(total, sums)
            beside |= others
        self.restart()
        names, tau = self._names, self._tau
        names.settle((*total, *beside))
        return {names[k]: own <= tau * own.mean() for k, own in total.items() if own.any()}

    def _safely(self, action: Callable[[], None]) -> None:
        """Measure no longer if that fails: the other processes are told why at the verdict."""
        try:
            action()
        except Exception as error:
            self._failure = "".join(traceback.format_exception(error))
            self.detach()
