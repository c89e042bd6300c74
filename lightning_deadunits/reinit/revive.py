"""reinit_dead_units: re-initialises units of a model once, without a Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_deadunits.arguments import check_number, explains_arguments, given
from lightning_deadunits.observation.identity import read_key
from lightning_deadunits.observation.layer_names import LayerNames, aliases
from lightning_deadunits.observation.selection import listed
from lightning_deadunits.observation.sites import unobserved
from lightning_deadunits.observation.undisturbed import undisturbed
from lightning_deadunits.reinit.config import ReinitConfig
from lightning_deadunits.reinit.eligibility import model_refusal
from lightning_deadunits.reinit.event import Event
from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.recording import Recorder, Tape
from lightning_deadunits.reinit.recording.layers import keys_of, made_by_rows, names_on
from lightning_deadunits.reinit.recording.used import (
    Used,
    add_used,
    has_used,
    used_parameters,
)
from lightning_deadunits.reinit.report import ReinitReport, Units
from lightning_deadunits.reporting.report import DeadUnitsReport
from lightning_deadunits.scan import call, check_model


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
            a mapping (``model(**x)``). Some 8 samples are plenty. The model is run on it once in
            eval and once in training mode.
        optimizers: Optimizers of the model's parameters. If any are given, weights that none of
            them has are refused: they are not trained, or only a copy of them is. Without any a
            warning says what is left undone; None says that there is none.
        config: Options. Those on when and how often to re-initialise do not matter here, nor does
            its ``seed``: these units are meant, now.
        seed: Seed of the fresh weights.

    Returns:
        What was done, and what was refused and why.

    Raises:
        ValueError: If a layer or a unit does not exist.
        TypeError: If the example is none of the above, or another argument of the wrong type.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = model[0].bias.data[1].fill_(-100)
        >>> x = torch.randn(8, 4)
        >>> reinit_dead_units(model, {"1": [1]}, x, optimizers=None).reinitialised
        {'1': [1]}
    """
    check_model(model, "units", units)
    due = _checked_units(units, example)
    _check_options(example, optimizers, config, seed)
    config = replace(config or ReinitConfig(), seed=seed)
    tapes = record_both(model, example) if due else []
    names = names_in(units, tapes) if isinstance(units, DeadUnitsReport) else LayerNames()
    if model_refusal(model) is None and not any(map(names.key, due)):
        _check_exist(tapes, due)
    memory = OptimizerMemory(optimizers or ())
    event = Event(model, tapes, memory, config, names=names)
    event.operate_(due)
    event.commit_()
    if event.report.reinitialised and (idle := _idle(model, tapes)):
        event.report.note(
            f"Note: the example did not use {listed(idle)}. What reads re-initialised units "
            f"there computes otherwise now."
        )
    return event.report


def _idle(model: nn.Module, tapes: Iterable[Tape]) -> list[str]:
    """Return the names of modules that the example did not use, or parameters of some it did."""
    used: Used = {}
    ran: set[str] = set()
    for tape in tapes:
        add_used(used, used_parameters(tape))
        ran |= tape.modules
    names = [n for n, parameter in model.named_parameters() if not has_used(used, parameter, None)]
    modules = [(name.rpartition(".")[0], name) for name in names]
    return list(dict.fromkeys(name if home in ran else home or name for home, name in modules))


def record_both(model: nn.Module, example: Any) -> list[Tape]:
    """Run the model once in eval and once in training mode, and record both."""
    tapes = []
    recorder = Recorder(model)
    with unobserved(), undisturbed(model), torch.no_grad():
        for training in (False, True):
            model.train(training)
            with recorder.recording(training=training) as box:
                output = call(model, example)  # held until the pass has ended
            del output
            if box.tape is not None:
                tapes.append(box.tape)
    return tapes


def names_in(report: DeadUnitsReport, tapes: list[Tape]) -> LayerNames:
    """Return the names that layers of the tapes have in a report, which may know of more layers."""
    found = {}
    for key in dict.fromkeys(key for tape in tapes for key in tape.num_units):
        for name in aliases(key) & report.layers.keys():
            if report.layers[name].made_by == read_key(key).producers:
                found[key] = name
    names = LayerNames()
    names.load_state_dict(found)
    return names


def _check_exist(tapes: list[Tape], units: Units) -> None:
    """Raise ValueError unless every unit is one of a layer that ran."""
    own_names = names_on(tapes)
    sizes = {
        name: tape.num_units[key]
        for key, name in keys_of(tapes, units).items()
        for tape in tapes
        if key in tape.num_units
    }
    for layer, own in units.items():
        if layer not in sizes and made_by_rows(tapes, layer):
            continue  # the event refuses it, with the reason
        if layer not in sizes:
            raise ValueError(
                f"Expected `units` to name layers of the model, but got {layer!r}. Layers that ran "
                f"are: {listed(list(own_names))}."
            )
        if not 0 <= own[0] <= own[-1] < sizes[layer]:
            raise ValueError(
                f"Expected units of {layer!r} to be in [0, {sizes[layer]}), but got {own}."
            )


# --- arguments ----------------------------------------------------------------------------------


def _checked_units(units: Any, example: Any) -> Units:
    """Return units per layer as plain integers, layers without any left out."""
    if isinstance(units, DeadUnitsReport):
        units = {name: layer.dead for name, layer in units.layers.items()}
    if not isinstance(units, Mapping):
        swapped = isinstance(example, (DeadUnitsReport, Mapping))
        hint = " Were `units` and `example` swapped?" if swapped else ""
        raise TypeError(
            f"Expected `units` to be a report of find_dead_units or a mapping of layers to units, "
            f"{{'layer1.relu': [3, 7]}}, but got {given(units)}.{hint}"
        )
    plain: Units = {}
    for layer, of_layer in units.items():
        indices = of_layer.tolist() if isinstance(of_layer, Tensor) else of_layer
        if not isinstance(indices, Iterable) or isinstance(indices, str):
            raise TypeError(
                f"Expected the units of {layer!r} to be a list of indices, but got "
                f"{given(of_layer)}."
            )
        for unit in indices:
            check_number(f"units[{layer!r}]", unit, "indices >= 0", lambda it: it >= 0, whole=True)
            plain.setdefault(layer, []).append(int(unit))
    return {layer: sorted(set(of_layer)) for layer, of_layer in plain.items()}


def _check_options(example: Any, optimizers: Any, config: Any, seed: Any) -> None:
    """Raise TypeError for an argument of the wrong type; warn if no optimizer is given."""
    if not isinstance(example, (Tensor, tuple, list, Mapping)):
        raise TypeError(
            f"Expected `example` to be a tensor, a tuple or a mapping, as the model is called "
            f"with, but got {given(example)}."
        )
    _check_optimizers(optimizers)
    if config is not None and not isinstance(config, ReinitConfig):
        raise TypeError(f"Expected `config` to be a ReinitConfig, but got {given(config)}.")
    check_number("seed", seed, "an int", lambda it: True, whole=True)


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
