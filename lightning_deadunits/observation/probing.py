"""Tells what a module of unknown class does, by trying it: is it an elementwise activation?

``transformers`` writes GELU in six ways, four of them from ``tanh`` and ``erf``; users write
squared ReLUs. Their behaviour tells, their names do not.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_deadunits.observation.activations import SMOOTH_ATOL, Kind

_FAR = 30.0
_NEAR = -4.0


def probed_kind(module: nn.Module) -> Kind | None:
    """Return what kind of activation a module turns out to be, None if it is none.

    Only a leaf without parameters and buffers that is not torch's own is tried, on a shallow copy
    in eval mode, without its hooks; the random state is as before. It is an activation if it works
    on each value alone and tends to zero for very negative ones, but not for all.

    Args:
        module: Any module.
    """
    if type(module).__module__.startswith(("torch.", "torchmetrics.")) or _has_parts(module):
        return None
    values = torch.cat([torch.linspace(-100, -_FAR, 8), torch.linspace(-8, 8, 17), torch.ones(7)])
    try:
        result, mixed = _try(module, values.view(4, 8)), _try(module, values.flip(0).view(4, 8))
    except Exception:  # whatever it wants as input, an activation takes a plain tensor
        return None
    if (
        result is None
        or mixed is None
        or not torch.equal(mixed.flatten().flip(0), result.flatten())
    ):
        return None
    return _kind_of(result.flatten(), values)


def _has_parts(module: nn.Module) -> bool:
    parts = (module.children(), module.parameters(), module.buffers())
    return any(next(part, None) is not None for part in parts)


def _try(module: nn.Module, values: Tensor) -> Tensor | None:
    clone = copy.copy(module)
    clone.training = False
    random_state = torch.get_rng_state()
    try:
        with torch.no_grad():
            result = clone.forward(values.clone())
    finally:
        torch.set_rng_state(random_state)
    same = isinstance(result, Tensor) and result.shape == values.shape
    return result if same and result.isfinite().all() else None


def _kind_of(result: Tensor, values: Tensor) -> Kind | None:
    at_rest = result[values <= -_FAR].abs().max()
    if result.abs().max() <= SMOOTH_ATOL or at_rest > SMOOTH_ATOL:
        return None
    # Far out GELU underflows to zero, too; at -4 only what is exactly zero is.
    return "exact" if (result[values <= _NEAR] == 0).all() else "smooth"
