"""Checks what :func:`reinit_dead_units` was called with, before anything is touched."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_deadunits.arguments import check_number, given
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reporting.report import DeadUnitsReport
from lightning_deadunits.scan import check_model


def check_call(
    model: Any, units: Any, example: Any, optimizers: Any, config: Any, seed: Any
) -> None:
    """Raise TypeError for an argument of the wrong type; warn if no optimizer is given.

    Args:
        model: As in :func:`reinit_dead_units`, and so are the others.
        units: See there.
        example: See there.
        optimizers: See there.
        config: See there.
        seed: See there.
    """
    check_model(model, "units", units)
    _check_units(units, example)
    if not isinstance(example, (Tensor, tuple, list, Mapping)):
        raise TypeError(
            f"Expected `example` to be a tensor, a tuple or a mapping, as the model is called "
            f"with, but got {given(example)}."
        )
    _check_optimizers(optimizers)
    if config is not None and not isinstance(config, ReinitConfig):
        raise TypeError(f"Expected `config` to be a ReinitConfig, but got {given(config)}.")
    check_number("seed", seed, "an int", lambda it: True, whole=True)


def _check_units(units: Any, example: Any) -> None:
    if isinstance(units, DeadUnitsReport):
        return
    if not isinstance(units, Mapping):
        swapped = isinstance(example, (DeadUnitsReport, Mapping))
        hint = " Were `units` and `example` swapped?" if swapped else ""
        raise TypeError(
            f"Expected `units` to be a report of find_dead_units or a mapping of layers to units, "
            f"{{'layer1.relu': [3, 7]}}, but got {given(units)}.{hint}"
        )
    for layer, of_layer in units.items():
        indices = of_layer.tolist() if isinstance(of_layer, Tensor) else of_layer
        if not isinstance(indices, Iterable) or isinstance(indices, str):
            raise TypeError(
                f"Expected the units of {layer!r} to be a list of indices, but got "
                f"{given(of_layer)}."
            )
        for unit in indices:
            check_number(f"units[{layer!r}]", unit, "indices >= 0", lambda it: it >= 0, whole=True)


def _check_optimizers(optimizers: Any) -> None:
    if optimizers is None:
        return
    if isinstance(optimizers, Optimizer) or not isinstance(optimizers, Iterable):
        hint = " Write `optimizers=[optimizer]`." if isinstance(optimizers, Optimizer) else ""
        raise TypeError(
            f"Expected `optimizers` to be a list of optimizers, but got {given(optimizers)}.{hint}"
        )
    if not optimizers:
        warnings.warn(
            "reinit_dead_units was given no optimizer: what an optimizer remembers of the "
            "re-initialised weights (momentum, Adam's moments and steps) stays, and may kill the "
            "units again. Give `optimizers=[optimizer]`, or `optimizers=None` if there is none.",
            stacklevel=5,
        )
