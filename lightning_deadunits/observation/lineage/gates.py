"""Activations written as a comparison of units with something: ``torch.where(h > 0, h, 0)``.

And ``h * (h > theta)`` (JumpReLU), ``torch.maximum(h, zeros)``, ``h.clamp(min=tensor(0))``,
``h.masked_fill(h < 0, 0)``, ``h[h < 0] = 0``. What tells them from any other mask: the mask was
computed from the very units that it keeps or drops, if by other shifts or scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.activations import CLAMPS
from lightning_deadunits.observation.identity import DROPS, KEEPS, ZERO, share_units
from lightning_deadunits.observation.lineage.axes import Args, KnownAxes, Kwargs
from lightning_deadunits.observation.lineage.ways import TIMES, WRITES

_GREATER = {torch.gt, torch.ge, Tensor.gt, Tensor.ge, Tensor.__gt__, Tensor.__ge__, torch.greater}
_LESS = {torch.lt, torch.le, Tensor.lt, Tensor.le, Tensor.__lt__, Tensor.__le__, torch.less}
_NOT = {torch.logical_not, Tensor.logical_not, torch.bitwise_not, Tensor.__invert__}
_CASTS = {
    *(Tensor.to, Tensor.float, Tensor.half, Tensor.double, Tensor.bfloat16, Tensor.type),
    *(Tensor.type_as, Tensor.bool, Tensor.detach, Tensor.clone, Tensor.contiguous),
}
COMPARISONS = _GREATER | _LESS
ZEROS = {torch.zeros_like, torch.zeros, Tensor.new_zeros, torch.tensor, torch.as_tensor}
"""Functions that return zeros, some of them if they are given a zero."""

WHERE: set[Callable[..., Any]] = {torch.where, Tensor.where}
FILLS: set[Callable[..., Any]] = {torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_}
_MAXIMUM: set[Callable[..., Any]] = {
    *(torch.maximum, Tensor.maximum, torch.max, Tensor.max, torch.fmax, Tensor.fmax),
}
_NAMES = ("condition", "input", "mask", "min", "other", "value")
"""What the arguments of all these are called, in their order."""

GATES: dict[Callable[..., Any], str] = {
    **dict.fromkeys(WHERE, "where"),
    **dict.fromkeys(_MAXIMUM, "maximum"),
    **dict.fromkeys(TIMES, "mul"),
    **dict.fromkeys(FILLS, "masked_fill"),
    **dict.fromkeys(CLAMPS, "clamp"),
    **dict.fromkeys(WRITES, "setitem"),
}
"""Functions that are activations if they are given a comparison with the units themselves."""


def gate_after(function: Callable[..., Any], gate: int, first: bool) -> int:
    """Return what a result is of a function that was given such a comparison, 0 for none.

    Args:
        function: The function.
        gate: What it was given.
        first: Whether its first argument has the units; ``h > theta`` is ``theta < h`` for a
            parameter, whose class comes first.
    """
    if function in COMPARISONS:
        return KEEPS if (function in _GREATER) is first else DROPS
    if function is torch.zeros_like:
        return ZERO
    if gate and function in _NOT:
        return -gate if gate != ZERO else 0
    return gate if function in _CASTS else 0


def makes_zero(function: Callable[..., Any], args: Args) -> bool:
    """Tell whether one of ``ZEROS`` returns zeros."""
    given = function in (torch.tensor, torch.as_tensor)
    return not given or (bool(args) and isinstance(args[0], (int, float)) and args[0] == 0)


def is_gated(
    known: KnownAxes, function: Callable[..., Any], args: Args, kwargs: Kwargs, out: Any
) -> bool:
    """Tell whether a call of one of ``GATES`` is an activation."""
    named = [kwargs[name] for name in _NAMES if name in kwargs]
    args = (*args, *named)
    if not isinstance(out, Tensor) or len(named) < len(kwargs) or not 2 <= len(args) <= 3:
        return False
    if function in _MAXIMUM:
        return len(args) == 2 and any(
            _is_zero(known, one) and _has_units(known, other, out)
            for one, other in (args, args[::-1])
        )
    if function in CLAMPS:  # by a number it is an activation without more ado
        low = args[1]
        return len(args) == 2 and isinstance(low, Tensor) and known.is_zero(low)
    if function in TIMES:
        return any(_same_units(known, mask, KEEPS, x, out) for mask, x in (args, args[::-1]))
    if len(args) != 3:
        return False
    if function in FILLS or function in WRITES:
        x, mask, value = args
        same = _is_zero(known, value) and _same_units(known, mask, DROPS, x, out)
        # What is written into stays what its own weights make: no others can be told of.
        return same and (function in FILLS or _made_alike(known, mask, x))
    mask, kept, dropped = args if isinstance(args[0], Tensor) and args[0].dtype == torch.bool else (
        args[1], args[0], args[2]
    )  # fmt: skip
    return (_is_zero(known, dropped) and _same_units(known, mask, KEEPS, kept, out)) or (
        _is_zero(known, kept) and _same_units(known, mask, DROPS, dropped, out)
    )


def _has_units(known: KnownAxes, x: Any, out: Tensor) -> bool:
    own = known.descent(x) if isinstance(x, Tensor) else None
    return (
        own is not None
        and own.axes is not None
        and len(own.axes) > 0
        and x.shape == out.shape
        and own.gate != ZERO
    )


def _same_units(known: KnownAxes, mask: Any, gate: int, x: Any, out: Tensor) -> bool:
    if not isinstance(mask, Tensor) or mask.shape != out.shape or not _has_units(known, x, out):
        return False
    own, of_mask = known.descent(x), known.descent(mask)
    if own is None or of_mask is None:
        return False
    return of_mask.gate == gate and share_units(of_mask, own)


def _made_alike(known: KnownAxes, mask: Any, x: Any) -> bool:
    own, of_mask = known.descent(x), known.descent(mask)
    return own is not None and of_mask is not None and own.producers == of_mask.producers


def _is_zero(known: KnownAxes, value: Any) -> bool:
    if not isinstance(value, Tensor):
        return isinstance(value, (int, float)) and value == 0
    own = known.descent(value)
    if own is not None and own.gate == ZERO:
        return True
    return known.is_zero(value)
