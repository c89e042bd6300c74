"""reinit_dead_units: re-initialises units of a model once, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_deadunits.arguments import explains_arguments
from lightning_deadunits.reinit.call_arguments import check_call
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.memory import OptimizerMemory
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reinit.running.example import Example
from lightning_deadunits.reporting.report import DeadUnitsReport
from lightning_deadunits.scan import call


@explains_arguments
def reinit_dead_units(
    model: nn.Module,
    units: DeadUnitsReport | Mapping[str, Iterable[int]],
    example: Any,
    *,
    optimizers: Iterable[Any] | None = (),
    config: ReinitConfig | None = None,
    seed: int = 0,
) -> ReinitReport:
    """Give dead units a new life without changing what the model computes.

    Each unit's outgoing weights are silenced, its incoming weights drawn anew, and the optimizers
    forget both. What cannot be done without changing the model's output, in eval or training mode,
    is refused with a reason and left untouched, bit for bit.

    Args:
        model: Any module.
        units: A report of :func:`find_dead_units`, or the units per layer, ``{layer: [unit, ...]}``
            with layer names as in such a report.
        example: What the model is called with: a tensor (``model(x)``), a tuple (``model(*x)``) or
            a mapping (``model(**x)``). At least two different samples; some 8 are plenty.
        optimizers: Optimizers of the model's parameters. If any are given, weights that none of
            them has are refused: they are not trained, or only a copy of them is. Without any a
            warning says what is left undone; None says that there is none.
        config: Options. Those on when and how often to re-initialise do not matter here, nor does
            its ``seed``: these units are meant, now.
        seed: Seed of the fresh weights.

    Returns:
        What was done, and what was refused and why.

    Raises:
        ValueError: If the example holds fewer than two different samples, or a layer or unit does
            not exist.
        TypeError: If the example is none of the above, or another argument of the wrong type.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = model[0].bias.data[1].fill_(-100)
        >>> reinit_dead_units(
        ...     model, {"1": [1]}, torch.randn(8, 4), optimizers=None
        ... ).reinitialised
        {'1': [1]}
    """
    check_call(model, units, example, optimizers, config, seed)
    config = ReinitConfig() if config is None else config
    batch = Example(model, example, lambda given: call(model, given))
    memory = OptimizerMemory(optimizers or ())
    event = Event(batch, memory, config, seed=seed)
    event.operate_(as_units(units))
    event.commit_()
    return event.report


def as_units(units: DeadUnitsReport | Mapping[str, Iterable[int]]) -> Units:
    """Return units per layer as plain integers, layers without any left out."""
    if isinstance(units, DeadUnitsReport):
        given: Mapping[str, Iterable[int]] = {
            name: layer.dead.tolist() for name, layer in units.layers.items()
        }
    else:
        given = units
    plain = {layer: sorted({int(unit) for unit in of_layer}) for layer, of_layer in given.items()}
    return {layer: of_layer for layer, of_layer in plain.items() if of_layer}
