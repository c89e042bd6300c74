"""Collects from a Trainer what a diagnosis rests on: learning rates, losses, biases, the inputs.

The learning rate is read before every optimizer step, for a spike may be over by the next
validation: a float per parameter group, nothing from the device. Losses are those that the user
logged. Biases are copied when training begins. The inputs are looked at once, in the first batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.names import module_names
from lightning_deadunits.reporting.evidence import (
    Biases,
    Evidence,
    Window,
    thinned,
    windows_state,
)
from lightning_deadunits.reporting.report import DeadUnitsReport

_Pair = tuple[Tensor, Tensor]


class Circumstances:
    """What is known of a training beside its dead units; survives a resume."""

    def __init__(self) -> None:
        self._windows: list[Window] = []
        self._rates: list[float] = []  # first, highest, last of the window under way
        self._decay = 0.0
        self._start: dict[str, _Pair] = {}
        self._fired: dict[str, Tensor] = {}
        self._inputs: tuple[float, float] | None = None  # shift, size

    def begin_fit(self, pl_module: nn.Module) -> None:
        """Copy the biases, unless a checkpoint has brought those of the beginning."""
        if not self._start:
            self._start = {name: _biases_of(it) for name, it in _with_bias(pl_module).items()}

    def before_step(self, optimizer: Any) -> None:
        """Read the learning rates of an optimizer that is about to step."""
        groups = optimizer.param_groups
        # A rate that is a tensor may be on a device, from which nothing is read in between.
        rates = [it["lr"] for it in groups if isinstance(it.get("lr"), (int, float))]
        if rates:
            rate = float(max(rates))
            first, highest, _ = self._rates or (rate, rate, rate)
            self._rates = [first, max(highest, rate), rate]
        self._decay = max([self._decay, *(float(it.get("weight_decay") or 0.0) for it in groups)])

    def note_inputs(self, batch: Any) -> None:
        """Measure the first floating tensor of a batch, once."""
        if self._inputs is None:
            tensor = _first_floating(batch)
            self._inputs = (math.nan, 1.0) if tensor is None else _measured(tensor)

    def note_fired_before(self, report: DeadUnitsReport) -> None:
        """Remember which units fired before training began."""
        if self._windows:
            return  # a sanity check of a resumed training comes too late
        seen = [layer for layer in report.layers.values() if layer.observations]
        self._fired = {layer.name: ~layer.dead_mask for layer in seen}

    def end_window(
        self, trainer: Any, pl_module: nn.Module, report: DeadUnitsReport, step: int
    ) -> Evidence:
        """Close the window that a validation ends, and return all evidence.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            report: The verdicts of the validation.
            step: Training step of the validation.
        """
        start = self._windows[-1].end if self._windows else 0
        name, loss = _logged_loss(trainer.callback_metrics)
        first, highest, last = self._rates or (math.nan, math.nan, math.nan)
        self._windows.append(Window(start, step, first, highest, last, self._decay, loss, name))
        self._windows = thinned(self._windows)
        self._rates, self._decay = [], 0.0
        shift, _ = self._inputs or (math.nan, 1.0)
        return Evidence(self._windows, self._fired, self._biases(pl_module, report), shift)

    def _biases(self, pl_module: nn.Module, report: DeadUnitsReport) -> dict[str, Biases]:
        """Return the biases of layers of which units are dead, in units of their usual inputs."""
        found = {}
        modules = _with_bias(pl_module)
        for index, layer in enumerate(report.layers.values()):
            maker = next((it for it in reversed(layer.made_by) if it in modules), None)
            if maker is None or maker not in self._start or not layer.observations:
                continue
            at_start, scale = self._start[maker]
            if len(at_start) != layer.num_units or not len(layer.dead):
                continue
            now, _ = _biases_of(modules[maker])
            normalised = _held(modules[maker], "weight").dim() == 1
            size = self._inputs[1] if index == 0 and self._inputs and not normalised else 1.0
            usual = (scale * size).clamp(min=1e-12)
            found[layer.name] = Biases(at_start / usual, now / usual)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only."""
        return {
            "windows": windows_state(self._windows),
            "rates": list(self._rates),
            "decay": self._decay,
            "start": {name: list(pair) for name, pair in self._start.items()},
            "fired": dict(self._fired),
            "inputs": None if self._inputs is None else list(self._inputs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._windows = [Window(**window) for window in state["windows"]]
        self._rates, self._decay = list(state["rates"]), state["decay"]
        self._start = {name: (bias, scale) for name, (bias, scale) in state["start"].items()}
        self._fired = dict(state["fired"])
        self._inputs = None if state["inputs"] is None else tuple(state["inputs"])


def _with_bias(model: nn.Module) -> dict[str, Any]:
    """Return the modules by name that have one bias per unit, and weights with as many rows."""
    found = {}
    for module, name in module_names(model).items():
        bias, weight = _held(module, "bias"), _held(module, "weight")
        if not (isinstance(bias, Tensor) and isinstance(weight, Tensor)):
            continue
        # Of a sharded or a lazy parameter there is nothing to copy here.
        plain = type(bias) in (Tensor, nn.Parameter) and not nn.parameter.is_lazy(bias)
        usable = plain and not bias.is_meta and weight.dim() and bias.dim() == 1
        if usable and (len(weight) == len(bias) or isinstance(module, _TRANSPOSED)):
            found[name] = module
    return found


def _held(module: nn.Module, name: str) -> Any:
    """Return what a module holds, None if it would have to be computed.

    A parametrised weight is computed whenever it is asked for: spectral norm goes on by a step
    then, another one draws anew. That is the user's code.
    """
    homes: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
    return next((home[name] for home in homes if name in home), None)


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _biases_of(module: Any) -> _Pair:
    """Return the biases and the norms of the incoming weights, on the CPU."""
    weight, bias = (_held(module, name).detach().float() for name in ("weight", "bias"))
    if isinstance(module, _TRANSPOSED):
        per_group = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2)
        weight = per_group.reshape(len(bias), -1)
    norms = torch.linalg.vector_norm(weight.reshape(len(bias), -1), dim=1)
    return bias.cpu().clone(), norms.cpu()


def _first_floating(batch: Any) -> Tensor | None:
    """Return the first floating tensor in a batch, whatever container it is in."""
    if isinstance(batch, Tensor):
        usable = batch.is_floating_point() and batch.dim() > 1 and batch.layout == torch.strided
        return batch if usable and not batch.is_nested else None
    items = batch.values() if isinstance(batch, dict) else batch
    if not isinstance(batch, (dict, list, tuple)):
        return None
    return next((it for it in map(_first_floating, items) if it is not None), None)


def _measured(inputs: Tensor) -> tuple[float, float]:
    """Return how many times the mean exceeds the spread over samples, and the usual size."""
    values = inputs.detach().float()
    mean_square = values.mean(0).square().mean()
    spread_square = values.var(0, correction=0).mean()
    figures = torch.stack([(mean_square / spread_square).sqrt(), values.square().mean().sqrt()])
    shift, size = figures.tolist()
    return (shift if len(values) > 1 else math.nan), size or 1.0


def _logged_loss(metrics: Any) -> tuple[str, float]:
    """Return the loss that the user logged: the one of training if there are several."""
    names = [name for name in metrics if "loss" in name.lower()]
    for part in ("train", "", "val"):
        for name in names:
            if part in name.lower() and (part or "val" not in name.lower()):
                return name, float(metrics[name])
    return "", math.nan
