"""What a user would run instead, each as its own documentation says, behind one face.

All peers are optional: ``pip install --no-deps monitorch traintools torchdiag fastai`` (fastai also
wants ``fastcore fasttransform "fastprogress<1.1" "plum-dispatch<2.10"``, requests and pandas).
"""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits import find_dead_units
from lightning_deadunits.observation.observer import Observer

_RECTIFIERS = (nn.ReLU, nn.GELU)


class Tool:
    """Looks at the passes of a model: make it, call it per batch, ask it, close it.

    Args:
        model: The model.
        channels_last: Whether the units are on the last axis, for tools that can be told.
    """

    package = ""
    says = "dead fraction"
    one_batch = False  # whether it judges one batch only, so that it deserves the whole data in one

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        self.model = model

    def __call__(self, batch: Tensor) -> None:
        self.model(batch)

    def verdict(self) -> list[float]:
        """Return the dead fraction of every layer seen."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the model as it was."""

    @classmethod
    def judge(cls, model: nn.Module, batches: list[Tensor], channels_last: bool) -> list[float]:
        """Return the dead fraction of every layer over all batches."""
        tool = cls(model, channels_last)
        try:
            with torch.no_grad():
                for batch in [torch.cat(batches)] if cls.one_batch else batches:
                    tool(batch)
            return tool.verdict()
        finally:
            tool.close()


class Ours(Tool):
    """This package: ``find_dead_units``, and its observer for the cost of one pass."""

    package = "lightning-deadunits"

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        super().__init__(model)
        self._observer = Observer(model)
        self._observer.attach()

    def __call__(self, batch: Tensor) -> None:
        with self._observer.one_pass():
            self.model(batch)

    def close(self) -> None:
        self._observer.detach()

    @classmethod
    def judge(cls, model: nn.Module, batches: list[Tensor], channels_last: bool) -> list[float]:
        report = find_dead_units(model, batches)
        return [layer.dead_fraction for layer in report.layers.values()]


class Monitorch(Tool):
    """The lens ``OutputActivation``; a unit is dead *per batch*, and rates are averaged."""

    package = "monitorch"

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        super().__init__(model)
        lens = import_module("monitorch.lens").OutputActivation(
            record_eval=True, dropout=False, warning_plot=False, channel_last=channels_last
        )
        self._rates = _rates_shown()
        inspector = import_module("monitorch.inspector").PyTorchInspector
        self._inspector = inspector([lens], module=model, visualizer=self._rates)

    def verdict(self) -> list[float]:
        self._inspector.tick_epoch()
        return [rates["death_rate"] for rates in self._rates.shown.values()]

    def close(self) -> None:
        self._inspector.detach()


def _rates_shown() -> Any:
    """Return a visualizer that keeps what it is given, as monitorch has users write their own."""
    base = import_module("monitorch.visualizer").AbstractVisualizer

    class Keeping(base):
        shown: dict[str, dict[str, float]] = {}

        def register_tags(self, *_: Any, **__: Any) -> None: ...

        def plot_numerical_values(self, *_: Any, **__: Any) -> None: ...

        def plot_relations(self, *_: Any, **__: Any) -> None: ...

        def plot_probabilities(self, epoch: int, main_tag: str, values_dict: Any) -> None:
            self.shown = {name: dict(rates) for name, rates in values_dict.items() if rates}

    return Keeping()


class Traintools(Tool):
    """``PlasticityProbe``; it keeps the last 1024 samples of every layer."""

    package = "traintools"

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        super().__init__(model)
        self._probe = import_module("traintools").PlasticityProbe(model)

    def verdict(self) -> list[float]:
        return [layer.dead_fraction for layer in self._probe.measure().layers]

    def close(self) -> None:
        self._probe.remove_hooks()


class Torchdiag(Tool):
    """``check_dead_neurons``, given all the data as its one batch."""

    package = "torchdiag"
    one_batch = True

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        super().__init__(model)
        self._check = import_module("torchdiag").check_dead_neurons
        self._found: dict[str, dict[str, float]] = {}

    def __call__(self, batch: Tensor) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._found = self._check(self.model, batch)

    def verdict(self) -> list[float]:
        return [layer["dead"] / layer["total"] for layer in self._found.values()]


class Fastai(Tool):
    """``ActivationStats`` on the rectifiers; its ``near_zero`` is the share of *values* <= 0.05.

    Without a Learner, by the very hooks that the callback registers.
    """

    package = "fastai"
    says = "share of values near zero"

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        super().__init__(model)
        fastai = import_module("fastai.callback.hook")
        modules = [module for module in model.modules() if isinstance(module, _RECTIFIERS)]
        self._hooks = fastai.Hooks(modules, fastai.ActivationStats().hook, cpu=True)
        self._stats: list[list[float]] = []

    def __call__(self, batch: Tensor) -> None:
        self.model(batch)
        self._stats.append([stats["near_zero"] for stats in self._hooks.stored])

    def verdict(self) -> list[float]:
        return [sum(layer) / len(layer) for layer in zip(*self._stats, strict=True)]

    def close(self) -> None:
        self._hooks.remove()


PEERS: list[type[Tool]] = [Monitorch, Traintools, Torchdiag, Fastai]
TOOLS: list[type[Tool]] = [Ours, *PEERS]


def versions() -> dict[str, str]:
    """Return the version of every tool, "missing" for a peer that is not installed."""
    return {tool.package: _version(tool.package) for tool in TOOLS}


def installed() -> list[type[Tool]]:
    """Return the tools there are."""
    return [tool for tool in TOOLS if tool is Ours or _version(tool.package) != "missing"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "this checkout" if package == Ours.package else "missing"
