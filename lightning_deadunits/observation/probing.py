"""Tells what a module of unknown class does, by trying it: is it an activation?

``transformers`` writes GELU in six ways, four of them from ``tanh`` and ``erf``; users write
squared ReLUs, thresholds with a gradient of their own (JumpReLU), layers that keep the k largest
(TopK, as in sparse autoencoders). Their behaviour tells, their names do not.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_deadunits.observation.activations import SMOOTH_ATOL, Kind, module_kind

_FAR = 30.0
_NEAR = -4.0
_LARGE = 4.0
_SLOWEST, _FASTEST = 1.5, 20.0
_UNITS = 8
_MOST_UNITS = 4096


def probed_kind(module: nn.Module) -> Kind | None:
    """Return what kind of activation a module turns out to be, None if it is none.

    Only a module that is not torch's own, has no buffers, at most one parameter value per unit and
    no children but activations (TopK's ``postact_fn``) is tried, on a shallow copy in eval mode,
    without its hooks; the random state is as before. It is an activation if it works on each value
    alone, tends to zero for very negative ones, and grows with positive ones as a power of them
    does unless it is exactly zero for the negative ones; or if it passes some of the
    largest values on as they are, and nothing else.

    Args:
        module: Any module.
    """
    units = _units_of(module)
    if units is None or type(module).__module__.startswith(("torch.", "torchmetrics.")):
        return None
    try:
        if any(_are_equal(module, child, units) for child in module.children()):
            return None  # that counts by itself
        return _elementwise(module, units) or _keeps_largest(module, units)
    except Exception:  # whatever it wants as input, an activation takes a plain tensor
        return None


def _units_of(module: nn.Module) -> int | None:
    """Return for how many units a module has parameters: 0 for any number, None if not to try."""
    if next(module.buffers(), None) is not None:
        return None
    children = [child for child in module.children() if not isinstance(child, nn.Identity)]
    if any(_kind_of(child) is None for child in children):
        return None
    if any(is_lazy(parameter) for parameter in module.parameters()):
        return None  # of no shape before its first call
    sizes = {parameter.numel() for parameter in module.parameters()} - {1}
    shaped = all(parameter.ndim <= 1 for parameter in module.parameters())
    if not shaped or len(sizes) > 1:
        return None
    return sizes.pop() if sizes else 0


def _kind_of(module: nn.Module) -> Kind | None:
    return module_kind(module) or probed_kind(module)


def _are_equal(module: nn.Module, child: nn.Module, units: int) -> bool:
    """Tell whether a module returns what a part of it does."""
    own, theirs = _try(module, _values(units)), _try(child, _values(units))
    return own is not None and theirs is not None and torch.equal(own, theirs)


def _values(units: int) -> Tensor:
    column = torch.cat([torch.linspace(-100, -_FAR, 8), torch.linspace(-8, 8, 17), torch.ones(7)])
    return column.view(4, 8) if not units else column.unsqueeze(1).repeat(1, units)


def _elementwise(module: nn.Module, units: int) -> Kind | None:
    """Return the kind of a module that works on each value alone."""
    values = _values(units)
    result, mixed = _try(module, values), _try(module, values.flip(0))
    if result is None or mixed is None or not torch.equal(mixed.flip(0), result):
        return None
    shifted = values.clone()
    shifted[:, 0] = shifted[:, 0].flip(0)
    beside = _try(module, shifted)
    if beside is None or not torch.equal(beside[:, 1:], result[:, 1:]):
        return None  # what one unit is says something of the others
    at_rest = result[values <= -_FAR].abs().max()
    if result.abs().max() <= SMOOTH_ATOL or at_rest > SMOOTH_ATOL:
        return None
    # Far out GELU underflows to zero, too; at -4 only what is exactly zero is.
    if (result[values <= _NEAR] == 0).all():
        return "exact"
    # Twice as much for twice as much, or a power of it: a sigmoid and an exponential are not.
    growth = result[values == 2 * _LARGE].abs().max() / result[values == _LARGE].abs().max()
    return "smooth" if _SLOWEST <= growth <= _FASTEST else None


def _keeps_largest(module: nn.Module, units: int) -> Kind | None:
    """Return ``exact`` for a module that passes some positive values on and drops others."""
    width = units or _UNITS
    while width <= max(units, _MOST_UNITS):
        values = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
        result = _try(module, values)
        if result is not None:
            if not ((result == values) | (result == 0)).all():
                return None
            dropped = (result == 0) & (values > 0)
            if dropped.any() and (result > 0).any():
                return "exact"
        width *= 8  # as yet it keeps all that are positive
    return None


def _try(module: nn.Module, values: Tensor) -> Tensor | None:
    clone = _bare(module)
    like = next(module.parameters(), values)
    given = values.to(like.device, like.dtype)
    random_state = torch.get_rng_state()
    try:
        with torch.no_grad():
            result = clone.forward(given.clone())
    except RuntimeError:  # it keeps more values than there are
        return None
    finally:
        torch.set_rng_state(random_state)
    same = isinstance(result, Tensor) and result.shape == values.shape
    return result.to("cpu", values.dtype) if same and result.isfinite().all() else None


def _bare(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode, without hooks, of a module and its children.

    What its forward notes in lists of its own it notes in copies of them.
    """
    clone = copy.copy(module)
    clone.training = False
    for name, value in vars(module).items():
        if isinstance(value, (list, dict, set)):
            vars(clone)[name] = copy.copy(value)
    for hooks in _HOOKS:
        setattr(clone, hooks, OrderedDict())
    clone._modules = {
        name: child if child is None else _bare(child) for name, child in module._modules.items()
    }
    return clone


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
