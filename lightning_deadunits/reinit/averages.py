"""Averaged copies of a model (EMA, SWA, WeightAveraging), which get the same edits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_deadunits.reinit.weight_slice import WeightSlice


def copies_of(trainer: Any, pl_module: nn.Module) -> list[dict[int, Tensor]]:
    """Return, per averaged copy, its tensors by the identity of those they are averages of."""
    pairs = [
        (pl_module, copy)
        for callback in trainer.callbacks
        for value in vars(callback).values()
        if (copy := _averaged(value, pl_module)) is not None
    ]
    pairs += list(_inner(pl_module))
    return [_paired(original, copy) for original, copy in pairs]


def _averaged(value: Any, pl_module: nn.Module) -> nn.Module | None:
    """Return the copy inside what a callback holds, None if it is no copy of the module."""
    if not isinstance(value, nn.Module) or value is pl_module:
        return None
    inside = value.module if isinstance(value, AveragedModel) else value
    assert isinstance(inside, nn.Module)
    same = _shapes(inside) == _shapes(pl_module)
    return inside if same and inside is not pl_module else None


def _inner(pl_module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield what a module averages of itself, with the averages."""
    averages = [m for m in pl_module.modules() if isinstance(m, AveragedModel)]
    inside = {part for average in averages for part in average.modules()}
    for average in averages:
        shapes = _shapes(average.module)
        originals = [m for m in pl_module.modules() if m not in inside and _shapes(m) == shapes]
        if len(originals) == 1 and shapes:
            yield originals[0], average.module


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _paired(original: nn.Module, copy: nn.Module) -> dict[int, Tensor]:
    theirs = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
    ours = (*original.named_parameters(), *original.named_buffers())
    return {id(tensor): theirs[name] for name, tensor in ours if name in theirs}


def edit_copies_(copies: list[dict[int, Tensor]], edited: list[WeightSlice]) -> None:
    """Write into every copy what was written into the model."""
    for copy in copies:
        for weights in edited:
            target = copy.get(id(weights.parameter))
            if target is not None and target.shape == weights.parameter.shape:
                values = weights.read(weights.parameter).to(target.device, target.dtype)
                moved = WeightSlice(target, weights.positions.to(target.device))
                moved.write_(target, values)
