"""Averaged copies of a model (EMA, SWA, WeightAveraging), which get the same edits.

What tells them apart from other copies is the class ``AveragedModel``, or a name that says so. Of
those that neither tells, :mod:`lightning_deadunits.reinit.training.followers` knows which follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from lightning_deadunits.reinit.plan import tensors_of
from lightning_deadunits.reinit.weights import Edit, WeightSlice

Copy = dict[int, Tensor]
"""The tensors of one copy, by the identity of those they are copies of."""

# Words as in `ema_model`, `ModelEmaV2`, `_average_model`, `shadow_params`, but not as in `schema`.
_AN_AVERAGE = re.compile(r"[Aa]verag|[Ss]hadow|(?<![a-z])(ema|swa)(?![a-z])|(Ema|EMA|Swa|SWA)")


def copies_of(trainer: Any, pl_module: nn.Module) -> list[Copy]:
    """Return the averages that callbacks, optimizers and the module itself keep."""
    own = [m for name, m in pl_module.named_modules() if name and _is_average(name, m)]
    inside = {part for average in own for part in average.modules()}
    # What the module keeps apart from its submodules may be an average of them, or hold one.
    apart = (v for k, v in vars(pl_module).items() if hasattr(v, "__dict__") and k[0] != "_")
    holders = (*trainer.callbacks, *trainer.optimizers, pl_module, *apart)
    kept = [value for holder in holders for value in _averages_held_by(holder)]
    found = (_copy(value, pl_module, inside) for value in (*own, *kept))
    return [copy for copy in found if copy]


def _is_average(name: str, value: Any) -> bool:
    words = (name.rpartition(".")[2], type(value).__name__)
    return isinstance(value, AveragedModel) or any(map(_AN_AVERAGE.search, words))


def _averages_held_by(holder: Any) -> Iterator[Any]:
    """Yield averages among an object's attributes, also from containers that hide modules."""
    for name, value in vars(holder).items():
        if isinstance(value, (nn.Module, Mapping, list, tuple)) and _is_average(name, value):
            yield value
        if isinstance(value, (list, tuple, Mapping)):
            items = value.values() if isinstance(value, Mapping) else value
            yield from (item for item in items if isinstance(item, AveragedModel))


def _copy(value: Any, pl_module: nn.Module, inside: set[nn.Module]) -> Copy | None:
    """Pair an average with what it is an average of, None if that is not to be found."""
    if isinstance(value, AveragedModel):
        value = value.module
    if isinstance(value, nn.Module):
        original = _original(value, pl_module, inside)
        return None if original is None else pair_of(original, value)
    if isinstance(value, Mapping):
        names = {name for name, _ in pl_module.named_parameters()}
        return _fitting(tensors_of(pl_module), value) if names <= value.keys() else None
    for parameters in (
        list(pl_module.parameters()),
        [p for p in pl_module.parameters() if p.requires_grad],
    ):
        if len(parameters) == len(value):
            return _fitting(dict(enumerate(parameters)), dict(enumerate(value)))
    return None


def _original(copy: nn.Module, pl_module: nn.Module, inside: set[nn.Module]) -> nn.Module | None:
    """Return the one module of which another can be a copy."""
    shapes = shapes_of(copy)
    if shapes is None:
        return None
    fitting = [m for m in pl_module.modules() if m not in inside and shapes_of(m) == shapes]
    return fitting[0] if len(fitting) == 1 and fitting[0] is not copy else None


def shapes_of(module: nn.Module) -> dict[str, torch.Size] | None:
    """Return the shapes of a module's parameters, None if it has none or they have none yet."""
    named = dict(module.named_parameters())
    if not named or any(map(is_lazy, named.values())):
        return None
    return {name: parameter.shape for name, parameter in named.items()}


def pair_of(original: nn.Module, copy: nn.Module) -> Copy | None:
    """Pair the tensors of a module and a copy, None if they are the same or do not fit."""
    return _fitting(tensors_of(original), tensors_of(copy))


def _fitting(ours: Mapping[Any, Tensor], theirs: Mapping[Any, Any]) -> Copy | None:
    """Pair tensors by key, None unless all have the same shape and a memory of their own."""
    pairs = [(tensor, theirs[key]) for key, tensor in ours.items() if key in theirs]
    for tensor, other in pairs:
        if not isinstance(other, Tensor) or other.shape != tensor.shape:
            return None
        if tensor.numel() and other.data_ptr() == tensor.data_ptr():
            return None  # the weights themselves
    return {id(tensor): other for tensor, other in pairs}


def edit_copies_(copies: Iterable[Copy], edited: list[WeightSlice]) -> Edit:
    """Write into every copy what was written into the model.

    Returns:
        What was written, which can be taken back.
    """
    edit = Edit()
    for copy in copies:
        for weights in edited:
            target = copy.get(id(weights.parameter))
            if target is not None:
                values = weights.read(weights.parameter).to(target.device, target.dtype)
                edit.set(WeightSlice(target, weights.positions.to(target.device)), values)
    edit.apply_()
    return edit
