"""Tensors that come together: sums and products of units, units side by side, rows of others."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_deadunits.observation.identity import (
    PADDED,
    REPEATED,
    ZERO,
    Descent,
    added,
    joined,
    share_units,
)
from lightning_deadunits.observation.lineage.axes import Axes, KnownAxes
from lightning_deadunits.observation.lineage.axis_rules import keep_same_rank, reduce
from lightning_deadunits.observation.lineage.call import Given, Invocation, Operand, Rule, units_of
from lightning_deadunits.observation.lineage.gates import WHERE
from lightning_deadunits.observation.lineage.ways import (
    EXPANSIONS,
    JOINS,
    JOINS_ALONG,
    REPEATS,
    ROW_ADDITIONS,
    ROW_WRITES,
    axis_of,
    plain_name,
)

_MOST_COMPARED = 64
_ORDERS = ("permute", "flip", "cat", "roll")
"""How words begin for units that stand in another order; ``roll`` alone moves none."""


def together(chosen: list[Descent], axes: Axes) -> Descent:
    """Return the descent of several tensors' units, which come together in one."""
    if not any(own.gate != 0 for own in chosen) or not differ(chosen):
        return added(chosen, axes)
    # A gate makes the units as well as what makes the values that it keeps, though these have
    # passed an activation and the gate has not.
    fresh = added([own._replace(activated=False) for own in chosen], axes)
    summed = any(own.summed or not share_units(chosen[0], own) for own in chosen)
    activated = all(own.activated or own.gate != 0 for own in chosen)
    return fresh._replace(activated=activated, summed=summed)


def differ(descents: list[Descent]) -> bool:
    """Tell whether tensors are known to be made by different weights."""
    producers = [own.producers for own in descents if own.producers]
    return any(own != producers[0] for own in producers[1:])


def _are_others(descents: list[Descent]) -> bool:
    """Tell whether rows of several tensors are known to have other units, or in another order."""
    return differ(descents) or any(_order(own) != _order(descents[0]) for own in descents[1:])


def _order(own: Descent) -> list[str]:
    return [word for word in own.way if word.startswith(_ORDERS) and word != "roll"]


def like(data: list[Operand], out: Tensor) -> Operand:
    """Return the argument that the result takes after.

    One with a unit axis and the result's own shape, else the first that has a unit axis, else one
    that is known to have none.
    """
    best = data[0]
    for operand in data:
        if operand.descent.axes and operand.tensor.shape == out.shape:
            return operand
        if operand.descent.axes and not best.descent.axes:
            best = operand
    return best


def joining(data: list[Operand]) -> list[Descent]:
    """Return the descents of those arguments whose units come together in the result."""
    if len(data) == 1:
        return [data[0].descent]
    found = [own for _, own in data if own.axes and own.gate != ZERO]
    return found or [data[0].descent]


def spread_axes(axes: Axes, data: list[Operand], source: Tensor, out: Tensor) -> Axes:
    """Return the unit axes of a result, those too over which its source is spread.

    Each pair is a unit in ``a[:, :, None] * b[:, None, :]``.
    """
    shift = out.ndim - source.ndim
    found = set(axes)
    for tensor, own in data:
        before = out.ndim - tensor.ndim
        for axis in () if tensor is source or own.sizes or own.gate == ZERO else own.axes or ():
            at = axis + before
            alone = at < shift or source.shape[at - shift] == 1
            if alone and at >= 0 and tensor.shape[axis] == out.shape[at] > 1:
                found.add(at)
    return tuple(sorted(found)) if len(found) > len(axes) else axes


def in_order(descent: Descent, given: Given) -> Descent:
    """Have units that are joined in another order than the model's, or with others, tell so.

    They would be taken for those of ``cat([a, b])``, which stand elsewhere in ``cat([b, a])``.
    """
    places = [
        (*own.producers[0][1:4], own.producers[0].negative)
        if own is not None and own.producers and own.activated == descent.activated
        else None  # nobody knows what makes it, or it is carried along
        for _, own in given
    ]
    fresh = [place for place in places if place is not None]
    if len(fresh) == len(places) and fresh == sorted(fresh):
        return descent
    ranks = ["x" if place is None else str(sorted(fresh).index(place)) for place in places]
    return descent._replace(way=joined(descent.way, (f"cat{'_'.join(ranks)}",)))


def mixes_rows(
    known: KnownAxes,
    call: Invocation,
    given: Given,
    chosen: list[Descent],
    operand: Operand,
    axes: Axes,
) -> bool:
    """Tell whether a result has rows of one layer beside rows of another one.

    Args:
        known: What is known of tensors.
        call: The call.
        given: The tensors that it was given.
        chosen: Those whose units come together.
        operand: The one that the result takes after.
        axes: The unit axes of the result.
    """
    function, args = call.function, call.args
    if function in ROW_WRITES:
        return _are_others(chosen) and (function not in ROW_ADDITIONS or is_partial(known, args[0]))
    if function in JOINS:
        source, own = operand
        if units_of(source, own) != units_of(call.out, own._replace(axes=axes)):
            return False  # units are joined, not rows
        return _are_others(chosen) or any(
            (other is None or other.weight) and tensor.numel() and not known.is_zero(tensor)
            for tensor, other in given
        )
    if function in WHERE:
        branches = [known.descent(branch) for branch in args[1:3] if isinstance(branch, Tensor)]
        return differ([own for own in branches if own is not None and own.gate != ZERO])
    return False


def rows_beside(call: Invocation, descent: Descent, given: Given) -> Descent:
    """Return the descent of rows of several layers; those that are stacked, with their axis."""
    if call.function in JOINS_ALONG and not descent.mixed:
        dim = (axis_of(call.function, call.args, call.kwargs) or 0) % call.out.ndim
        if call.out.shape[dim] == len(given):
            descent = descent._replace(stacked=dim)
    return descent._replace(mixed=True)


def still_stacked(
    call: Invocation, rule: Rule, descent: Descent, axis: int, source: Tensor
) -> Descent:
    """Have rows of several layers be known by their axis for longer, or be summed over it."""
    if call.out.shape == source.shape and rule.move is keep_same_rank:
        return descent._replace(stacked=axis)
    if rule.move is reduce and not rule.move((axis,), source, call.args, call.kwargs, call.out):
        # The least of them is not the greatest.
        way = joined(descent.way, (plain_name(call.function),))
        return descent._replace(mixed=False, summed=True, stacked=None, way=way)
    return descent._replace(stacked=None)


def flaw_of(call: Invocation, given: Given, operand: Operand, axes: Axes) -> str:
    """Say why a result has values beside the units that are none of their own, "" if it has none.

    Zeros that were padded, raw inputs that were joined to them, or the same units once more.
    """
    function, args, (source, own) = call.function, call.args, operand
    spreads = function in REPEATS or function in EXPANSIONS or function is F.interpolate
    joins = function in JOINS and function is not torch.stack
    if function is not F.pad and not spreads and not joins:
        return ""
    if units_of(call.out, own._replace(axes=axes)) <= units_of(source, own):
        return ""
    if function is F.pad:
        mode = call.kwargs.get("mode", args[2] if len(args) > 2 else "constant")
        return PADDED if mode == "constant" else ""
    return REPEATED if spreads else flaw_beside(given)


def flaw_beside(given: Given) -> str:
    """Say why tensors that stand side by side have values that are no units of their own."""
    if any(tensor.numel() and own is None for tensor, own in given):
        return PADDED
    known = [own for _, own in given if own is not None and own.producers]
    made = [(own.producers, own.way, own.activated) for own in known[:_MOST_COMPARED]]
    if any(one == other for one, other in combinations(made, 2)):
        return REPEATED
    return next((own.flaw for own in known if own.flaw), "")


def is_partial(known: KnownAxes, target: Any) -> bool:
    """Tell whether a tensor was all zeros, but for what was added to some of its rows."""
    own = known.descent(target)
    return own is None or own.partial or own.gate == ZERO
